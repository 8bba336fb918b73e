"""Which runs of a matrix go at once: as many as Ray has room for, by what their roles ask of it."""

import json
import os
import select
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import psutil

from deploy.matrix.expand import MatrixRun
from deploy.scheduling.placement import Node, Roles, asks_nothing, assign_resources, find_shortage, pack, roles_of
from shared.config import Experiment
from shared.envs.registry import make_envs
from shared.errors import ConfigError

START_S = 90.0  # a cluster that is not there by then has a fault; a few seconds are usual
STOP_S = 30.0
SHARE_OF_MEMORY = 0.3  # what Ray itself would take for its object store


def may_start(wanted: Roles, running: Sequence[Roles], nodes: Sequence[Node], parallel: int | None) -> bool:
    """Whether a run whose roles ask for `wanted` goes beside the `running` ones on `nodes`.

    At most `parallel` go at once. Where that is left open, runs that ask for nothing, of whom nobody can tell
    how many are too many, go one after the other.
    """
    if parallel is not None and len(running) >= parallel:
        return False
    if asks_nothing(wanted):
        return parallel is not None or not any(map(asks_nothing, running))
    runs = enumerate((wanted, *running))
    return pack({(run, role): asked for run, roles in runs for role, asked in roles.items()}, nodes) is not None


def demands(runs: Sequence[MatrixRun], nodes: Sequence[Node]) -> Mapping[str, Roles]:
    """By run, what its roles get. Raises ConfigError with the first run that not even an idle cluster has room for."""
    asked = {run.name: assign_resources(run.experiment, nodes) for run in runs}
    for name, roles in asked.items():
        if shortage := find_shortage(roles, nodes):
            raise ConfigError(
                f"experiment: run {name}: {shortage}; ask for less in its roles' resources, or name a larger cluster "
                "by RAY_ADDRESS"
            )
    return asked


def _shares_nothing(experiment: Experiment) -> bool:
    """Whether no role asks for anything, nor would get a GPU unasked."""
    roles = roles_of(experiment)
    gpus_here = "RAY_ADDRESS" in os.environ or shutil.which("nvidia-smi")
    return asks_nothing(roles) and not (gpus_here and any(role.gpus is None for role in roles.values()))


class Capacity:
    """What the runs of a matrix share: the cluster's `nodes`, and, by run, what its roles get of them.

    `environ`: for their processes, beside our own.
    """

    def __init__(
        self,
        asked: Mapping[str, Roles],
        nodes: Sequence[Node] = (),
        environ: Mapping[str, str] | None = None,
        holder: subprocess.Popen | None = None,
    ) -> None:
        self.asked, self.nodes, self.environ, self._holder = asked, nodes, dict(environ or {}), holder

    @property
    def lost(self) -> bool:
        """Whether the cluster that runs share is gone."""
        return self._holder is not None and self._holder.poll() is not None


@contextmanager
def open_capacity(runs: Sequence[MatrixRun], parallel: int | None, in_process: bool) -> Iterator[Capacity]:
    """One Ray cluster for all `runs` as soon as one of them takes something: that at RAY_ADDRESS, or our own.

    Raises ConfigError where there is no cluster, or where it is too small for a run.
    """
    # Who takes nothing takes nothing from others: such runs start as each would alone, apart from one another.
    if in_process or all(_shares_nothing(run.experiment) for run in runs):
        yield Capacity({run.name: {} for run in runs})
        return
    command = [sys.executable, "-m", "deploy.scheduling.ray_cluster", str(_store_bytes(runs, parallel))]
    holder = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, start_new_session=True
    )
    assert holder.stdin is not None
    try:
        there = _answer(holder)
        nodes = [Node(**node) for node in there["nodes"]]
        yield Capacity(demands(runs, nodes), nodes, there["environ"], holder)
    finally:
        holder.stdin.close()
        try:
            holder.wait(STOP_S)
        except subprocess.TimeoutExpired:
            holder.kill()
            holder.wait()


def _answer(holder: subprocess.Popen) -> dict[str, Any]:
    """What a cluster's holder says of it. Raises ConfigError."""
    assert holder.stdout is not None
    with holder.stdout:
        ready = select.select([holder.stdout], [], [], START_S)[0]
        line = holder.stdout.readline() if ready else b""
    there = json.loads(line) if line else {"error": f"Ray did not start within {START_S:g} s"}
    if "error" in there:
        holder.kill()  # it may hang
        raise ConfigError(there["error"])
    return there


def _store_bytes(runs: Sequence[MatrixRun], parallel: int | None) -> int:
    """For Ray's object store: what as many runs take as may go at once, or as much as Ray itself would give."""
    from deploy.run.launch import object_store_bytes  # imports Ray

    specs = (make_envs(run.experiment).training.spec for run in runs)
    needs = [object_store_bytes(run.experiment, spec) for run, spec in zip(runs, specs, strict=True)]
    at_once = sum(sorted(needs, reverse=True)[:parallel])
    return max(*needs, min(at_once, int(SHARE_OF_MEMORY * psutil.virtual_memory().total)))
