import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from shared.config import EnvOptions
from shared.config_file import parse_experiment
from shared.envs.registry import make_envs
from shared.errors import ConfigError
from shared.plan import make_plan
from shared.replay.codec import INT_COLUMNS, Columns
from shared.stream.format import ShardSummary, StreamDescription, bytes_of_stream, describe
from shared.stream.read import open_stream
from shared.stream.shard import read_shard
from shared.stream.write import PART_BYTES, StreamWriter, write_manifest
from tests.shared.stream_cases import DESCRIPTION, F, N, T, downgrade, record, unroll, write_shards

ROOT = Path(__file__).parents[2]
UNROLL_BYTES = N * T * (F + INT_COLUMNS) * 4


@pytest.fixture
def stream(tmp_path: Path) -> Path:
    """Returns the folder of a complete stream: two shards of three parts, of 2, 2 and 1 unrolls."""
    return record(tmp_path / "stream")


def same(one: Columns, other: Columns) -> bool:
    """Returns True if both are equal to the bit, NaNs included."""
    return all(
        x.dtype == y.dtype and x.shape == y.shape and x.tobytes() == y.tobytes()
        for x, y in zip(one, other, strict=True)
    )


def refused(directory: Path) -> str:
    """Returns the one line with which `open_stream` refuses."""
    with pytest.raises(ConfigError) as caught:
        open_stream(directory)
    line = str(caught.value)
    assert "\n" not in line
    assert str(directory) in line
    assert "; " in line  # what is wrong; what to do
    return line


def edit(directory: Path, change: Callable[[dict[str, Any]], object]) -> None:
    manifest = json.loads((directory / "manifest.json").read_text())
    change(manifest)
    (directory / "manifest.json").write_text(json.dumps(manifest))


def test_unrolls_are_read_back_equal_to_the_bit(stream: Path) -> None:
    opened = open_stream(stream)
    assert opened.description == DESCRIPTION
    for index in range(2):
        read = list(opened.shard(index))  # all unrolls stay valid after the last iteration
        assert len(read) == 5
        assert [number for number, _ in read] == list(range(5))
        assert all(same(columns, unroll(index, number)) for number, columns in read)


def test_a_shard_with_a_gap_may_be_longer(tmp_path: Path) -> None:
    description = DESCRIPTION.model_copy(update={"collectors": 1})
    numbers = [0, 1, 2, 4, 5, 6]
    for incarnation in (numbers[:3], numbers[3:]):
        writer = StreamWriter(tmp_path, 0, description, part_bytes=2 * UNROLL_BYTES)
        for number in incarnation:
            writer.write(unroll(0, number), number)
        shard = writer.close()
    write_manifest(tmp_path, description, [shard])
    opened = open_stream(tmp_path)
    assert opened.description.unrolls == 5
    read = list(opened.shard(0))
    assert [number for number, _ in read] == numbers
    assert all(same(columns, unroll(0, number)) for number, columns in read)


def test_a_shard_is_summarised(tmp_path: Path) -> None:
    shard = write_shards(tmp_path)[1]
    assert (shard.index, shard.unrolls) == (1, 5)
    assert [(part.name, part.numbers, part.rows) for part in shard.parts] == [
        ("part-000000000.arrow", range(2), 2 * N),
        ("part-000000002.arrow", range(2, 4), 2 * N),
        ("part-000000004.arrow", range(4, 5), N),
    ]
    files = sorted((tmp_path / "collector-1").glob("*.arrow"))
    assert [file.name for file in files] == [part.name for part in shard.parts]
    assert shard.bytes == sum(file.stat().st_size for file in files)
    assert ShardSummary.model_validate_json(shard.model_dump_json()) == shard


def test_a_part_is_readable_without_the_others(stream: Path) -> None:
    (stream / "collector-0" / "part-000000000.arrow").unlink()
    with pa.OSFile(str(stream / "collector-0" / "part-000000002.arrow")) as file:
        batch = pa.ipc.open_file(file).get_batch(1)
    assert batch.schema == DESCRIPTION.schema
    floats, ints = (column.flatten().to_numpy().reshape(N, T, -1) for column in batch.columns)
    assert same(Columns(floats, ints), unroll(0, 3))


def test_smooth_trajectories_are_compressed(tmp_path: Path) -> None:
    description = DESCRIPTION.model_copy(update={"environments": 64, "unroll_length": 62, "collectors": 1})
    positions = np.linspace(0, 1, 64 * 62 * F, dtype=np.float32).reshape(64, 62, F).round(2)
    columns = Columns(positions, np.ones((64, 62, INT_COLUMNS), np.int32))
    writer = StreamWriter(tmp_path, 0, description)
    for number in range(5):
        writer.write(columns, number)
    assert writer.close().bytes < 5 * (columns.floats.nbytes + columns.ints.nbytes) / 3


@pytest.mark.parametrize("where", np.linspace(0, 1, 9))
def test_any_flipped_byte_is_found(stream: Path, where: float) -> None:
    path = stream / "collector-1" / "part-000000002.arrow"
    data = bytearray(path.read_bytes())
    data[round(where * (len(data) - 1))] ^= 1
    path.write_bytes(data)
    assert f"{path}: damaged" in refused(stream)


def test_a_truncated_part_is_found(stream: Path) -> None:
    path = stream / "collector-1" / "part-000000002.arrow"
    size = path.stat().st_size
    path.write_bytes(path.read_bytes()[:-1])
    assert f"{path}: {size - 1} bytes, the manifest says {size}" in refused(stream)


def test_a_missing_part_is_found(stream: Path) -> None:
    path = stream / "collector-0" / "part-000000004.arrow"
    path.unlink()
    assert f"{path}: missing" in refused(stream)


def test_a_part_that_cannot_be_read_is_named(stream: Path) -> None:
    path = stream / "collector-0" / "part-000000004.arrow"
    path.unlink()
    path.mkdir()
    size = path.stat().st_size
    edit(stream, lambda manifest: manifest["shards"][0]["parts"][2].update(bytes=size))
    assert f"{path}: cannot be read (Is a directory)" in refused(stream)


def test_swapped_parts_are_found(stream: Path) -> None:
    one, other = stream / "collector-0" / "part-000000000.arrow", stream / "collector-1" / "part-000000000.arrow"
    one.rename(stream / "aside")
    other.rename(one)
    (stream / "aside").rename(other)
    assert str(one) in refused(stream)


def test_a_folder_without_a_manifest_is_refused(stream: Path) -> None:
    (stream / "manifest.json").unlink()
    assert f"{stream / 'manifest.json'}: missing, so the run did not finish recording" in refused(stream)
    assert f"{stream / 'elsewhere'}: no such folder" in refused(stream / "elsewhere")


def test_a_crash_leaves_no_stream(tmp_path: Path) -> None:
    writer = StreamWriter(tmp_path, 0, DESCRIPTION, part_bytes=2 * UNROLL_BYTES)
    for number in range(3):
        writer.write(unroll(0, number), number)
    del writer
    names = sorted(path.name for path in (tmp_path / "collector-0").glob("part-*"))
    assert names == ["part-000000000.arrow", "part-000000002.arrow.partial"]
    assert "did not finish recording" in refused(tmp_path)


def test_an_unfinished_part_does_not_count_as_finished(stream: Path) -> None:
    path = stream / "collector-0" / "part-000000004.arrow"
    path.rename(path.with_name(path.name + ".partial"))
    assert f"{path}: missing" in refused(stream)


def test_another_version_is_refused(stream: Path) -> None:
    edit(stream, lambda manifest: manifest.update(format_version=4, of_the_future=True))
    assert "manifest.json: format version 4, this Fathom reads 2 and 3" in refused(stream)


def test_version_1_is_refused(stream: Path) -> None:
    def rename_parts(manifest: dict[str, Any]) -> None:
        manifest["format_version"] = 1
        for number, part in enumerate(manifest["shards"][0]["parts"]):
            part["name"] = f"part-{number:05d}.arrow"
            del part["first"]

    edit(stream, rename_parts)
    assert "manifest.json: format version 1, this Fathom reads 2 and 3; use the Fathom that recorded" in refused(stream)


def test_a_recording_of_version_2_is_read_without_ends(stream: Path, tmp_path: Path) -> None:
    opened = open_stream(downgrade(stream, tmp_path / "old"))
    assert opened.description == DESCRIPTION.model_copy(update={"goal_size": 0})
    assert (opened.description.has_ends, DESCRIPTION.has_ends) == (False, True)
    for index in range(2):
        read = list(opened.shard(index))
        assert [number for number, _ in read] == list(range(5))
        for number, columns in read:
            floats, ints = unroll(index, number)
            assert same(columns, Columns(floats[..., :6], ints[..., :3]))
    opened.check_fits(DESCRIPTION)  # of this version, in whose goals nothing differs
    with pytest.raises(ConfigError) as caught:
        opened.check_fits(DESCRIPTION.model_copy(update={"state_size": 5, "unrolls": 6}))
    assert [line.split(":")[0] for line in str(caught.value).splitlines()] == ["state_size", "budget.env_steps"]


@pytest.mark.parametrize("text", ["", "{", "[]", '{"a": 1}', "\x00\xff"])
def test_files_that_are_no_manifest_are_refused(stream: Path, text: str) -> None:
    (stream / "manifest.json").write_bytes(text.encode("latin-1"))
    assert "manifest.json: not a stream's manifest" in refused(stream)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda m: m["description"].update(unrolls=6), "collector-0 has 5 unrolls, 6 were expected"),
        (lambda m: m["description"].update(environments=4), "part-000000000.arrow has 6 rows, 8 were expected"),
        (lambda m: m["description"].update(collectors=3), "of 3 collectors"),
        (lambda m: m["shards"].pop(), "of 2 collectors"),
        (lambda m: m["shards"][1]["parts"].pop(), "collector-1 has 4 unrolls, 5 were expected"),
        (lambda m: m["shards"][1]["parts"].reverse(), "has part-000000002.arrow where unroll 5 or a later one was"),
        (
            lambda m: m["shards"][1]["parts"][1].update(first=3),
            "part-000000002.arrow, part-000000003.arrow was expected",
        ),
        (lambda m: m["shards"][1]["parts"][0].update(unrolls=3, rows=3 * N), "part-000000002.arrow where unroll 3 or"),
        (lambda m: m["shards"][1]["parts"][0].update(name="../x"), "collector-1 has ../x"),
        (
            lambda m: m["shards"][1]["parts"][0].update(rows=5),
            "collector-1/part-000000000.arrow has 5 rows, 6 were expected",
        ),
        (lambda m: m["description"].update(state_size=5), "part-000000000.arrow: other rows or unrolls"),
        (lambda m: m["description"].update(goal_size=0), "goal_size 0 in format version 3"),
        (lambda m: m["description"].pop("goal_size"), "goal_size 0 in format version 3"),
        (lambda m: m.update(format_version=2), "description: Value error, goal_size 2 in format version 2"),
        (lambda m: m["description"].pop("env"), "description.env: Field required"),
        (lambda m: m["description"].update(extra=1), "description.extra"),
    ],
)
def test_a_contradictory_manifest_is_refused(
    stream: Path, change: Callable[[dict[str, Any]], object], named: str
) -> None:
    edit(stream, change)
    assert named in refused(stream)


def test_unrolls_that_the_manifest_leaves_out_are_found(stream: Path) -> None:
    def leave_out(manifest: dict[str, Any]) -> None:
        manifest["description"]["unrolls"] = 4
        manifest["shards"][0]["parts"][0].update(unrolls=1, rows=N)

    edit(stream, leave_out)
    assert "part-000000000.arrow: other rows or unrolls" in refused(stream)


def test_damage_after_opening_is_found_before_it_is_used(stream: Path) -> None:
    opened = open_stream(stream)
    path = stream / "collector-0" / "part-000000002.arrow"
    data = bytearray(path.read_bytes())
    data[-200] ^= 1
    path.write_bytes(data)
    read: list[tuple[int, Columns]] = []
    with pytest.raises(ConfigError, match=r"part-000000002\.arrow: changed since the stream was opened"):
        read.extend(opened.shard(0))
    shard = opened.shard(0)
    assert all(same(next(shard)[1], unroll(0, number)) for number in range(2))


@pytest.mark.parametrize(
    ("field", "asked", "key"),
    [
        ("env", "point_big_maze", "env"),
        ("state_size", 5, "state_size"),
        ("action_size", 3, "action_size"),
        ("goal_size", 3, "goal_size"),
        ("episode_length", 21, "env_options.episode_length"),
        ("unroll_length", 8, "collector.unroll_length"),
        ("environments", 4, "collector.environments"),
        ("collectors", 1, "collector.actors"),
    ],
)
def test_a_difference_is_named_with_both_values(stream: Path, field: str, asked: Any, key: str) -> None:
    wanted = DESCRIPTION.model_copy(update={field: asked})
    with pytest.raises(ConfigError) as caught:
        open_stream(stream).check_fits(wanted)
    held = getattr(DESCRIPTION, field)
    assert str(caught.value).startswith(f"{key}: {asked} is asked for, the stream {stream} was recorded with {held}; ")
    assert "\n" not in str(caught.value)


def test_a_stream_of_other_physics_is_refused(stream: Path) -> None:
    wanted = DESCRIPTION.model_copy(update={"env_options": EnvOptions(backend="mjx", physics_dt=0.002)})
    with pytest.raises(ConfigError) as caught:
        open_stream(stream).check_fits(wanted)
    asked = "{'backend': 'mjx', 'physics_dt': 0.002}"
    assert str(caught.value) == (
        f"env_options: {asked} is asked for, the stream {stream} was recorded with {{}}; use {{}}"
    )


def test_a_stream_feeds_shorter_runs_not_longer_ones(stream: Path) -> None:
    opened = open_stream(stream)
    opened.check_fits(DESCRIPTION)
    opened.check_fits(DESCRIPTION.model_copy(update={"unrolls": 4}))
    with pytest.raises(ConfigError, match=rf"budget\.env_steps: 6 unrolls .* with 5; use at most {5 * 2 * N * T}$"):
        opened.check_fits(DESCRIPTION.model_copy(update={"unrolls": 6}))


def test_each_difference_has_a_line(stream: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        open_stream(stream).check_fits(DESCRIPTION.model_copy(update={"env": "ant", "collectors": 9}))
    assert [line.split(":")[0] for line in str(caught.value).splitlines()] == ["env", "collector.actors"]


def test_an_experiment_describes_its_stream() -> None:
    experiment = parse_experiment(
        {
            "env": "point_u_maze",
            "env_options": {"episode_length": 20},
            "collector": {"actors": 2, "environments": 3, "unroll_length": 4},
            "algorithm": {"batch_size": 8, "windows_per_update": 2, "minibatches_per_update": 2},
            "budget": {"env_steps": 24_000},
        }
    )
    spec = make_envs(experiment).training.spec
    described = describe(experiment, make_plan(experiment, spec), spec)
    assert described == DESCRIPTION.model_copy(update={"unrolls": 1000})


@pytest.mark.parametrize(
    ("columns", "named"),
    [
        (Columns(np.zeros((N, T, F)), np.zeros((N, T, 4), np.int32)), "floats: float32 .* not float64"),
        (Columns(np.zeros((N, T, F), np.float32), np.zeros((N, T, 4))), "ints: int32 .* not float64"),
        (Columns(np.zeros((N, T, F + 1), np.float32), np.zeros((N, T, 4), np.int32)), r"floats: .* \[3, 4, 9\]"),
        (Columns(np.zeros((T, N, F), np.float32), np.zeros((T, N, 4), np.int32)), r"floats: .* \[4, 3, 8\]"),
    ],
)
def test_other_shapes_and_types_are_refused(tmp_path: Path, columns: Columns, named: str) -> None:
    writer = StreamWriter(tmp_path, 0, DESCRIPTION)
    with pytest.raises(ValueError, match=named):
        writer.write(columns, 0)
    writer.write(unroll(0, 0), 0)  # the writer accepts unrolls after a refused unroll
    assert writer.close().unrolls == 1


def test_arrays_may_be_reused_and_need_not_be_contiguous(tmp_path: Path) -> None:
    description = DESCRIPTION.model_copy(update={"collectors": 1, "unrolls": 2})
    writer = StreamWriter(tmp_path, 0, description)
    time_major = Columns(*(np.swapaxes(column, 0, 1).copy() for column in unroll(0, 0)))
    reused = Columns(*(np.swapaxes(column, 0, 1) for column in time_major))
    writer.write(reused, 0)
    for column, other in zip(reused, unroll(0, 1), strict=True):
        column[...] = other
    writer.write(reused, 1)
    write_manifest(tmp_path, description, [writer.close()])
    assert all(same(columns, unroll(0, number)) for number, columns in open_stream(tmp_path).shard(0))


def test_a_writer_is_closed_once(tmp_path: Path) -> None:
    writer = StreamWriter(tmp_path, 0, DESCRIPTION)
    assert writer.close() == ShardSummary(index=0, parts=())
    for use in (writer.close, writer.cut, lambda: writer.write(unroll(0, 0), 0)):
        with pytest.raises(ValueError, match="closed"):
            use()


def test_a_manifest_needs_complete_shards(tmp_path: Path) -> None:
    shards = write_shards(tmp_path)
    with pytest.raises(ValueError, match=r"shards \[0\] of 2 collectors"):
        write_manifest(tmp_path, DESCRIPTION, shards[:1])
    with pytest.raises(ValueError, match="collector-0 has 5 unrolls, 7 were expected"):
        write_manifest(tmp_path, DESCRIPTION.model_copy(update={"unrolls": 7}), shards)
    assert not (tmp_path / "manifest.json").exists()
    write_manifest(tmp_path, DESCRIPTION, shards[::-1])
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    assert manifest["versions"]["pyarrow"] == pa.__version__
    assert open_stream(tmp_path).description.unrolls == 5


FULL_DISK = """
import errno, os, resource, sys
from pathlib import Path
import numpy as np
from shared.replay.codec import Columns
from shared.stream.format import StreamDescription
from shared.stream.write import StreamWriter, write_manifest

description = StreamDescription(
    env="e",
    state_size=4,
    action_size=2,
    goal_size=2,
    episode_length=20,
    unroll_length=62,
    environments=16,
    collectors=1,
    unrolls=3,
)
floats = np.random.default_rng(0).integers(2**32, size=(16, 62, 8), dtype=np.uint32).view(np.float32)
columns = Columns(floats, np.zeros((16, 62, 4), np.int32))

def fill(limit):
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

def until_full(directory, during):
    written = 0
    directory.mkdir()
    (directory / "description.json").write_text(description.model_dump_json())
    writer = StreamWriter(directory, 0, description, part_bytes=3 * (floats.nbytes + columns.ints.nbytes))

    def write(unrolls, columns=columns):
        nonlocal written
        for _ in range(unrolls):
            writer.write(columns, written)
            written += 1

    write(3)
    try:
        if during == "unroll":
            fill(2 * floats.nbytes)
            write(3)
        elif during == "index":
            fill(4000)
            while True:  # many small parts
                write(1, Columns(np.zeros_like(floats), columns.ints))
                writer.cut()
        elif during == "footer":
            write(1)
            fill((directory / "collector-0" / "part-000000003.arrow.partial").stat().st_size)
            writer.close()
        elif during == "manifest":
            shard = writer.close()
            fill(60)
            write_manifest(directory, description, [shard])
    except OSError as error:
        print(errno.errorcode[error.errno], end=" ")
    try:
        writer.close()
    except ValueError:
        print("spent", written, flush=True)

for during in sys.argv[2:]:  # one process each, because the limit stays until the process ends
    if os.fork() == 0:
        until_full(Path(sys.argv[1]) / during, during)
        os._exit(0)
    assert os.wait()[1] == 0
"""
MOMENTS = ("unroll", "footer", "index", "manifest")


@pytest.fixture(scope="module")
def full_disks(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, list[str]]]:
    """Returns a folder with a stream for each of `MOMENTS`, and the writers' output when the disk was full."""
    folder = tmp_path_factory.mktemp("full")
    command = [sys.executable, "-c", FULL_DISK, str(folder), *MOMENTS]
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert (ran.returncode, ran.stderr) == (0, "")
    lines = [line.split() for line in ran.stdout.splitlines()]
    return folder, dict(zip(MOMENTS, lines, strict=True))


@pytest.mark.processes
@pytest.mark.parametrize("during", MOMENTS)
def test_a_full_disk_raises_and_loses_no_whole_unroll(
    full_disks: tuple[Path, dict[str, list[str]]], during: str
) -> None:
    directory, (error, spent, written) = full_disks[0] / during, full_disks[1][during]
    assert (error, spent) == ("EFBIG", "spent")
    assert "did not finish recording" in refused(directory)
    description = StreamDescription.model_validate_json((directory / "description.json").read_text())
    shard = StreamWriter(directory, 0, description).close()
    assert shard.parts[0].unrolls == 3
    assert [number for number, _ in read_shard(directory / "collector-0", description)] == list(range(int(written)))


def test_bytes_of_a_stream_are_calculated() -> None:
    assert 105e9 <= bytes_of_stream(10**8, row_floats=268 + 17 + 3) <= 125e9
    steps = 2 * 5 * N * T
    assert bytes_of_stream(steps, row_floats=F) == 2 * 5 * UNROLL_BYTES
    assert PART_BYTES == 64 * 2**20
