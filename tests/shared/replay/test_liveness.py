"""Named errors of clients, within seconds, when their server dies, hangs or is replaced."""

import contextlib
import os
import signal
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from deploy.replay.server.process import TableSpec
from shared.replay.codec import INT_COLUMNS, Columns
from shared.replay.errors import ReplayMismatch, ReplayTimeout, ReplayUnavailable
from shared.replay.info import ReplayMonitor
from shared.replay.insert import Inserter
from shared.replay.sample import Sampler

UNROLL = Columns(np.zeros((2, 4, 3), np.float32), np.zeros((2, 4, INT_COLUMNS), np.int32))
TABLE = TableSpec("run/learner", 100, min_size_to_sample=1)


def repeat(call: Callable[[], object]) -> None:
    """Repeats `call` until it raises, for ten seconds at most."""
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        call()


def test_killed_server_ends_insert_and_sample(start_server: Callable[..., Any]) -> None:
    server, address = start_server(TABLE)
    inserter = Inserter(address, [TABLE.name], 1, 2, timeout_s=30)
    inserter.insert(UNROLL)
    sampler = Sampler(address, TABLE.name, 2, 4, 3, lambda _: None, timeout_s=30)
    sampler.sample()
    monitor = ReplayMonitor(address, [TABLE.name])
    monitor.poll()
    os.kill(server.pid, signal.SIGKILL)
    killed = time.monotonic()
    with pytest.raises(ReplayUnavailable):
        repeat(lambda: inserter.insert(UNROLL))
    with pytest.raises(ReplayUnavailable):
        repeat(sampler.sample)
    assert monitor.poll() is None
    with pytest.raises(ReplayUnavailable, match="missed 2 polls"):
        monitor.poll()
    assert time.monotonic() - killed < 3
    inserter.close()
    sampler.close()
    while server.alive():  # the connections close before the process has freed its memory and ended
        assert time.monotonic() - killed < 10
        time.sleep(0.05)
    assert "SIGKILL" in server.exit_reason()

    # The next server has the same port and the same tables. The monitor must notice that it is another server.
    server.stop()
    port = int(address.rpartition(":")[2])
    server.start([TABLE], port)

    def poll() -> None:
        with contextlib.suppress(ReplayUnavailable):  # gRPC needs a moment to reconnect
            monitor.poll()
        time.sleep(0.1)

    with pytest.raises(ReplayMismatch, match="made anew"):
        repeat(poll)
    monitor.close()
    for client in (lambda: Inserter(address, ["x"], 1, 2), lambda: ReplayMonitor(address, ["x"]).poll()):
        with pytest.raises(ReplayMismatch, match="lacks x"):
            client()


def test_stopped_server_is_unresponsive(start_server: Callable[..., Any]) -> None:
    server, address = start_server(TABLE)
    inserter = Inserter(address, [TABLE.name], 1, 2, timeout_s=1.0)
    inserter.insert(UNROLL)
    sampler = Sampler(address, TABLE.name, 2, 4, 3, lambda _: None, timeout_s=1.0)
    sampler.sample()
    monitor = ReplayMonitor(address, [TABLE.name], timeout_s=0.5)
    assert monitor.poll().tables[TABLE.name].size == 2
    os.kill(server.pid, signal.SIGSTOP)
    os.waitid(os.P_PID, server.pid, os.WSTOPPED)  # the server's last thread stops milliseconds after the signal
    started = time.monotonic()
    assert monitor.poll() is None
    with pytest.raises(ReplayUnavailable, match="missed 2 polls"):
        monitor.poll()
    assert time.monotonic() - started < 2
    with pytest.raises(ReplayTimeout):
        repeat(lambda: inserter.insert(UNROLL))
    with pytest.raises(ReplayTimeout):
        repeat(sampler.sample)
    started = time.monotonic()
    inserter.close()
    sampler.close()
    monitor.close()
    assert time.monotonic() - started < 2
    started = time.monotonic()
    server.stop()  # a stopped process does not notice that its standard input is closed
    assert time.monotonic() - started < 6
    assert "SIGKILL" in server.exit_reason()
