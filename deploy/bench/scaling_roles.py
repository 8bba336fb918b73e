"""Collectors without environments and learners without networks, each a process, for `scaling.py`.

Stands between the bench and its roles: imports once what they need, then forks them, so that 128 of them start in a
second and share the memory of what was imported. Reads a request a line from standard input, answers each with a line
of JSON. When the input closes it ends its roles and itself; when it is killed, they are, too.
"""

import ctypes
import json
import mmap
import os
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import numpy as np

from shared.replay.codec import INT_COLUMNS, Columns
from shared.replay.insert import Inserter
from shared.replay.sample import Sampler

PR_SET_PDEATHSIG = 1  # of <linux/prctl.h>
GO_POLL_S = 0.05
UNROLLS_MADE = 4  # different ones, which are sent again and again
_SEEN = np.dtype([("ready", "i8"), ("count", "i8"), ("windows", "i8"), ("bytes", "i8"), ("error", "S500")])


@dataclass(frozen=True)
class Roles:
    """What to start: `collectors` processes of `environments` environments each, and a learner for each table.

    Rows have `num_floats` float32 and 3 int32. `timeout_s` (s): of one insert or sample, while nothing moves.
    """

    address: str
    tables: tuple[str, ...]
    collectors: int
    environments: int
    unroll_length: int
    chunks_per_window: int
    num_floats: int
    windows_per_update: int
    timeout_s: float


class _Processes:
    """The roles that run, and the memory in which each says how far it is."""

    def __init__(self) -> None:
        self._pids: list[int] = []
        self._seen: np.ndarray = np.zeros(0, _SEEN)
        self._go: np.ndarray = np.zeros(1, np.int64)

    def start(self, roles: Roles) -> dict[str, Any]:
        """Forks every role; each connects, says so, and waits for `go`."""
        works: list[Callable[[Any, Callable[[], None]], None]] = [
            *(partial(_collect, roles, index) for index in range(roles.collectors)),
            *(partial(_learn, roles, table) for table in roles.tables),
        ]
        shared = mmap.mmap(-1, 8 + len(works) * _SEEN.itemsize)  # anonymous: seen by whoever is forked
        self._go = np.frombuffer(shared, np.int64, 1)
        self._seen = np.frombuffer(shared, _SEEN, len(works), offset=8)
        for work, seen in zip(works, self._seen, strict=True):
            self._pids.append(_fork(partial(work, seen, self._wait_for_go), seen))
        return {"pids": self._pids}

    def go(self) -> dict[str, Any]:
        self._go[0] = 1
        return {}

    def state(self) -> dict[str, Any]:
        """`error`: the first role's that failed or died. `bytes`: of the learners' decoded windows."""
        errors = [bytes(error).decode(errors="replace") for error in self._seen["error"] if error]
        dead = [pid for pid in self._pids if os.waitpid(pid, os.WNOHANG)[0]]
        self._pids = [pid for pid in self._pids if pid not in dead]  # a reaped one's number may become another's
        if dead and not errors:
            errors = [f"process {dead[0]} died"]
        return {
            "ready": int(np.sum(self._seen["ready"])),
            "counts": self._seen["count"].tolist(),
            "windows": int(np.sum(self._seen["windows"])),
            "bytes": int(np.sum(self._seen["bytes"])),
            "error": errors[0] if errors else "",
        }

    def end(self) -> None:
        """Kills and reaps them all: they hold nothing that is worth an orderly end."""
        for pid in self._pids:
            os.kill(pid, signal.SIGKILL)
        for pid in self._pids:
            os.waitpid(pid, 0)

    def _wait_for_go(self) -> None:
        while not self._go[0]:
            time.sleep(GO_POLL_S)


def ask(do: str, roles: Roles | None = None) -> bytes:
    """A request as a line: `start` (with `roles`, once), `go` or `state`."""
    return json.dumps({"do": do, "roles": asdict(roles) if roles else None}).encode() + b"\n"


def main() -> None:
    _die_with_parent()
    processes = _Processes()
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    try:
        print("{}", file=answers, flush=True)  # ready
        while line := sys.stdin.readline():
            request = json.loads(line)
            if request["do"] == "start":
                answer = processes.start(Roles(**request["roles"]))
            else:
                answer = processes.go() if request["do"] == "go" else processes.state()
            print(json.dumps(answer), file=answers, flush=True)
    finally:
        processes.end()


def _fork(work: Callable[[], None], seen: Any) -> int:
    """The number of a new process that does `work`. gRPC allows forks until the first channel is made."""
    parent = os.getpid()
    pid = os.fork()
    if pid:
        return pid
    try:
        _die_with_parent()
        if os.getppid() == parent:  # it could have died before we asked to be told
            work()
    except BaseException as error:  # noqa: BLE001 - whatever ended the role must reach the bench
        seen["error"] = " ".join(f"{type(error).__name__}: {error}".split()).encode()[:500]
        time.sleep(60.0)  # until it is killed; an end would be noticed twice
    finally:
        os._exit(1)


def _die_with_parent() -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def _collect(roles: Roles, index: int, seen: Any, wait_for_go: Callable[[], None]) -> None:
    """Inserts without end. The rows are random and made once: an environment would cost what is not measured here."""
    rng = np.random.default_rng(index)
    shape = (roles.environments, roles.unroll_length)
    made = [rng.standard_normal((*shape, roles.num_floats), dtype=np.float32) for _ in range(UNROLLS_MADE)]
    ints = np.zeros((*shape, INT_COLUMNS), np.int32)
    inserter = Inserter(
        roles.address,
        roles.tables,
        roles.chunks_per_window,
        roles.environments,
        source=index,
        timeout_s=roles.timeout_s,
    )
    seen["ready"] = 1
    wait_for_go()
    steps = np.arange(roles.unroll_length)
    number = 0
    while True:
        ints[..., 1] = steps + number * roles.unroll_length
        inserter.insert(Columns(made[number % UNROLLS_MADE], ints), number)
        number += 1
        seen["count"] = number


def _learn(roles: Roles, table: str, seen: Any, wait_for_go: Callable[[], None]) -> None:
    """Samples without end, and throws away what was decoded."""

    def count(columns: Columns) -> None:
        seen["windows"] += len(columns.floats)
        seen["bytes"] += columns.floats.nbytes + columns.ints.nbytes

    rows = roles.chunks_per_window * roles.unroll_length
    sampler = Sampler(
        roles.address, table, roles.windows_per_update, rows, roles.num_floats, count, timeout_s=roles.timeout_s
    )
    seen["ready"] = 1
    wait_for_go()
    while True:
        sampler.sample()
        seen["count"] += 1


if __name__ == "__main__":
    main()
