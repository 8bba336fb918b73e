"""The process of the replay server: ports, limits of tables, and end."""

import json
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from deploy.replay.server.process import PortTakenError, ReplayServer, ReplayServerError, TableSpec, _check_limits
from shared.replay.codec import Columns
from shared.replay.errors import ReplayMismatch
from shared.replay.info import server_info
from shared.replay.insert import Inserter
from shared.replay.sample import Sampler
from tests.shared.replay.cases import wait_until

TABLE = TableSpec("run/learner", 10, min_size_to_sample=1)
LIMITED = TableSpec("run/limited", 40, min_size_to_sample=10, samples_per_insert=2.0, error_buffer=16.0)
LIMITS = ("samples_per_insert", "min_size_to_sample", "min_diff", "max_diff")
FREE = replace(LIMITED, name="run/free", samples_per_insert=None, error_buffer=None)
REFILLED = replace(LIMITED, name="run/refilled", inserted=25, sampled=30, refilled=12)
OTHER = TableSpec("other/learner", 10, min_size_to_sample=1)

Served = tuple[ReplayServer, str]  # and its address


def serve(reverb_python: Path, folder: Path, *tables: TableSpec) -> Iterator[Served]:
    server = ReplayServer(reverb_python, folder / "server.log")
    yield server, server.start(tables)
    server.stop()


@pytest.fixture(scope="module")
def shared_server(reverb_python: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """Starts a server that no test stops."""
    yield from serve(reverb_python, tmp_path_factory.mktemp("shared_server"), TABLE, LIMITED, FREE, REFILLED)


@pytest.fixture(scope="module")
def other(reverb_python: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """Starts another server, with a table of another name. A test that stops it starts it again."""
    yield from serve(reverb_python, tmp_path_factory.mktemp("other"), OTHER)


def test_two_servers_never_share_a_port(shared_server: Served, other: Served, start_server: Callable[..., Any]) -> None:
    (first, first_address), (_, second_address) = shared_server, other
    assert first_address != second_address
    assert set(server_info(first_address).tables) == {TABLE.name, LIMITED.name, FREE.name, REFILLED.name}
    assert set(server_info(second_address).tables) == {OTHER.name}
    port = int(first_address.rpartition(":")[2])
    with pytest.raises(PortTakenError, match=f"port {port} is taken by another replay server"):
        start_server(TABLE, port=port)
    # A server of another user holds no lock that this process sees. Binding the port must fail, too.
    first._port_lock.release()  # type: ignore[union-attr]
    with pytest.raises(PortTakenError, match=f"port {port} is taken"):
        start_server(TABLE, port=port)
    assert first.alive()
    assert first.exit_reason() is None


def test_port_of_another_program_is_refused(start_server: Callable[..., Any]) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(PortTakenError, match=f"port {port} is taken"):
            start_server(TABLE, port=port)


def test_stop_and_start_again_on_the_same_port(other: Served) -> None:
    server, address = other
    before = server_info(address).tables_state_id
    server.stop()
    server.stop()
    assert not server.alive()
    assert "exited with status 0" in str(server.exit_reason())
    assert server.start([OTHER], int(address.rpartition(":")[2])) == address
    assert server_info(address).tables_state_id != before
    with pytest.raises(ReplayServerError, match="already started"):
        server.start([OTHER])


def test_server_ends_with_its_parent(reverb_python: Path, tmp_path: Path) -> None:
    script = f"""
import time
from collections.abc import Callable
from pathlib import Path
from deploy.replay.server.process import ReplayServer, TableSpec
server = ReplayServer(Path({str(reverb_python)!r}), Path({str(tmp_path / "log")!r}))
server.start([TableSpec("run/learner", 10, min_size_to_sample=1)])
print(server.pid, flush=True)
time.sleep(600)
"""
    parent = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    child = int(parent.stdout.readline())  # type: ignore[union-attr]
    assert is_running(child)
    parent.send_signal(signal.SIGKILL)
    parent.communicate()
    assert wait_until(lambda: not is_running(child), seconds=5)


def is_running(pid: int) -> bool:
    """Returns false also for a zombie that is never reaped, as in a container without an init."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return stat.rpartition(")")[2].split()[0] != "Z"


@pytest.mark.processes
def test_failed_start_quotes_the_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("deploy.replay.server.process.STOP_WAIT_S", 1.0)  # a silent server does not end by itself
    server = ReplayServer(Path(sys.executable), tmp_path / "log")  # has no reverb
    with pytest.raises(ReplayServerError, match="did not start: ModuleNotFoundError: No module named 'reverb'"):
        server.start([TABLE])
    failing = tmp_path / "python"
    failing.write_text("#!/bin/sh\necho out of luck >&2\nexit 3\n")
    failing.chmod(0o755)
    server = ReplayServer(failing, tmp_path / "log")
    with pytest.raises(ReplayServerError, match=r"ended without an answer; its log .* ends: out of luck"):
        server.start([TABLE])
    assert "exited with status 3" in server.exit_reason()  # type: ignore[operator]
    with pytest.raises(ReplayServerError, match="No such file"):
        ReplayServer(tmp_path / "nowhere", tmp_path / "log3").start([TABLE])
    silent = tmp_path / "silent"
    silent.write_text("#!/bin/sh\nexec sleep 60\n")
    silent.chmod(0o755)
    started = time.monotonic()
    with pytest.raises(ReplayServerError, match=r"no answer within 0\.5 s"):
        ReplayServer(silent, tmp_path / "log2", start_timeout_s=0.5).start([TABLE])
    assert time.monotonic() - started < 8


def test_table_specs_are_checked() -> None:
    for text, numbers in {
        "min_size_to_sample": (10, 11, None, None),
        "give it with samples_per_insert": (10, 1, 1.0, None),
        "error_buffer: 6": (10, 5, 1.0, 6.0),
        "error_buffer: 0.5": (10, 5, 1.0, 0.5),
        "samples_per_insert: 0": (10, 5, 0.0, 1.0),
    }.items():
        with pytest.raises(ValueError, match=text):
            TableSpec("t", *numbers)  # type: ignore[arg-type]


def served(spec: TableSpec) -> tuple[float, ...]:
    table = spec.as_served()
    return tuple(table[name] for name in LIMITS)


def test_a_new_table_is_limited_as_by_reverb_itself(reverb_python: Path) -> None:
    script = f"""
import json, reverb
ratio = reverb.rate_limiters.SampleToInsertRatio(2.0, min_size_to_sample=10, error_buffer=16.0)
for limiter in (ratio, reverb.rate_limiters.MinSize(10)):
    print(json.dumps([getattr(limiter, "_" + name) for name in {LIMITS}]))
"""
    printed = subprocess.run([reverb_python, "-I", "-c", script], capture_output=True, check=True).stdout
    limited, free = (tuple(json.loads(line)) for line in printed.splitlines())
    assert served(LIMITED) == limited == (2.0, 10, 4.0, 36.0)
    assert served(FREE) == free


def test_a_replaced_table_continues_its_counts() -> None:
    """Checks that the limits move by the counts so far, in samples: `inserted * 2 - sampled`."""
    assert served(replace(LIMITED, inserted=25, sampled=60)) == (2.0, 1, 4.0 - 50 + 60, 36.0 - 50 + 60)
    assert served(replace(LIMITED, inserted=25, sampled=60, refilled=12)) == (2.0, 12, 14.0, 46.0)
    assert served(replace(LIMITED, inserted=4, sampled=0, refilled=3)) == (2.0, 6, -4.0, 28.0)
    # The minimum size is at most the table's size and the limiter's bound, and at least one: sampling always starts.
    assert served(replace(LIMITED, inserted=25, sampled=99, refilled=41)) == (2.0, 40, 53.0, 85.0)
    assert served(replace(LIMITED, inserted=25, sampled=30, refilled=12)) == (2.0, 8, -16.0, 16.0)
    assert served(replace(LIMITED, inserted=100, sampled=10, refilled=40)) == (2.0, 1, -186.0, 2.0)


def test_a_table_without_a_ratio_waits_for_its_refill() -> None:
    for numbers, least in {(0, 0): 10, (4, 3): 6, (100, 40): 40, (100, 41): 40, (100, 0): 1}.items():
        unlimited = (1.0, least, -sys.float_info.max, sys.float_info.max)
        assert served(replace(FREE, inserted=numbers[0], refilled=numbers[1])) == unlimited


def test_a_refill_may_exceed_the_limiter_s_bound(shared_server: Served) -> None:
    """Samples that were lost on their way are still due, so they must be drawn before the refill is complete."""
    spec, (_, address) = REFILLED, shared_server
    inserter = Inserter(address, [spec.name], 1, 1, timeout_s=20)
    rows = Columns(np.zeros((1, 2, 2), np.float32), np.zeros((1, 2, 4), np.int32))
    refill = threading.Thread(target=lambda: [inserter.insert(rows) for _ in range(12)])
    refill.start()
    assert wait_until(lambda: server_info(address).tables[spec.name].inserted == 8)
    time.sleep(0.3)
    assert server_info(address).tables[spec.name].inserted == 8
    sampler = Sampler(address, spec.name, 8, 2, 2, lambda columns: None, timeout_s=20, max_windows=8)
    sampler.sample()
    sampler.close()
    refill.join(20)
    inserter.flush(timeout_s=20)
    inserter.close()
    assert server_info(address).tables[spec.name].inserted == 12


def test_a_table_with_another_limiter_is_refused(shared_server: Served) -> None:
    """Compares specifications with the tables of a running server, which have the same names."""
    _, address = shared_server
    tables = server_info(address).tables
    for spec in (LIMITED, FREE):
        _check_limits(tables[spec.name], spec.as_served(), address)
    others = {
        "max_size 40, 41 was": replace(LIMITED, max_size=41),
        "min_size_to_sample 10, 11 was": replace(LIMITED, min_size_to_sample=11),
        "samples_per_insert 2, 3 was": replace(LIMITED, samples_per_insert=3.0),
        "min_diff 4, 5 was": replace(LIMITED, error_buffer=15.0),
        "min_diff 4, 9 was": replace(LIMITED, sampled=5),
        "samples_per_insert 2, 1 was": replace(FREE, name=LIMITED.name),
        "samples_per_insert 1, 2 was": replace(LIMITED, name=FREE.name),
    }
    for text, spec in others.items():
        with pytest.raises(ReplayMismatch, match=f"{address}: its table {spec.name} has {text} asked for"):
            _check_limits(tables[spec.name], spec.as_served(), address)
