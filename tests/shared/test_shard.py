"""Tests of shards as a backup of replay: a crash loses no written unroll, and the next writer resumes."""

import contextlib
import errno
import functools
import itertools
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from shared.errors import ConfigError
from shared.replay.codec import INT_COLUMNS, Columns
from shared.stream.backup import link_shard, restore_shard
from shared.stream.format import ShardSummary
from shared.stream.index import read_index
from shared.stream.part import PartWriter, parts_in
from shared.stream.shard import read_shard
from shared.stream.write import StreamWriter
from tests.shared.stream_cases import DESCRIPTION, F, N, T

ROOT = Path(__file__).parents[2]
PART = 4 * DESCRIPTION.unroll_bytes


def unroll(number: int) -> Columns:
    rng = np.random.default_rng(number)
    floats = rng.integers(2**32, size=(N, T, F), dtype=np.uint32).view(np.float32)
    return Columns(floats, np.full((N, T, INT_COLUMNS), number, np.int32))


def writer_of(directory: Path, **options: Any) -> StreamWriter:
    return StreamWriter(directory, 0, DESCRIPTION, **({"part_bytes": PART, "wait_s": 0} | options))


def write(writer: StreamWriter, unrolls: int) -> None:
    for _ in range(unrolls):
        writer.write(unroll(writer.next_number), writer.next_number)


def read(folder: Path, first: int = 0) -> list[int]:
    """Returns the numbers of the unrolls; checks that each unroll is equal to the bit."""
    numbers = []
    for number, columns in read_shard(folder, DESCRIPTION, first):
        assert [column.tobytes() for column in columns] == [column.tobytes() for column in unroll(number)]
        numbers.append(number)
    return numbers


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("part-*"))


def refused(use: Callable[[], object]) -> str:
    with pytest.raises(ConfigError) as caught:
        use()
    line = str(caught.value)
    assert "\n" not in line
    assert "; " in line  # what is wrong; what to do
    return line


@pytest.fixture
def shard(tmp_path: Path) -> Path:
    """Returns the folder of unrolls 0 to 9: two finished parts of 4, and 2 in an unfinished part."""
    write(writer_of(tmp_path), 10)
    assert names(tmp_path / "collector-0") == [
        "part-000000000.arrow",
        "part-000000004.arrow",
        "part-000000008.arrow.partial",
    ]
    return tmp_path / "collector-0"


class Crash(BaseException):
    pass


@contextlib.contextmanager
def crashing_at(step: int) -> Iterator[None]:
    """Raises Crash at the `step`th call that changes a folder or waits for the disk."""
    left = itertools.count(step, -1)

    def counted(call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        if next(left) <= 0:
            raise Crash
        return call(*args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        for name in ("fsync", "rename", "replace", "unlink", "rmdir", "link", "mkdir"):
            patch.setattr(os, name, functools.partial(counted, getattr(os, name)))
        yield


def test_a_writer_resumes_after_the_last_unroll_on_disk(shard: Path) -> None:
    writer = writer_of(shard.parent)
    assert writer.next_number == 10
    assert names(shard) == ["part-000000000.arrow", "part-000000004.arrow", "part-000000008.arrow"]
    write(writer, 3)
    assert read(shard) == list(range(13))
    assert [part.numbers for part in writer.close().parts] == [range(4), range(4, 8), range(8, 10), range(10, 13)]


def test_a_gap_finishes_the_part_and_reads_back(tmp_path: Path) -> None:
    writer = writer_of(tmp_path)
    for number in (1, 2, 4, 5, 9):
        writer.write(unroll(number), number)
    folder = tmp_path / "collector-0"
    assert names(folder) == ["part-000000001.arrow", "part-000000004.arrow", "part-000000009.arrow.partial"]
    assert read(folder) == [1, 2, 4, 5, 9]
    with pytest.raises(ValueError, match="unroll 9 after unroll 9"):
        writer.write(unroll(9), 9)
    writer.write(unroll(10), 10)  # the writer accepts numbers after a refused number
    assert [part.numbers for part in writer.close().parts] == [range(1, 3), range(4, 6), range(9, 11)]
    assert read(folder) == [1, 2, 4, 5, 9, 10]


def test_a_shard_is_read_from_any_number(shard: Path) -> None:
    for first in range(12):
        assert read(shard, first) == list(range(first, 10))
    assert read(shard / "elsewhere") == []


def test_every_prefix_of_a_part_is_salvaged_to_its_last_whole_unroll(tmp_path: Path) -> None:
    writer, path = writer_of(tmp_path), tmp_path / "collector-0" / "part-000000000.arrow.partial"
    ends = []
    for _ in range(3):
        write(writer, 1)
        ends.append(path.stat().st_size)
    data = path.read_bytes()
    del writer
    lengths = {*range(0, len(data), 37), *ends, *(end - 1 for end in ends), *(end + 1 for end in ends[:-1])}
    for length in sorted(lengths):
        folder = tmp_path / f"cut-{length}" / "collector-0"
        folder.mkdir(parents=True)
        (folder / path.name).write_bytes(data[:length])
        whole = list(range(sum(end <= length for end in ends)))
        assert read(folder) == whole
        writer = writer_of(folder.parent)
        assert writer.next_number == len(whole)
        write(writer, 1)
        assert read(folder) == [*whole, len(whole)]


@pytest.mark.parametrize("keep", [None, 4])
def test_a_writer_may_crash_at_any_step(tmp_path: Path, keep: int | None) -> None:
    """Crashes a writer at every step of writing, and the next writer at every third step of recovery."""
    write(writer_of(tmp_path), 11)
    for step, recovery_step in itertools.product(range(16), range(0, 16, 3)):
        directory = tmp_path / f"{step}-{recovery_step}"
        shutil.copytree(tmp_path / "collector-0", directory / "collector-0")
        writer = writer_of(directory, part_bytes=PART, keep_unrolls=keep)
        with crashing_at(step), contextlib.suppress(Crash):
            write(writer, 5)
        del writer
        written = read(directory / "collector-0")
        assert written[-1] >= 11
        with crashing_at(recovery_step), contextlib.suppress(Crash):
            writer_of(directory, keep_unrolls=keep)
        writer = writer_of(directory, keep_unrolls=keep)
        assert writer.next_number == written[-1] + 1
        assert read(directory / "collector-0") == written[-len(read(directory / "collector-0")) :]
        assert len(read(directory / "collector-0")) >= (keep or len(written))
        assert writer.close() == read_index(directory / "collector-0", "")


def test_salvage_may_be_interrupted_within_a_part(shard: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def crash_after(writer: PartWriter, batch: Any) -> None:
        write_batch(writer, batch)
        raise Crash

    write_batch = PartWriter.write
    monkeypatch.setattr(PartWriter, "write", crash_after)
    with pytest.raises(Crash):
        writer_of(shard.parent)
    monkeypatch.undo()
    assert read(shard) == list(range(10))
    assert writer_of(shard.parent).next_number == 10
    assert read(shard) == list(range(10))
    assert sorted(path.name for path in shard.iterdir()) == ["lock", *names(shard), "shard.json"]


WRITING = """
import os
import sys
from pathlib import Path

from tests.shared.test_shard import unroll, writer_of

for line in sys.stdin:
    directory, keep = line.split()
    writer_pid = os.fork()
    if writer_pid == 0:
        print(os.getpid(), flush=True)
        writer = writer_of(Path(directory), keep_unrolls=int(keep) or None, wait_s=5)
        number = writer.next_number + 1
        while True:
            writer.write(unroll(number), number)
            os.write(1, f"{number}\\n".encode())  # one call, so that a kill leaves no partial line
            number += 1
    os.waitpid(writer_pid, 0)
    print("ended", flush=True)
"""


@pytest.fixture(scope="module")
def writers() -> Iterator[subprocess.Popen[str]]:
    """Starts a process that forks a writer for each line `directory keep`; forks share its slow imports."""
    command = [sys.executable, "-c", WRITING]
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(command, cwd=ROOT, text=True, **pipes) as process:
        yield process
        assert process.stdin is not None
        assert process.stderr is not None
        process.stdin.close()
        assert process.stderr.read() == ""


@pytest.mark.processes
@pytest.mark.parametrize("keep", [0, 30])
def test_a_killed_writer_loses_nothing(tmp_path: Path, writers: subprocess.Popen[str], keep: int) -> None:
    """Starts writers that skip a number and write until kill -9."""
    assert writers.stdin is not None
    assert writers.stdout is not None
    rng, written = random.Random(0), list[int]()
    for _ in range(4):
        print(tmp_path, keep, file=writers.stdin, flush=True)
        pid = int(writers.stdout.readline())
        first = writers.stdout.readline()
        time.sleep(rng.uniform(0, 0.2))
        os.kill(pid, signal.SIGKILL)
        returned = [int(line) for line in (first, *itertools.takewhile(lambda line: line != "ended\n", writers.stdout))]
        on_disk = read(tmp_path / "collector-0")
        new = [number for number in on_disk if not written or number > written[-1]]
        assert new[0] == (written[-1] + 2 if written else 1) or keep  # a tail may have deleted new unrolls
        # The kill may come after an unroll is written and before its number is reported.
        assert new[-1] - returned[-1] in (0, 1)
        assert on_disk == (written + new)[-len(on_disk) :]
        assert len(on_disk) >= min(keep or sys.maxsize, len(written + new))
        written += new
    assert writer_of(tmp_path, keep_unrolls=keep or None).next_number == written[-1] + 1
    assert read(tmp_path / "collector-0") == written[-len(read(tmp_path / "collector-0")) :]


@pytest.mark.parametrize("keep", [1, 5, 40])
def test_a_tail_is_bounded_and_keeps_its_newest_unrolls(tmp_path: Path, keep: int) -> None:
    writer, folder = writer_of(tmp_path, keep_unrolls=keep, part_bytes=2**30), tmp_path / "collector-0"
    part = max(1, keep // 8)
    for number in range(3 * keep):
        if number % 17 == 3:
            writer.cut()
        write(writer, 1)
        assert min(keep, number + 1) <= len(read(folder)) <= keep + 2 * part
    assert read(folder)[-keep:] == list(range(2 * keep, 3 * keep))
    shard = writer.close()
    assert keep <= shard.unrolls < keep + part
    assert names(folder) == [part.name for part in shard.parts]
    assert shard.bytes == sum((folder / name).stat().st_size for name in names(folder))


def test_a_shorter_tail_is_cut_when_it_is_opened(shard: Path) -> None:
    writer = writer_of(shard.parent, keep_unrolls=2)
    assert (read(shard), writer.next_number) == ([8, 9], 10)
    with pytest.raises(ValueError, match="at least 1"):
        writer_of(shard.parent, keep_unrolls=0)


def test_two_writers_of_a_shard_exclude_each_other(tmp_path: Path) -> None:
    first = writer_of(tmp_path)
    write(first, 1)
    began = time.monotonic()
    assert "another process has been writing this shard for 0.3 s" in refused(lambda: writer_of(tmp_path, wait_s=0.3))
    assert 0.3 <= time.monotonic() - began < 5
    timer = threading.Timer(0.2, first.close)
    timer.start()
    second = writer_of(tmp_path, wait_s=5)
    timer.join()
    assert second.next_number == 1
    assert StreamWriter(tmp_path, 1, DESCRIPTION, wait_s=0).next_number == 0  # the lock covers one shard only


@pytest.mark.parametrize("keep", [None, 16])
def test_a_shard_is_read_while_it_is_written(tmp_path: Path, keep: int | None) -> None:
    writer, folder = writer_of(tmp_path, keep_unrolls=keep), tmp_path / "collector-0"
    write(writer, 20)
    failed: list[BaseException] = []

    def keep_writing() -> None:
        try:
            write(writer, 600)
        except BaseException as error:  # noqa: BLE001 - the test's own thread asserts that there is none
            failed.append(error)

    thread = threading.Thread(target=keep_writing)
    thread.start()
    passes = 0
    while thread.is_alive():
        before = writer.next_number
        numbers = read(folder)
        assert numbers == sorted(set(numbers))
        overtaken = keep is not None and before <= writer.next_number - keep  # deleted before they were read
        assert overtaken or numbers[-1] >= before - 1
        assert keep or numbers[:before] == list(range(before))  # a tail deletes some unread unrolls
        passes += 1
    thread.join()
    assert not failed
    assert passes > 2
    assert read(folder)[-16:] == list(range(604, 620))


def test_reading_survives_parts_that_are_deleted_or_finished(shard: Path) -> None:
    writer = writer_of(shard.parent)
    write(writer, 1)
    reading = read_shard(shard, DESCRIPTION)
    assert next(reading)[0] == 0
    (shard / "part-000000004.arrow").unlink()
    writer.cut()  # finishes the part that was being written
    assert [number for number, _ in reading] == [1, 2, 3, 8, 9, 10]


def test_a_part_finished_between_listing_and_reading_is_found(shard: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    writer = writer_of(shard.parent)
    write(writer, 1)
    read_bytes = Path.read_bytes

    def finish_then_read(path: Path) -> bytes:
        if path.suffix == ".partial":
            writer.cut()
        return read_bytes(path)

    monkeypatch.setattr(Path, "read_bytes", finish_then_read)
    assert read(shard) == list(range(11))
    assert not list(shard.glob("*.partial"))


def test_a_part_that_one_listing_misses_is_found(shard: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = names(shard)
    listings = iter([files[1:], files, files])
    monkeypatch.setattr(os, "listdir", lambda _: next(listings))
    assert parts_in(shard) == [0, 4, 8]


def snapshot(writer: StreamWriter, shard: Path, to: Path) -> ShardSummary:
    summary = writer.cut()
    link_shard(summary, shard, to)
    return summary


def test_a_tail_is_listed_when_a_snapshot_needs_it(tmp_path: Path) -> None:
    """The index never lists a part that does not exist, and a resumed writer keeps parts that the index lacks."""
    shard = tmp_path / "collector-0"
    writer = writer_of(tmp_path, keep_unrolls=8)  # a part is an unroll
    write(writer, 5)
    assert read_index(shard, "").parts == ()
    assert [part.first for part in writer.cut().parts] == [0, 1, 2, 3, 4]
    write(writer, 6)
    assert [part.first for part in read_index(shard, "").parts] == [3, 4]
    assert writer.next_number == 11
    del writer
    writer = writer_of(tmp_path, keep_unrolls=8)
    summary = writer.close()
    assert summary == read_index(shard, "")
    assert [part.first for part in summary.parts] == read(shard) == list(range(3, 11))


@pytest.mark.parametrize("keep", [None, 4])
def test_a_shard_is_restored_from_a_snapshot(shard: Path, tmp_path: Path, keep: int | None) -> None:
    writer, to = writer_of(shard.parent, keep_unrolls=keep), tmp_path / "snapshot" / "collector-0"
    summary = snapshot(writer, shard, to)
    held = {name: (to / name).read_bytes() for name in names(to)}
    assert all((to / name).samefile(shard / name) for name in held)
    write(writer, 9)
    assert "another process" in refused(lambda: restore_shard(to, shard, wait_s=0))
    writer.close()
    for _ in range(2):  # a snapshot can be restored again
        restore_shard(to, shard)
        assert read_index(shard, "") == summary
        assert {name: (shard / name).read_bytes() for name in names(shard)} == held
        writer = writer_of(shard.parent, keep_unrolls=keep)
        assert writer.next_number == 10
        writer.write(unroll(11), 11)
        writer.close()
        assert read(shard)[-3:] == [8, 9, 11]
    assert {name: (to / name).read_bytes() for name in names(to)} == held
    assert sorted(path.name for path in shard.parent.iterdir()) == ["collector-0", "snapshot"]


def test_an_empty_shard_is_restored_from_a_snapshot(tmp_path: Path) -> None:
    shard, to = tmp_path / "collector-0", tmp_path / "snapshot" / "collector-0"
    writer = writer_of(tmp_path)
    snapshot(writer, shard, to)
    write(writer, 3)
    del writer
    restore_shard(to, shard)
    assert writer_of(tmp_path).next_number == 0


def test_restoring_may_be_interrupted_at_any_step(shard: Path, tmp_path: Path) -> None:
    to = tmp_path / "snapshot" / "collector-0"
    writer = writer_of(shard.parent)
    snapshot(writer, shard, to)
    write(writer, 5)
    writer.close()
    for step in range(40):
        with crashing_at(step), contextlib.suppress(Crash):
            restore_shard(to, shard)
            break
        restore_shard(to, shard)
        writer = writer_of(shard.parent)
        assert read(shard) == list(range(10))
        write(writer, 5)
        writer.close()
    assert 10 < step < 39
    assert read(to) == list(range(10))


def test_parts_are_copied_if_the_disk_has_no_links(
    shard: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_links(*_: Any) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "link", no_links)
    for number in (errno.EXDEV, errno.EPERM, errno.EMLINK, errno.EOPNOTSUPP):
        to = tmp_path / str(number)
        summary = snapshot(writer_of(shard.parent), shard, to)
        assert read(to) == list(range(10))
        assert not any((to / part.name).samefile(shard / part.name) for part in summary.parts)
    number = errno.ENOSPC
    with pytest.raises(OSError, match="No space left"):
        snapshot(writer_of(shard.parent), shard, tmp_path / "full")


def closed(shard: Path) -> Path:
    writer_of(shard.parent).close()
    return shard


def test_parts_that_the_index_lacks_are_added(shard: Path) -> None:
    known = writer_of(shard.parent).close()
    for lost in ({1}, {0, 2}, {0, 1, 2}):
        (shard / "shard.json").unlink()
        parts = {place: part for place, part in enumerate(known.parts) if place not in lost}
        (shard / "aside").mkdir()
        for place in lost:
            (shard / known.parts[place].name).rename(shard / "aside" / known.parts[place].name)
        assert writer_of(shard.parent).close().parts == tuple(parts.values())
        for path in (shard / "aside").iterdir():
            path.rename(shard / path.name)
        (shard / "aside").rmdir()
        assert writer_of(shard.parent).close() == known


@pytest.mark.parametrize("where", np.linspace(0, 0.99, 12))
def test_a_damaged_index_is_refused(shard: Path, where: float) -> None:
    path = closed(shard) / "shard.json"
    whole = path.read_bytes()
    path.write_bytes(whole[: round(where * len(whole))])
    assert f"{path}: damaged; remove it" in refused(lambda: writer_of(shard.parent))
    path.unlink()  # as the message says
    assert writer_of(shard.parent).close().unrolls == 10
    assert path.read_bytes() == whole
    values = json.loads(whole)
    digit = values["shard"]["parts"][1]["sha256"][0]
    values["shard"]["parts"][1]["sha256"] = values["shard"]["parts"][1]["sha256"].replace(digit, "0f"[digit == "0"])
    path.write_text(json.dumps(values))
    assert f"{path}: damaged; remove it" in refused(lambda: writer_of(shard.parent))


@pytest.mark.parametrize("version", [2, 4])  # rows of version 2 do not say how an episode ended
@pytest.mark.parametrize("finished", [True, False])
def test_a_tail_or_a_snapshot_of_another_version_is_refused(shard: Path, version: int, finished: bool) -> None:
    path = (closed(shard) if finished else shard) / "shard.json"
    path.write_text(path.read_text().replace('"format_version": 3', f'"format_version": {version}'))
    before = {name: (shard / name).read_bytes() for name in names(shard)}
    to = shard.parent / "restored"
    for use in (lambda: writer_of(shard.parent), lambda: restore_shard(shard, to)):
        line = refused(use)
        assert f"{path}: format version {version}, this Fathom reads 3; resume with the Fathom that began" in line
    assert not to.exists()
    assert {name: (shard / name).read_bytes() for name in names(shard)} == before


def test_an_index_of_another_collector_is_refused(shard: Path) -> None:
    closed(shard)
    shard.rename(shard.with_name("collector-1"))
    other = refused(lambda: StreamWriter(shard.parent, 1, DESCRIPTION))
    assert "collector-1/shard.json: of collector 0, not of 1" in other


def test_damaged_parts_are_refused(shard: Path, tmp_path: Path) -> None:
    to, path = tmp_path / "snapshot", closed(shard) / "part-000000004.arrow"
    shutil.copytree(shard, to)
    whole = path.read_bytes()
    path.write_bytes(whole[:-1])
    assert f"{path}: {len(whole) - 1} bytes, the shard's index says {len(whole)}" in refused(
        lambda: writer_of(shard.parent)
    )
    assert f"{path}: cannot be read (not an Arrow file)" in refused(lambda: read(shard))
    (shard / "shard.json").unlink()
    assert f"{path}: cannot be read (not an Arrow file)" in refused(lambda: writer_of(shard.parent))
    path.unlink()
    restore_shard(to, shard)
    path.unlink()
    assert f"{path}: missing" in refused(lambda: writer_of(shard.parent))
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 1
    (to / path.name).write_bytes(flipped)
    assert f"{to / path.name}: damaged, its checksum is not the snapshot's" in refused(lambda: restore_shard(to, shard))
    (to / "shard.json").unlink()
    assert f"{to / 'shard.json'}: missing; resume from another" in refused(lambda: restore_shard(to, shard))


@pytest.mark.parametrize("name", ["part-000000004.arrow", "part-000000008.arrow.partial"])
def test_flipped_bits_raise_only_config_errors(shard: Path, name: str) -> None:
    """Reads without checksums, so that most flipped bits raise nothing."""
    path = shard / name
    whole = path.read_bytes()
    (shard / "shard.json").unlink()
    lines = []
    for place in range(0, len(whole), 11):
        flipped = bytearray(whole)
        flipped[place] ^= 1 << place % 8
        path.write_bytes(flipped)
        try:
            list(read_shard(shard, DESCRIPTION))
        except ConfigError as error:
            lines.append(str(error))
    assert all("; " in line and "\n" not in line for line in lines)
    assert lines or name.endswith(".partial")


@pytest.mark.parametrize("change", [{"state_size": 5}, {"environments": 4}, {"unroll_length": 5}])
@pytest.mark.parametrize("finished", [True, False])
def test_another_runs_shard_is_refused(shard: Path, change: dict[str, int], finished: bool) -> None:
    other = DESCRIPTION.model_copy(update=change)
    assert "this" in refused(lambda: list(read_shard(shard, other)))
    if finished:
        closed(shard)
    else:
        for path in shard.glob("*.arrow"):
            path.unlink()
        (shard / "shard.json").unlink()
    assert str(shard) in refused(lambda: StreamWriter(shard.parent, 0, other))
    assert writer_of(shard.parent).next_number == 10
