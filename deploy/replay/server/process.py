"""Starts, watches and ends the Reverb server, a child process with a Python of its own."""

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

from shared.replay.errors import ReplayError, ReplayMismatch
from shared.replay.info import TableInfo, check_tables, server_info

SERVE = Path(__file__).with_name("serve.py")
PORT_TRIES = 5
LOG_TAIL_CHARS = 600
STOP_WAIT_S = 3.0
# What Reverb says of a table that is limited by its minimum size alone.
NO_RATIO = {"samples_per_insert": 1.0, "min_diff": -sys.float_info.max, "max_diff": sys.float_info.max}


class ReplayServerError(ReplayError):
    """The replay server could not be started; the message says why and quotes its log."""


class PortTakenError(ReplayServerError):
    """Something else uses the port."""


@dataclass(frozen=True)
class TableSpec:
    """One table, sizes in windows. `samples_per_insert` None: limited by `min_size_to_sample` alone.

    The limiter keeps `(inserted - min_size_to_sample) * samples_per_insert - sampled` within
    `error_buffer` of zero. A server that takes over from another counts on: `inserted` and `sampled` are
    what lies behind, `refilled` how many of the windows inserted will be put in again first, on top.

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
        if not self.name:
            raise ValueError("name: a table needs one")
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
        """The table as `serve.py` makes it; the limits are on what this server itself counts.

        Nothing is sampled before the refill is done, or until the limiter would not let it be done: what was
        sampled and lost on its way may be owed first.
        """
        table = {"name": self.name, "max_size": self.max_size}
        least = max(self.refilled, self.min_size_to_sample - self.inserted)
        if self.samples_per_insert is None or self.error_buffer is None:
            return {**table, "min_size_to_sample": max(min(least, self.max_size), 1), "samples_per_insert": None}
        ratio = self.samples_per_insert
        middle = (self.min_size_to_sample - self.inserted) * ratio + self.sampled
        most = max(middle + self.error_buffer, ratio)  # one window fits always
        return {
            **table,
            "min_size_to_sample": max(min(least, self.max_size, int(most / ratio)), 1),
            "samples_per_insert": ratio,
            "min_diff": middle - self.error_buffer,
            "max_diff": most,
        }


class ReplayServer:
    """One Reverb server at a time, on this machine.

    It outlives neither this process (its standard input is our pipe) nor `stop`. In a session of its own, so
    that Ctrl-C in the terminal reaches us and we end it in our order.
    """

    def __init__(self, python: Path, log_path: Path, host: str = "127.0.0.1", start_timeout_s: float = 60.0) -> None:
        """`python`: see `provision.reverb_python`. `log_path`: the server's standard error is appended there.
        `host`: this machine's address as the clients know it; the server listens on every interface.
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
            except PortTakenError:
                self.stop()
                if port is not None or tries_left == 0:
                    raise
            except BaseException:
                self.stop()
                raise
        raise AssertionError("unreachable")

    @property
    def pid(self) -> int | None:
        return self._child.pid if self._child else None

    def alive(self) -> bool:
        return self._child is not None and self._child.poll() is None

    def exit_reason(self) -> str | None:
        """Why the server is no longer there, with the end of its log; None while it runs."""
        if self._child is not None:
            status = self._child.poll()
            if status is None:
                return None
            return (
                f"the replay server (pid {self._child.pid}) {_describe(status)}{self._log_tail() if status > 0 else ''}"
            )
        return self._exit_reason or "the replay server was not started"

    def stop(self) -> None:
        """Ends the server, a hung or stopped one too, and reaps it. Bounded; may be called twice."""
        child, self._child = self._child, None
        if child is not None:
            was_running = child.poll() is None
            assert child.stdin is not None
            assert child.stdout is not None
            with contextlib.suppress(BrokenPipeError):  # it is gone already
                child.stdin.close()
            try:
                child.wait(STOP_WAIT_S)
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait(STOP_WAIT_S)
            child.stdout.close()
            end = " when it was stopped" if was_running else self._log_tail()
            self._exit_reason = f"the replay server {_describe(child.returncode)}{end}"
        if self._port_lock is not None:
            self._port_lock.release()
            self._port_lock = None

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
        with contextlib.suppress(BrokenPipeError):  # it ended at once; the missing answer says so
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
        """The child's one line; what went wrong if none came."""
        assert self._child is not None
        assert self._child.stdout is not None
        line = b""
        while not line.endswith(b"\n"):
            ready, _, _ = select.select([self._child.stdout], [], [], max(0.0, deadline - time.monotonic()))
            if not ready:
                return f"no answer within {self._start_timeout_s:g} s"
            more = os.read(self._child.stdout.fileno(), 4096)
            if not more:
                return "it ended without an answer"
            line += more
        return line.decode(errors="replace").strip().removeprefix("ERROR ")

    def _log_tail(self) -> str:
        try:
            text = " ".join(self._log_path.read_bytes().decode(errors="replace").split())
        except FileNotFoundError:
            return ""
        return f"; its log ({self._log_path}) ends: {text[-LOG_TAIL_CHARS:]}" if text else ""


def _check_limits(found: TableInfo, asked: dict[str, Any], address: str) -> None:
    """Raises `ReplayMismatch` where the table at `address` is not as it was asked for."""
    limits = asked if asked["samples_per_insert"] is not None else asked | NO_RATIO
    for name in ("max_size", "min_size_to_sample", "samples_per_insert", "min_diff", "max_diff"):
        value = limits[name]
        if not math.isclose(getattr(found, name), value, rel_tol=1e-9):
            raise ReplayMismatch(
                f"another replay server answers at {address}: its table {found.name} has "
                f"{name} {getattr(found, name):g}, {value:g} was asked for"
            )


def _free_port() -> int:
    with socket.socket() as probing:
        probing.bind(("", 0))
        return int(probing.getsockname()[1])


def _lock_port(port: int) -> filelock.BaseFileLock:
    """Between probing a port and listening on it another server could start there; the lock forbids it."""
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
