"""A distributed run: the Reverb server, the collectors, the learners and the evaluator as Ray actors."""

import os
import secrets
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from functools import cache
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, RayActorError, RayTaskError

from deploy.actors import CollectorActor, EvaluatorActor, FeederActor, LearnerActor
from deploy.cluster import cluster
from deploy.gauges import Gauges
from deploy.placement import GB, SERVICES
from deploy.reaper import guarded
from deploy.record import EVALUATOR, RunFailed, RunRecord, learner_role, source_roles
from deploy.replay_server.provision import ProvisionError, reverb_python
from deploy.replay_server.server import TableSpec
from deploy.reservation import Reserved, reserved
from deploy.services import ParamStoreActor, ReplayServerActor
from deploy.supervise import Supervisor
from shared.config import ACTIVE, Experiment, NetworkConfig
from shared.envs.base import EnvSpec
from shared.networks import make_networks, param_shapes, parameter_count
from shared.plan import Plan
from shared.replay.info import ReplayMonitor
from shared.stream.format import MANIFEST, describe
from shared.stream.write import write_manifest

STOP_GRACE_S = 10.0
REMOTE_TIMEOUT_S = 60.0
POLICIES_IN_STORE = 16  # newest policies, snapshots on their way and being evaluated
_MEGABYTE = 2**20


class Launch:
    """One run on a Ray cluster. `run` returns when every learner has made its updates, or raises RunFailed."""

    def __init__(self, record: RunRecord, spec: EnvSpec, say: Callable[[str], None]) -> None:
        self.record = record
        self._spec = spec
        self._say = say
        self._run_id = secrets.token_hex(4)
        self._actors: list[Any] = []
        self._places: dict[str, Reserved] = {}

    def run(self, on_progress: Callable[[dict[str, str]], None]) -> None:
        """`on_progress(states)` is called about twice a second. Leaves no process behind, however it ends."""
        self._check()
        experiment = self.record.experiment
        ray_cluster = cluster(object_store_bytes(experiment, self._spec), namespace=f"fathom-{self._run_id}")
        places = reserved(experiment, self._say)
        with guarded(), _ray_output(self.record.run_dir), ray_cluster, places as self._places:
            self.record.watchers.append(Gauges(self.record.run_dir.name, self.record.plan).show)
            replay = self._make(ReplayServerActor, SERVICES)
            supervisor = None
            try:
                store = self._make(ParamStoreActor, SERVICES)
                roles = self._make_roles(store)  # they import JAX while the replay server starts
                address = self._start_replay(replay)
                self._check_folders(roles)
                supervisor = Supervisor(
                    self.record,
                    experiment.supervision,
                    ReplayMonitor(address, self._tables.values()),
                    services={"replay server's process": replay, "parameter store": store},
                )
                for role, actor in roles.items():
                    actor.start.remote(address)
                    supervisor.watch(role, actor)
                while not supervisor.done:
                    supervisor.tick()
                    on_progress(supervisor.states)
                supervisor.finish()
                self._finish_stream(roles)
            finally:
                self._end(supervisor, replay)

    def _check(self) -> None:
        """What is missing is said before anything starts."""
        try:
            reverb_python(self._say)
        except ProvisionError as error:
            raise RunFailed(str(error)) from error
        _check_port(self.record.experiment.replay.port)

    @property
    def _tables(self) -> dict[str, str]:
        return {name: f"{self._run_id}/{name}" for name in self.record.experiment.all_learners}

    def _make(self, kind: type, role: str, *arguments: Any) -> Any:
        """An actor of `kind` in the place that is reserved for `role`, by whose name Ray's dashboard knows it."""
        name = kind.__name__ if role == SERVICES else role
        actor = _actor(kind, self._places[role]).options(name=name).remote(*arguments)
        self._actors.append(actor)
        return actor

    def _start_replay(self, replay: Any) -> str:
        experiment = self.record.experiment
        specs = [table_spec(experiment, self.record.plan, name, table) for name, table in self._tables.items()]
        log = str(self.record.run_dir / "logs" / "replay_server.log")
        try:
            starting = replay.start.remote(specs, experiment.replay.port, log)
            return ray.get(starting, timeout=experiment.supervision.start_seconds)
        except RayTaskError as error:
            raise RunFailed(f"replay.port: {error.cause}" if experiment.replay.port else str(error.cause)) from error
        except (GetTimeoutError, RayActorError) as error:
            raise RunFailed("the replay server did not start; see logs/replay_server.log") from error

    def _make_roles(self, store: Any) -> dict[str, Any]:
        experiment, plan = self.record.experiment, self.record.plan
        evaluator = self._make(EvaluatorActor, EVALUATOR, experiment, plan)
        roles = {EVALUATOR: evaluator}
        for name in experiment.all_learners:
            role = learner_role(name)
            path = str(self.record.run_dir / "checkpoints" / name)
            table = self._tables[name]
            roles[role] = self._make(LearnerActor, role, experiment, plan, name, table, store, evaluator, path)
        tables = list(self._tables.values())
        for index, role in enumerate(source_roles(experiment)):
            if experiment.stream:
                roles[role] = self._make(FeederActor, role, experiment, plan, index, tables)
            else:
                stream = str(self.record.stream_dir)
                roles[role] = self._make(CollectorActor, role, experiment, plan, index, tables, store, stream)
        return roles

    def _check_folders(self, roles: dict[str, Any]) -> None:
        """Raises RunFailed where a role's node does not see the folder that the role writes to, or reads."""
        if len(ray.nodes()) == 1:
            return
        experiment, own = self.record.experiment, self.record.run_dir / "config.yaml"
        needed = {learner_role(name): own for name in experiment.all_learners}
        if experiment.stream:
            needed |= dict.fromkeys(source_roles(experiment), Path(experiment.stream) / MANIFEST)
        elif experiment.record:
            needed |= dict.fromkeys(source_roles(experiment), own)
        asked = {role: roles[role].read.remote(str(path)) for role, path in needed.items()}
        for role, path in needed.items():
            try:
                seen = ray.get(asked[role], timeout=experiment.supervision.start_seconds)
            except (GetTimeoutError, RayActorError):
                return  # the supervisor will say more of it
            if seen != path.read_text(encoding="utf-8"):
                option = "stream" if path.name == MANIFEST else "--run-dir"
                raise RunFailed(
                    f"{option}: {role}'s node does not see {path.parent}; name a folder that all nodes share"
                )

    def _finish_stream(self, roles: dict[str, Any]) -> None:
        """Every collector has closed its shard: now the stream is whole."""
        experiment, plan = self.record.experiment, self.record.plan
        if not experiment.record:
            return
        closed = [roles[role].shard.remote() for role in source_roles(experiment)]
        shards = ray.get(closed, timeout=REMOTE_TIMEOUT_S)
        write_manifest(self.record.stream_dir, describe(experiment, plan, self._spec), shards)

    def _end(self, supervisor: Supervisor | None, replay: Any) -> None:
        """Roles first, then the server they talk to, then whatever is left. Every step is bounded."""
        try:
            if supervisor is not None:
                supervisor.stop(STOP_GRACE_S)
                self._log(supervisor.details())
            ray.get(replay.stop.remote(), timeout=STOP_GRACE_S)
        except (RayActorError, RayTaskError, GetTimeoutError):
            pass  # gone, or hung and about to be killed
        finally:
            for actor in self._actors:
                ray.kill(actor)

    def _log(self, details: str) -> None:
        if details:
            (self.record.run_dir / "logs" / "errors.log").write_text(details, encoding="utf-8")


def _check_port(port: int | None) -> None:
    """Raises RunFailed where `port` is taken, before anything is started; the server checks again."""
    with socket.socket() as probe:
        try:
            probe.bind(("", port or 0))
        except OSError as error:
            raise RunFailed(f"replay.port: port {port} is taken; choose another, or none for a free one") from error


def table_spec(experiment: Experiment, plan: Plan, name: str, table: str) -> TableSpec:
    """`name`'s table. Free pace limits the collector learner's alone."""
    limited = experiment.replay.pace == "lockstep" or name == ACTIVE
    return TableSpec(
        name=table,
        max_size=plan.max_windows,
        min_size_to_sample=plan.prefill_windows,
        samples_per_insert=plan.samples_per_insert if limited else None,
        error_buffer=plan.error_buffer if limited else None,
    )


def object_store_bytes(experiment: Experiment, spec: EnvSpec) -> int:
    """Room for the newest policies of the largest network, and never less than Ray needs to work well."""
    largest = max(_policy_bytes(config, spec) for config in experiment.all_learners.values())
    return max(256 * _MEGABYTE, POLICIES_IN_STORE * largest)


@cache
def _policy_bytes(config: NetworkConfig, spec: EnvSpec) -> int:
    return 4 * parameter_count(param_shapes(make_networks(config, spec), spec).actor)


def _actor(kind: type, place: Reserved) -> Any:
    """`kind` as an actor in its place, with its share of the machine set before JAX is imported."""
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
        max_restarts=0,
        runtime_env={"env_vars": environment},
        enable_task_events=False,  # two polls a second for days would fill Ray's record of tasks
    )(kind)


@contextmanager
def _ray_output(run_dir: Path) -> Iterator[None]:
    """What Ray prints of its own goes to logs/ray.log; the console belongs to the run."""
    path = run_dir / "logs" / "ray.log"
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a", encoding="utf-8") as log, redirect_stdout(log):
        yield
