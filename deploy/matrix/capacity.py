"""Capacity of the Ray cluster that the runs of a matrix share, and the runs that it can hold at once."""

import json
import os
import select
import shutil
import subprocess
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any, NamedTuple

import psutil

from deploy.matrix.expand import MatrixRun
from deploy.scheduling.fork_server import python_program
from deploy.scheduling.packages import module_command
from deploy.scheduling.placement import Node, Roles, asks_nothing, assign_resources, find_shortage, pack, roles_of
from deploy.scheduling.reaper import end_child
from shared.config import Experiment
from shared.envs.registry import make_envs
from shared.errors import ConfigError

START_S = 180.0  # a healthy cluster starts within seconds; on a busy machine, two tries take over a minute each
STOP_S = 30.0
NOTICE_S = 8.0  # the holder of a cluster notices its death within this time
STORE_SHARE = 0.3  # of the machine's memory; Ray's own default for its object store


def may_start(wanted: Roles, running: Sequence[Roles], nodes: Sequence[Node], parallel: int | None) -> bool:
    """Returns true if `nodes` can hold the roles of one more run beside the roles of the `running` ones.

    At most `parallel` runs execute at once. Without that limit, runs that ask for nothing execute one after the
    other, because the number of them that fit is unknown.
    """
    if parallel is not None and len(running) >= parallel:
        return False
    if asks_nothing(wanted):
        return parallel is not None or not any(map(asks_nothing, running))
    runs = enumerate((wanted, *running))
    return pack({(run, role): asked for run, roles in runs for role, asked in roles.items()}, nodes) is not None


def check_port(runs: Collection[MatrixRun], parallel: int | None, in_process: bool) -> None:
    """Raises ConfigError if several of `runs` may need the same port at once. A fixed port suits a single run."""
    ports = {run.experiment.replay.port for run in runs} - {None}
    if ports and len(runs) > 1 and parallel != 1 and not in_process:
        raise ConfigError(
            f"experiment.replay.port: {ports.pop()} is one port, and {len(runs)} runs may need it at once; "
            "leave it out, or add --parallel 1"
        )


def demands(runs: Sequence[MatrixRun], nodes: Sequence[Node]) -> dict[str, Roles]:
    """Returns the resources of every run's roles. Raises ConfigError for a run that does not fit an idle cluster."""
    assigned: dict[str, Roles] = {run.name: assign_resources(run.experiment, nodes) for run in runs}
    for name, roles in assigned.items():
        if shortage := find_shortage(roles, nodes):
            raise ConfigError(
                f"experiment: run {name}: {shortage}; ask for less in its roles' resources, or name a larger cluster "
                "by RAY_ADDRESS"
            )
    return assigned


def _needs_no_cluster(experiment: Experiment) -> bool:
    """True if no role asks for resources or could be assigned a GPU."""
    roles = roles_of(experiment)
    may_have_gpus = "RAY_ADDRESS" in os.environ or shutil.which("nvidia-smi")
    return asks_nothing(roles) and not (may_have_gpus and any(role.gpus is None for role in roles.values()))


class Capacity(NamedTuple):
    """The cluster that the runs of a matrix share; no nodes if each run starts a cluster of its own, or none."""

    demands: Mapping[str, Roles]
    """Resources of every run's roles."""
    nodes: Sequence[Node] = ()
    environ: Mapping[str, str] = {}
    """Environment variables by which the processes of a run find the cluster."""
    holder: subprocess.Popen | None = None
    """The process that holds the cluster."""

    @property
    def lost(self) -> bool:
        """True after the death of the shared cluster."""
        return self.holder is not None and self.holder.poll() is not None

    def is_dying(self) -> bool:
        """Returns whether the cluster is lost, also if its holder has not noticed that yet."""
        if self.holder is not None:
            with suppress(subprocess.TimeoutExpired):
                self.holder.wait(NOTICE_S)
        return self.lost


@contextmanager
def open_capacity(runs: Sequence[MatrixRun], parallel: int | None, in_process: bool) -> Iterator[Capacity]:
    """Opens one Ray cluster for all `runs`: the one at RAY_ADDRESS, or a new one.

    Raises ConfigError if there is no cluster, or if the cluster is too small for a run.
    """
    if in_process or not runs or (len(runs) == 1 and _needs_no_cluster(runs[0].experiment)):
        yield Capacity({run.name: {} for run in runs})
        return
    store_bytes = str(_store_bytes(runs, parallel))
    command = module_command("deploy.scheduling.ray_cluster", store_bytes, python=python_program())
    holder = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, start_new_session=True
    )
    try:
        answer = _answer(holder)
        nodes = [Node(**node) for node in answer["nodes"]]
        yield Capacity(demands(runs, nodes), nodes, answer["environ"], holder)
    finally:
        end_child(holder, STOP_S)


def _answer(holder: subprocess.Popen) -> dict[str, Any]:
    """Returns the description that the holder prints of its cluster. Raises ConfigError."""
    assert holder.stdout is not None
    with holder.stdout:
        in_time = select.select([holder.stdout], [], [], START_S)[0]
        line = holder.stdout.readline() if in_time else b""
    fault = "the process that starts Ray ended" if in_time else f"Ray did not start within {START_S:g} s"
    answer = json.loads(line) if line else {"error": f"{fault}; run again when fewer programs use the machine"}
    if "error" in answer:
        holder.kill()  # it may hang
        raise ConfigError(answer["error"])
    return answer


def _store_bytes(runs: Sequence[MatrixRun], parallel: int | None) -> int:
    """Size of Ray's object store: enough for all runs at once up to Ray's default, and always enough for each run."""
    from deploy.run.policy_sizes import object_store_bytes

    needs = [object_store_bytes(run.experiment, make_envs(run.experiment).training.spec) for run in runs]
    at_once = sum(sorted(needs, reverse=True)[:parallel])
    return max(*needs, min(at_once, int(STORE_SHARE * psutil.virtual_memory().total)))
