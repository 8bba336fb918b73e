"""Collectors without environments and learners without networks, each a process, for `scaling.py`.

Stands between the bench and its roles: imports once what they need, then forks them, so that 128 of them start in a
second and share the memory of what was imported. Reads a request a line from standard input, answers each with a line
of JSON. When the input closes it ends its roles and itself; when it is killed, they are, too.
"""

import contextlib
import ctypes
import json
import mmap
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from shared.replay.codec import INT_COLUMNS, Columns
from shared.replay.errors import ReplayError
from shared.replay.insert import Inserter
from shared.replay.sample import Sampler

PR_SET_PDEATHSIG = 1  # of <linux/prctl.h>
GO_POLL_S = 0.05
START_S = 60.0  # of the parent
ANSWER_S = 20.0  # of the parent, which may have to wait for a core
END_S = 5.0
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


class Parent:
    """The process that forks the roles (`main`); in a session of its own, so that Ctrl-C is ours alone."""

    def __init__(self, folder: Path) -> None:
        with (folder / "roles.log").open("wb") as log:
            self._child = subprocess.Popen(
                [sys.executable, "-m", "deploy.bench.scaling_roles"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                start_new_session=True,
                cwd=Path(__file__).parents[2],
                env={**os.environ, "JAX_PLATFORMS": "cpu", "OPENBLAS_NUM_THREADS": "1"},
            )
        self._log = folder / "roles.log"
        self._unread = b""

    def __enter__(self) -> "Parent":
        try:
            self._answer(START_S)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        """Its input closes, and it ends its roles and itself; if it does not, it is killed, and they are with it."""
        assert self._child.stdin is not None
        assert self._child.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            self._child.stdin.close()
        try:
            self._child.wait(END_S)
        except subprocess.TimeoutExpired:
            self._child.kill()
            self._child.wait(END_S)
        self._child.stdout.close()

    def ask(self, do: str, roles: Roles | None = None) -> dict[str, Any]:
        """`start` (with `roles`, once), `go` or `state`, as `_Processes` answers.

        Raises `ReplayError`, when a role failed, too.
        """
        assert self._child.stdin is not None
        try:
            self._child.stdin.write(json.dumps({"do": do, "roles": asdict(roles) if roles else None}).encode() + b"\n")
            self._child.stdin.flush()
        except BrokenPipeError:  # the missing answer says so
            pass
        answer = self._answer(ANSWER_S)
        if answer.get("error"):
            raise ReplayError(f"a simulated role failed: {answer['error']}")
        return answer

    def _answer(self, timeout_s: float) -> dict[str, Any]:
        assert self._child.stdout is not None
        deadline = time.monotonic() + timeout_s
        while b"\n" not in self._unread:
            ready, _, _ = select.select([self._child.stdout], [], [], max(0.0, deadline - time.monotonic()))
            more = os.read(self._child.stdout.fileno(), 65536) if ready else b""
            if not more:
                text = " ".join(self._log.read_bytes().decode(errors="replace").split())[-500:]
                raise ReplayError(f"the simulated roles' process {'ended' if ready else 'did not answer'}: {text}")
            self._unread += more
        line, _, self._unread = self._unread.partition(b"\n")
        return json.loads(line)


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
