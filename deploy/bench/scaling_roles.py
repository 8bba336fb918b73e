"""Simulated collectors without environments and learners without networks, each in a process, for `scaling.py`.

`main` is the parent process of all roles. It imports what they need and forks them, so that 128 roles start in a
second and share the imported memory. When its standard input closes it ends all roles and itself. If the parent is
killed, the benchmark stops the replay server, without which the roles end.
"""

import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import count
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from deploy.scheduling.packages import module_command
from shared.plan import Plan
from shared.replay.codec import INT_COLUMNS, Columns
from shared.replay.errors import ReplayError, ReplayTimeout
from shared.replay.insert import Inserter
from shared.replay.sample import Sampler

START_S = 120.0  # until all roles are connected
WARM_S = 90.0  # from then until every learner has had a batch
END_S = 5.0
POLL_S = 0.25
NUM_UNROLLS = 4  # different ones, sent again and again
PROGRESS = np.dtype([("pid", "i8"), ("windows", "i8"), ("bytes", "i8")])


@dataclass(frozen=True)
class Setting:
    """Sizes of one simulation. `environments`: of each collector; rows have `num_floats` float32 and 4 int32."""

    collectors: int
    learners: int
    environments: int
    num_floats: int
    plan: Plan

    @property
    def row_bytes(self) -> int:
        return 4 * (self.num_floats + INT_COLUMNS)

    @property
    def window_bytes(self) -> int:
        return self.plan.window_rows * self.row_bytes

    @property
    def tables(self) -> tuple[str, ...]:
        """Names of the tables, one for each learner."""
        return tuple(f"scaling/{number}" for number in range(self.learners))


class SimulatedRoles:
    """Processes of all roles and their parent, in a session of their own, so that Ctrl-C does not reach them.

    `progress`: a `PROGRESS` record for each role, collectors first, which the roles write. `pid`: 0 until the role is
    connected. `windows` and `bytes`: decoded by a learner so far.
    """

    def __init__(self, setting: Setting, address: str, folder: Path) -> None:
        self.setting, self.address = setting, address
        self.progress = np.memmap(folder / "progress", PROGRESS, "w+", shape=(setting.collectors + setting.learners,))
        (folder / "setting").write_bytes(pickle.dumps((setting, address)))
        self._log = folder / "roles.log"
        command = module_command("deploy.bench.scaling_roles", str(folder))
        environ = os.environ | {"JAX_PLATFORMS": "cpu", "OPENBLAS_NUM_THREADS": "1"}
        with self._log.open("wb") as log:
            pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": log, "stderr": log}
            self._parent = subprocess.Popen(command, **pipes, start_new_session=True, env=environ)

    def __enter__(self) -> "SimulatedRoles":
        return self

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        """Ends all processes. Raises ReplayError in place of a psutil error, if the failure of a role caused it."""
        assert self._parent.stdin is not None
        self._parent.stdin.close()
        try:
            self._parent.wait(END_S)
        except subprocess.TimeoutExpired:
            os.killpg(self._parent.pid, signal.SIGKILL)
            self._parent.wait(END_S)
        if isinstance(error, psutil.Error):
            self.check()

    def wait(self, timeout_s: float, what: str, done: Callable[[], Any]) -> None:
        """Waits until `done()`. Raises ReplayTimeout, or ReplayError if a role fails."""
        deadline = time.monotonic() + timeout_s
        while not done():
            self.check()
            if time.monotonic() > deadline:
                raise ReplayTimeout(f"waited {timeout_s:g} s {what}")
            time.sleep(POLL_S)

    def check(self) -> None:
        """Raises ReplayError with the reason if a role, or the parent of all roles, has failed."""
        if self._parent.poll():
            lines = self._log.read_text(errors="replace").strip().splitlines()
            reason = lines[-1] if lines else f"the parent of all roles ended with status {self._parent.returncode}"
            reason = reason.removeprefix("shared.replay.errors.")
            raise ReplayError(f"a simulated role failed: {reason[:500]}")


def main() -> None:
    folder = Path(sys.argv[1])
    setting, address = pickle.loads((folder / "setting").read_bytes())
    progress = np.memmap(folder / "progress", PROGRESS, "r+")
    fork = multiprocessing.get_context("fork")  # gRPC allows forks until the first channel is made
    connected = fork.Barrier(len(progress))
    roles = []
    for number, record in enumerate(progress):
        work = _collect if number < setting.collectors else _learn
        roles.append(fork.Process(target=work, args=(setting, address, number, record, connected), daemon=True))
    for role in roles:
        role.start()
    ended = wait([sys.stdin.fileno(), *(role.sentinel for role in roles)])
    for role in roles:
        if role.sentinel in ended:
            role.join()
            sys.exit(f"process {role.pid} died" if role.exitcode and role.exitcode < 0 else 1)  # 1: its error is logged


def _collect(setting: Setting, address: str, number: int, record: Any, connected: Any) -> None:
    """Inserts without end. All rows are random and made at the start: an environment's time is not measured here."""
    plan, rng = setting.plan, np.random.default_rng(number)
    shape = (setting.environments, plan.unroll_length)
    unrolls = [rng.standard_normal((*shape, setting.num_floats), dtype=np.float32) for _ in range(NUM_UNROLLS)]
    ints = np.zeros((*shape, INT_COLUMNS), np.int32)
    sizes = (plan.chunks_per_window, setting.environments)
    inserter = Inserter(address, setting.tables, *sizes, source=number, timeout_s=START_S + WARM_S)
    record["pid"] = os.getpid()
    connected.wait(START_S)
    for unroll in count():
        ints[..., 1] = np.arange(plan.unroll_length) + unroll * plan.unroll_length
        inserter.insert(Columns(unrolls[unroll % NUM_UNROLLS], ints), unroll)


def _learn(setting: Setting, address: str, number: int, record: Any, connected: Any) -> None:
    """Samples without end, and drops the decoded windows."""

    def drop(columns: Columns) -> None:
        record["windows"] += len(columns.floats)
        record["bytes"] += columns.floats.nbytes + columns.ints.nbytes

    table = setting.tables[number - setting.collectors]
    sizes = (setting.plan.windows_per_update, setting.plan.window_rows, setting.num_floats)
    sampler = Sampler(address, table, *sizes, transfer=drop, timeout_s=START_S + WARM_S)
    record["pid"] = os.getpid()
    connected.wait(START_S)
    while True:
        sampler.sample()


if __name__ == "__main__":
    main()
