"""Ports, parents and the ends of the server process."""

import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from deploy.replay_server.server import PortTakenError, ReplayServer, ReplayServerError, TableSpec
from shared.replay.info import server_info

TABLE = TableSpec("run/learner", 10, min_size_to_sample=1)


def test_two_servers_do_not_meet(start_server: Callable[..., Any]) -> None:
    first, first_address = start_server(TABLE)
    _, second_address = start_server(TableSpec("other/learner", 10, min_size_to_sample=1))
    assert first_address != second_address
    assert set(server_info(first_address).tables) == {"run/learner"}
    assert set(server_info(second_address).tables) == {"other/learner"}
    port = int(first_address.rpartition(":")[2])
    with pytest.raises(PortTakenError, match=f"port {port} is taken by another replay server"):
        start_server(TABLE, port=port)
    # Without our lock (another user's server, say) the bind must find it.
    first._port_lock.release()
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


def test_stop_and_start_again_on_the_same_port(start_server: Callable[..., Any]) -> None:
    server, address = start_server(TABLE)
    before = server_info(address).tables_state_id
    server.stop()
    server.stop()
    assert not server.alive()
    assert "exited with status 0" in server.exit_reason()
    assert server.start([TABLE], int(address.rpartition(":")[2])) == address
    assert server_info(address).tables_state_id != before
    with pytest.raises(ReplayServerError, match="already started"):
        server.start([TABLE])


def test_server_goes_with_its_parent(reverb_python: Path, tmp_path: Path) -> None:
    script = f"""
import time
from collections.abc import Callable
from pathlib import Path
from deploy.replay_server.server import ReplayServer, TableSpec
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
    deadline = time.monotonic() + 5
    while is_running(child) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not is_running(child)


def is_running(pid: int) -> bool:
    """Neither gone nor a zombie that nobody reaps (containers without an init)."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return stat.rpartition(")")[2].split()[0] != "Z"


def test_failed_start_quotes_the_log(tmp_path: Path) -> None:
    server = ReplayServer(Path(sys.executable), tmp_path / "log")  # has no reverb
    with pytest.raises(ReplayServerError, match="did not start: ModuleNotFoundError: No module named 'reverb'"):
        server.start([TABLE])
    talkative = tmp_path / "python"
    talkative.write_text("#!/bin/sh\necho out of luck >&2\nexit 3\n")
    talkative.chmod(0o755)
    server = ReplayServer(talkative, tmp_path / "log")
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
