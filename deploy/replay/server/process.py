"""The process of the Reverb server, a child with a Python of its own: started, watched and ended."""

import contextlib
import json
import math
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import filelock

from deploy.scheduling.reaper import end_child
from shared.replay.errors import ReplayError, ReplayMismatch
from shared.replay.info import TableInfo, check_tables, server_info

SERVE = Path(__file__).with_name("serve.py")
PORT_TRIES = 5
LOG_TAIL_CHARS = 600
STOP_WAIT_S = 3.0
# Limits of Reverb's own `MinSize`, for a table that only its minimum size limits.
NO_RATIO = {"samples_per_insert": 1.0, "min_diff": -sys.float_info.max, "max_diff": sys.float_info.max}


class ReplayServerError(ReplayError):
    """The replay server could not be started; the message says why and quotes its log."""


class PortTakenError(ReplayServerError):
    """Another program uses the port."""


@dataclass(frozen=True)
class TableSpec:
    """A table to serve, with sizes in windows. Without `samples_per_insert`, only `min_size_to_sample` limits it.

    The limiter keeps `(inserted - min_size_to_sample) * samples_per_insert - sampled` within `error_buffer` of zero.
    A server that replaces another one continues its counts: `inserted` and `sampled` are the counts so far, and
    `refilled` windows of those inserted will be inserted again first.

    Raises `ValueError` unless error_buffer <= samples_per_insert * min_size_to_sample and
    min_size_to_sample <= max_size: beyond these, samples overtake inserts, or sampling never starts.
    """

    name: str
    max_size: int
    min_size_to_sample: int
    samples_per_insert: float | None = None
    error_buffer: float | None = None
    inserted: int = 0
    sampled: int = 0
    refilled: int = 0

    def __post_init__(self) -> None:
        if not 1 <= self.min_size_to_sample <= self.max_size:
            raise ValueError(
                f"min_size_to_sample: {self.min_size_to_sample} is not within 1..max_size ({self.max_size})"
            )
        if (self.samples_per_insert is None) != (self.error_buffer is None):
            raise ValueError("error_buffer: give it with samples_per_insert, and only then")
        if self.samples_per_insert is not None and self.error_buffer is not None:
            if self.samples_per_insert <= 0:
                raise ValueError(f"samples_per_insert: {self.samples_per_insert} is not positive")
            least, most = max(1.0, self.samples_per_insert), self.samples_per_insert * self.min_size_to_sample
            if not least <= self.error_buffer <= most:
                raise ValueError(f"error_buffer: {self.error_buffer} is not within {least:g}..{most:g}")

    def as_served(self) -> dict[str, Any]:
        """Returns the table as `serve.py` makes it, with limits on the counts of the new server alone.

        Sampling starts when the refill is complete, or before that when the limiter would block the refill: samples
        that were lost on their way are still due.
        """
        least, limits = min(max(self.refilled, self.min_size_to_sample - self.inserted), self.max_size), NO_RATIO
        if self.samples_per_insert is not None and self.error_buffer is not None:
            ratio = self.samples_per_insert
            middle = (self.min_size_to_sample - self.inserted) * ratio + self.sampled
            most = max(middle + self.error_buffer, ratio)  # one window always fits
            least = min(least, int(most / ratio))
            limits = {"samples_per_insert": ratio, "min_diff": middle - self.error_buffer, "max_diff": most}
        return {"name": self.name, "max_size": self.max_size, "min_size_to_sample": max(least, 1), **limits}


class ReplayServer:
    """A Reverb server on this machine, which can be stopped and started again.

    The server ends with this process, because its standard input is a pipe from here. It has a session of its own, so
    that Ctrl-C reaches only this process, which then ends the server in order.
    """

    def __init__(self, python: Path, log_path: Path, host: str = "127.0.0.1", start_timeout_s: float = 60.0) -> None:
        """Prepares a server whose standard error is appended to `log_path`.

        `python`: see `provision.reverb_python`. `host`: the address of this machine that clients use; the server
        listens on every interface.
        """
        self._python = python
        self._log_path = log_path
        self._host = host
        self._start_timeout_s = start_timeout_s
        self._child: subprocess.Popen[bytes] | None = None
        self._port_lock: filelock.BaseFileLock | None = None
        self._exit_reason: str | None = None

    def start(self, tables: Sequence[TableSpec], port: int | None = None) -> str:
        """Starts the server on `port`, or on a random free one, and returns its address `host:port`.

        Raises `PortTakenError`, `ReplayMismatch` (another server answers there) or `ReplayServerError`.
        """
        if self._child is not None:
            raise ReplayServerError("the replay server is already started; stop it first")
        for tries_left in reversed(range(PORT_TRIES)):
            try:
                return self._start_on(port or _free_port(), tables)
            except BaseException as error:
                self.stop()
                if not isinstance(error, PortTakenError) or port is not None or tries_left == 0:
                    raise
        raise AssertionError("unreachable")

    @property
    def pid(self) -> int | None:
        return self._child.pid if self._child else None

    def alive(self) -> bool:
        return self._child is not None and self._child.poll() is None

    def exit_reason(self) -> str | None:
        """Returns why the server ended, with the end of its log; none while it runs."""
        if self._child is None:
            return self._exit_reason or "the replay server was not started"
        status = self._child.poll()
        if status is None:
            return None
        log_tail = self._log_tail() if status > 0 else ""
        return f"the replay server (pid {self._child.pid}) {_describe(status)}{log_tail}"

    def stop(self) -> None:
        """Ends and reaps the server, also a stuck one, within a bounded time. A second call does nothing."""
        child, self._child = self._child, None
        if child is not None:
            was_running = child.poll() is None
            end_child(child, STOP_WAIT_S)
            assert child.stdout is not None
            child.stdout.close()
            end = " when it was stopped" if was_running else self._log_tail()
            self._exit_reason = f"the replay server {_describe(child.returncode)}{end}"
        if self._port_lock is not None:
            self._port_lock.release()

    def _start_on(self, port: int, tables: Sequence[TableSpec]) -> str:
        deadline = time.monotonic() + self._start_timeout_s
        self._port_lock = _lock_port(port)
        self._log_path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with self._log_path.open("ab") as log:
                self._child = subprocess.Popen(
                    [str(self._python), "-I", "-u", str(SERVE)],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=log,
                    start_new_session=True,
                )
        except OSError as error:
            raise ReplayServerError(f"the replay server did not start: {error}") from error
        assert self._child.stdin is not None
        request = {"port": port, "tables": [table.as_served() for table in tables]}
        with contextlib.suppress(BrokenPipeError):  # the server ended at once; no answer will come
            self._child.stdin.write(json.dumps(request).encode() + b"\n")
            self._child.stdin.flush()
        answer = self._read_answer(deadline)
        if answer != f"READY {port}":
            if "address already in use" in answer.lower():
                raise PortTakenError(f"port {port} is taken by another program; choose another one")
            raise ReplayServerError(f"the replay server did not start: {answer}{self._log_tail()}")
        address = f"{self._host}:{port}"
        info = server_info(address, timeout_s=max(1.0, deadline - time.monotonic()))
        check_tables(info, [table.name for table in tables], address)
        if len(info.tables) != len(tables):
            raise ReplayMismatch(f"another replay server answers at {address}: it has {sorted(info.tables)}")
        for table in tables:
            _check_limits(info.tables[table.name], table.as_served(), address)
        return address

    def _read_answer(self, deadline: float) -> str:
        """Returns the line that the server prints after its start, or the reason why there is none."""
        assert self._child is not None
        assert self._child.stdout is not None
        if not select.select([self._child.stdout], [], [], max(0.0, deadline - time.monotonic()))[0]:
            return f"no answer within {self._start_timeout_s:g} s"
        line = self._child.stdout.readline()
        return line.decode(errors="replace").strip().removeprefix("ERROR ") or "it ended without an answer"

    def _log_tail(self) -> str:
        try:
            text = " ".join(self._log_path.read_bytes().decode(errors="replace").split())
        except FileNotFoundError:
            return ""
        return f"; its log ({self._log_path}) ends: {text[-LOG_TAIL_CHARS:]}" if text else ""


def _check_limits(found: TableInfo, asked: dict[str, Any], address: str) -> None:
    """Raises `ReplayMismatch` if the table at `address` differs from the table `asked` for."""
    for name, value in asked.items():
        if name != "name" and not math.isclose(getattr(found, name), value, rel_tol=1e-9):
            raise ReplayMismatch(
                f"another replay server answers at {address}: its table {found.name} has "
                f"{name} {getattr(found, name):g}, {value:g} was asked for"
            )


def _free_port() -> int:
    with socket.socket() as probing:
        probing.bind(("", 0))
        return int(probing.getsockname()[1])


def _lock_port(port: int) -> filelock.BaseFileLock:
    """Locks a port, so that no other server of this user starts there between the probe and the listening socket."""
    folder = Path(tempfile.gettempdir()) / f"fathom-ports-{os.getuid()}"
    folder.mkdir(exist_ok=True)
    lock = filelock.FileLock(folder / f"{port}.lock", is_singleton=False)
    try:
        lock.acquire(timeout=0)
    except filelock.Timeout as error:
        raise PortTakenError(f"port {port} is taken by another replay server; choose another one") from error
    return lock


def _describe(status: int) -> str:
    if status >= 0:
        return f"exited with status {status}"
    return f"was ended by {signal.Signals(-status).name}"
