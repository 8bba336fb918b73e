"""A distributed run: the Reverb server, the collectors, the learners and the evaluator as Ray actors."""

import os
import secrets
import socket
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from functools import cache
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, RayActorError

from deploy.mode import Mode
from deploy.replay.server.provision import ProvisionError, reverb_python
from deploy.replay.service import ReplayService
from deploy.run.actors.evaluator import EvaluatorActor
from deploy.run.actors.learner import LearnerActor
from deploy.run.actors.services import ParamStoreActor, ReplayServerActor
from deploy.run.actors.source import CollectorActor, FeederActor
from deploy.run.record import RunRecord
from deploy.run.snapshot_taker import SnapshotTaker
from deploy.run.supervisor import Supervisor
from deploy.scheduling.placement import GB
from deploy.scheduling.ray_cluster import cluster
from deploy.scheduling.reaper import guarded
from deploy.scheduling.reservation import Reserved, reserved
from deploy.telemetry.gauges import Gauges
from shared.config import Experiment, NetworkConfig
from shared.envs.base import EnvSpec
from shared.errors import RunFailed
from shared.networks import make_networks, param_shapes, parameter_count
from shared.roles import EVALUATOR, SERVICES, Kind, Role, learner_roles, source_roles
from shared.stream.format import MANIFEST, describe
from shared.stream.write import write_manifest

STOP_GRACE_S = 10.0
REMOTE_TIMEOUT_S = 60.0
POLICIES_IN_STORE = 16  # newest policies, and those on their way to the evaluator
_MEGABYTE = 2**20


class Launch:
    """One run on a Ray cluster."""

    def __init__(self, record: RunRecord, spec: EnvSpec, say: Callable[[str], None]) -> None:
        self.record = record
        self._spec = spec
        self._say = say
        self._run_id = secrets.token_hex(4)
        self._actors: list[Any] = []
        self._incarnations: Counter[str] = Counter()
        self._places: dict[Role, Reserved] = {}
        self._store: Any = None
        self._evaluator: Any = None

    def run(self, on_progress: Callable[[dict[Role, str]], None]) -> None:
        """Runs until every learner has made its updates; leaves no process behind, however the run ends.

        Args:
            on_progress: gets one word or two on each role, about twice a second.

        Raises:
            RunFailed: the run ended before its budget.
        """
        self._check()
        experiment = self.record.experiment
        ray_cluster = cluster(object_store_bytes(experiment, self._spec), namespace=f"fathom-{self._run_id}")
        places = reserved(experiment, self._say)
        with guarded(), ray_output(self.record.run_dir), ray_cluster, places as self._places:
            self.record.watchers.append(Gauges(self.record.run_dir.name, self.record.plan).show)
            supervisor = replay = None
            try:
                self._store = self._make(ParamStoreActor, SERVICES, restarts=-1)
                replay = self._make_replay_service()
                roles = [EVALUATOR, *learner_roles(experiment), *source_roles(experiment)]
                actors = {role: self._make_role(role) for role in roles}
                supervisor = Supervisor(
                    self.record, experiment.supervision, self._make_started, self._store, replay, self._say
                )
                self._check_folders(actors)
                for role, actor in actors.items():
                    actor.start.remote()
                    supervisor.watch(role, actor)
                taker = SnapshotTaker(self.record, Mode.DISTRIBUTED)
                while not supervisor.done:
                    supervisor.tick()
                    taker.tick()
                    on_progress(supervisor.states)
                supervisor.finish()
                self._finish_stream(supervisor)
            finally:
                self._end(supervisor, replay)

    def _check(self) -> None:
        """Raises RunFailed for what is missing, before anything starts."""
        try:
            reverb_python(self._say)
        except ProvisionError as error:
            raise RunFailed(str(error)) from error
        _check_port(self.record.experiment.replay.port)

    def _make(self, kind: type, role: Role, *arguments: Any, restarts: int = 0) -> Any:
        """Returns an actor of `kind` in the place reserved for `role`; Ray's dashboard shows it by the role's name."""
        name = kind.__name__ if role == SERVICES else str(role)
        self._incarnations[name] += 1
        if self._incarnations[name] > 1:
            name += f"-incarnation-{self._incarnations[name]}"
        actor = as_actor(kind, self._places[role], restarts).options(name=name).remote(*arguments)
        self._actors.append(actor)
        return actor

    def _make_replay_service(self) -> ReplayService:
        record = self.record
        return ReplayService(
            record.experiment,
            record.plan,
            record.run_dir,
            self._run_id,
            self._make_server_actor,
            record.add_counts,
            self._say,
            resumed=record.snapshot is not None,
        )

    def _make_server_actor(self) -> Any:
        return self._make(ReplayServerActor, SERVICES)

    def _make_role(self, role: Role) -> Any:
        """Returns an actor for `role`: its first process, or one that resumes where its predecessor ended."""
        experiment, plan, record = self.record.experiment, self.record.plan, self.record
        run_dir = str(record.run_dir)
        stacks = str(record.run_dir / "logs" / f"stacks-{role}.log")
        if role.kind is Kind.EVALUATOR:
            finished = [name for name in experiment.all_learners if record.evaluated(name) == plan.updates]
            self._evaluator = self._make(EvaluatorActor, role, stacks, experiment, plan, finished)
            return self._evaluator
        if role.is_learner:
            clients, reported = (self._store, self._evaluator), record.updates(role.id)
            return self._make(LearnerActor, role, stacks, experiment, plan, role.id, *clients, run_dir, reported)
        position = record.position(role)
        if role.kind is Kind.FEEDER:
            return self._make(FeederActor, role, stacks, experiment, plan, role, position, run_dir)
        # The first process resumes the environments of the snapshot; they die with it.
        snapshot = (
            str(record.snapshot.folder / str(role)) if record.snapshot and not self._incarnations[str(role)] else None
        )
        return self._make(
            CollectorActor, role, stacks, experiment, plan, role, position, run_dir, self._store, snapshot
        )

    def _make_started(self, role: Role) -> Any:
        actor = self._make_role(role)
        actor.start.remote()
        return actor

    def _check_folders(self, roles: dict[Role, Any]) -> None:
        """Raises RunFailed if a role's node does not see the folder that the role writes to or reads."""
        if len(ray.nodes()) == 1:
            return
        experiment, own = self.record.experiment, self.record.run_dir / "config.yaml"
        needed = dict.fromkeys([role for role in roles if role != EVALUATOR], own)
        if experiment.stream:
            needed |= dict.fromkeys(source_roles(experiment), Path(experiment.stream) / MANIFEST)
        asked = {role: roles[role].read.remote(str(path)) for role, path in needed.items()}
        for role, path in needed.items():
            try:
                seen = ray.get(asked[role], timeout=experiment.supervision.start_seconds)
            except (GetTimeoutError, RayActorError):
                return  # the supervisor finds the cause
            if seen != path.read_text(encoding="utf-8"):
                option = "stream" if path.name == MANIFEST else "--run-dir"
                raise RunFailed(
                    f"{option}: {role}'s node does not see {path.parent}; name a folder that all nodes share"
                )

    def _finish_stream(self, supervisor: Supervisor) -> None:
        """Completes a recorded stream, whose shards are closed, and removes a stream that was not asked for."""
        experiment, plan = self.record.experiment, self.record.plan
        if experiment.record:
            closed = [supervisor.actor(role).shard.remote() for role in source_roles(experiment)]
            shards = ray.get(closed, timeout=REMOTE_TIMEOUT_S)
            write_manifest(self.record.stream_dir, describe(experiment, plan, self._spec), shards)
        self.record.remove_backups()

    def _end(self, supervisor: Supervisor | None, replay: ReplayService | None) -> None:
        """Ends the roles, then the replay server, then whatever is left; every step is bounded in time."""
        try:
            if supervisor is not None:
                supervisor.stop(STOP_GRACE_S)
            if replay is not None:
                replay.stop(STOP_GRACE_S)
        finally:
            for actor in self._actors:
                ray.kill(actor)


def _check_port(port: int | None) -> None:
    """Raises RunFailed if `port` is taken, before anything is started; the server checks again."""
    with socket.socket() as probe:
        try:
            probe.bind(("", port or 0))
        except OSError as error:
            raise RunFailed(f"replay.port: port {port} is taken; choose another, or none for a free one") from error


def object_store_bytes(experiment: Experiment, spec: EnvSpec) -> int:
    """Returns the size of Ray's object store: the newest policies of the largest network, and at least 256 MB."""
    largest = max(_policy_bytes(config, spec) for config in experiment.all_learners.values())
    return max(256 * _MEGABYTE, POLICIES_IN_STORE * largest)


@cache
def _policy_bytes(config: NetworkConfig, spec: EnvSpec) -> int:
    return 4 * parameter_count(param_shapes(make_networks(config, spec), spec).actor)


def as_actor(kind: type, place: Reserved, restarts: int = 0) -> Any:
    """Returns `kind` as an actor class in its place; its share of the machine is set before JAX is imported.

    Args:
        kind: the class.
        place: resources, and where they are reserved.
        restarts: how often Ray restarts the actor with its first arguments; -1: always. Pending calls wait.
    """
    resources = place.resources
    environment = {"JAX_COMPILATION_CACHE_DIR": os.environ["JAX_COMPILATION_CACHE_DIR"]}
    if resources.threads:
        environment["NPROC"] = str(resources.threads)  # XLA's CPU thread pool
    if resources.gpus:
        environment["JAX_PLATFORMS"] = ""
        environment["XLA_CLIENT_MEM_FRACTION"] = f"{0.9 * min(resources.gpus, 1):.3f}"
        environment["XLA_PYTHON_CLIENT_MEM_FRACTION"] = ""  # its old name: JAX refuses both at once
    else:
        environment["JAX_PLATFORMS"] = "cpu"
    return ray.remote(
        num_cpus=resources.cpus,
        num_gpus=resources.gpus,
        memory=int(resources.memory_gb * GB) or None,
        scheduling_strategy=place.strategy,
        max_restarts=restarts,
        max_task_retries=restarts,
        runtime_env={"env_vars": environment},
        enable_task_events=False,  # two polls a second for days would fill Ray's record of tasks
    )(kind)


@contextmanager
def ray_output(run_dir: Path) -> Iterator[None]:
    """Redirects what Ray prints to logs/ray.log; the console belongs to the run."""
    path = run_dir / "logs" / "ray.log"
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a", encoding="utf-8") as log, redirect_stdout(log):
        yield
