"""Which runs of a matrix go at once: as many as Ray has room for, by what their roles ask of it."""

import json
import select
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import psutil

from deploy.matrix.config import MatrixRun
from shared.config import ConfigError, Experiment
from shared.envs.registry import make_envs

START_S = 90.0  # a cluster that is not there by then has a fault; a few seconds are usual
STOP_S = 30.0
SHARE_OF_MEMORY = 0.3  # what Ray itself would take for its object store
_ROUNDING = 1e-6


class Demand(NamedTuple):
    """Cores and GPUs, as Ray counts them."""

    cpus: float = 0.0
    gpus: float = 0.0


NOTHING = Demand()


def demand(experiment: Experiment) -> Demand:
    """What all roles of a run ask of Ray. A stream is fed by who asks for nothing."""
    roles = [experiment.evaluation.resources]
    roles += [learner.resources for learner in experiment.all_learners.values()]
    if not experiment.stream:
        roles += experiment.collector.actors * [experiment.collector.actor_resources]
    return Demand(sum(role.cpus for role in roles), sum(role.gpus for role in roles))


def may_start(wanted: Demand, running: Sequence[Demand], total: Demand, parallel: int | None) -> bool:
    """Whether a run that asks for `wanted` goes beside the `running` ones on a cluster that has `total`.

    At most `parallel` go at once. Where that is left open, runs that ask for nothing, of whom nobody can tell
    how many are too many, go one after the other.
    """
    if parallel is not None and len(running) >= parallel:
        return False
    if wanted == NOTHING:
        return parallel is not None or NOTHING not in running
    taken = (sum(each) for each in zip(wanted, *running, strict=True))
    return all(each <= most + _ROUNDING for each, most in zip(taken, total, strict=True))


def refuse_too_large(asked: Mapping[str, Demand], total: Demand) -> None:
    """`asked`: by run. Raises ConfigError with the first run that not even the whole cluster has room for."""
    for name, wanted in asked.items():
        for what, most, much in zip(("CPUs", "GPUs"), total, wanted, strict=True):
            if much > most + _ROUNDING:
                raise ConfigError(
                    f"experiment: run {name} asks for {much:g} {what} in its roles' resources, the Ray cluster has "
                    f"{most:g}; ask for less, or name a larger cluster by RAY_ADDRESS"
                )


class Room:
    """What the runs of a matrix share. `environ`: for their processes, beside our own."""

    def __init__(
        self, total: Demand = NOTHING, environ: Mapping[str, str] | None = None, holder: subprocess.Popen | None = None
    ) -> None:
        self.total, self.environ, self._holder = total, dict(environ or {}), holder

    @property
    def lost(self) -> bool:
        """Whether the cluster that runs share is gone."""
        return self._holder is not None and self._holder.poll() is not None


@contextmanager
def room_for(runs: Sequence[MatrixRun], asked: Mapping[str, Demand], parallel: int | None) -> Iterator[Room]:
    """One Ray cluster for all `runs` as soon as one of them asks for something: that at RAY_ADDRESS, or our own.

    `asked`: by run. Raises ConfigError where there is no cluster, or where it is too small for a run.
    """
    # Who asks for nothing takes nothing from others: such runs start as each would alone, apart from one another.
    if all(each == NOTHING for each in asked.values()):
        yield Room()
        return
    command = [sys.executable, "-m", "deploy.cluster", str(_store_bytes(runs, parallel))]
    holder = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, start_new_session=True
    )
    assert holder.stdin is not None
    try:
        there = _answer(holder)
        total = Demand(there["cpus"], there["gpus"])
        refuse_too_large(asked, total)
        yield Room(total, there["environ"], holder)
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
    from deploy.launch import object_store_bytes  # imports Ray

    specs = (make_envs(run.experiment).training.spec for run in runs)
    needs = [object_store_bytes(run.experiment, spec) for run, spec in zip(runs, specs, strict=True)]
    at_once = sum(sorted(needs, reverse=True)[:parallel])
    return max(*needs, min(at_once, int(SHARE_OF_MEMORY * psutil.virtual_memory().total)))
