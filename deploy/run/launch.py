"""A distributed run: the Reverb server, the collectors, the learners and the evaluator as Ray actors."""

import math
import os
import secrets
import socket
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any

import ray

from deploy.mode import Mode
from deploy.replay.server.provision import ProvisionError, reverb_python
from deploy.replay.service import ReplayService
from deploy.run.actors.evaluator import EvaluatorActor
from deploy.run.actors.learner import LearnerActor
from deploy.run.actors.services import ParamStoreActor, ReplayServerActor
from deploy.run.actors.source import CollectorActor, FeederActor
from deploy.run.interrupt import Interruption
from deploy.run.limits import find_short_limits, first_call_s
from deploy.run.memory_watch import MemoryWatch
from deploy.run.policy_sizes import max_waiting_bytes, object_store_bytes
from deploy.run.record import RunRecord
from deploy.run.snapshot_taker import SnapshotTaker
from deploy.run.supervisor import Supervisor
from deploy.scheduling.calls import CallError, get_answer
from deploy.scheduling.placement import GB
from deploy.scheduling.ray_cluster import Servers, answers, cluster, find_dead
from deploy.scheduling.reaper import guarded
from deploy.scheduling.reservation import Reserved, reserved
from deploy.telemetry.gauges import Gauges
from shared.envs.base import EnvSpec
from shared.errors import RunFailed
from shared.roles import EVALUATOR, SERVICES, Kind, Role, learner_role, learner_roles, source_roles
from shared.stream.format import MANIFEST, describe, shard_folder
from shared.stream.index import read_index
from shared.stream.write import write_manifest

STOP_GRACE_S = 10.0
REQUEST_S = 2.0  # longest way of a request to a learner, with the age of the learner's last report


class Launch:
    """One run on a Ray cluster."""

    def __init__(
        self,
        record: RunRecord,
        spec: EnvSpec,
        say: Callable[[str], None],
        interruption: Interruption | None = None,
    ) -> None:
        self.record = record
        self._interruption = interruption or Interruption()
        self._spec = spec
        self._say = say
        self._run_id = secrets.token_hex(4)
        self._actors: list[Any] = []
        self._incarnations: Counter[str] = Counter()
        self._places: dict[Role, Reserved] = {}
        self._store: Any = None
        self._evaluator: Any = None
        self._last_snapshot = 0  # updates of the snapshot after which the run ends

    def run(self, on_progress: Callable[[dict[Role, str]], None]) -> None:
        """Runs until every learner has made its updates; leaves no process behind, however the run ends.

        Args:
            on_progress: gets one word or two on each role, about twice a second.

        Raises:
            RunFailed: the run ended before its budget.
        """
        self._check()
        self._enter("starting Ray")
        experiment = self.record.experiment
        store_bytes = object_store_bytes(experiment, self._spec)
        ray_cluster = cluster(store_bytes, namespace=f"fathom-{self._run_id}", say=self._say)
        with (
            guarded(),
            ray_output(self.record.run_dir),
            ray_cluster as servers,
            reserved(experiment, self._say, servers) as self._places,
        ):
            self.record.watchers.append(Gauges(self.record.run_dir.name, self.record.plan).show)
            supervisor = replay = None
            self._enter("starting the roles")
            try:
                self._store = self._make(ParamStoreActor, SERVICES, restarts=-1)
                replay = self._make_replay_service()
                roles = [EVALUATOR, *learner_roles(experiment), *source_roles(experiment)]
                actors = {role: self._make_role(role) for role in roles}
                supervisor = Supervisor(
                    self.record,
                    experiment.supervision,
                    first_call_s(experiment, self.record.plan, self._spec),
                    self._make_started,
                    self._store,
                    replay,
                    self._say,
                )
                self._check_folders(actors)
                for role, actor in actors.items():
                    actor.start.remote()
                    supervisor.watch(role, actor)
                taker = SnapshotTaker(
                    self.record,
                    Mode.DISTRIBUTED,
                    lambda role, updates: supervisor.actor(role).take_part.remote(updates),
                )
                memory = MemoryWatch(self.record)
                with self._interruption.deferred():
                    while not supervisor.done:
                        supervisor.tick()
                        _check_servers(servers)
                        taker.tick()
                        memory.tick(supervisor.memory)
                        self.record.phase = supervisor.phase
                        on_progress(supervisor.states)
                        self._tend_interruption(supervisor, taker)
                supervisor.finish()
                self._finish_stream()
            finally:
                if answers(servers):  # else the reaper ends what is left
                    self._end(supervisor, replay)

    def _enter(self, phase: str) -> None:
        self.record.enter(phase)
        self._say(phase)

    def _tend_interruption(self, supervisor: Supervisor, taker: SnapshotTaker) -> None:
        """Takes a snapshot once a signal asks the run to end. Raises Interrupted when it is complete, or too late."""
        record, name = self.record, self._interruption.requested
        if name and not record.ending:
            record.ending = f"stopped by {name}"
            self._last_snapshot = _soonest_snapshot(record)
            self._say(f"{name}: the run ends after a snapshot at update {self._last_snapshot}")
            taker.add(self._last_snapshot)
            for role in learner_roles(record.experiment):
                supervisor.actor(role).snapshot_at.remote(self._last_snapshot)
        self._interruption.check(done=0 < self._last_snapshot <= taker.last)

    def _check(self) -> None:
        """Raises RunFailed for what is missing, before anything starts."""
        try:
            reverb_python(self._enter)
        except ProvisionError as error:
            raise RunFailed(str(error)) from error
        _check_port(self.record.experiment.replay.port)
        for line in find_short_limits(self.record.experiment, self.record.plan, self._spec):
            self._say(line)

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
            waiting = max_waiting_bytes(experiment, self._spec)
            self._evaluator = self._make(EvaluatorActor, role, stacks, experiment, plan, finished, waiting)
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
                seen = get_answer(asked[role], experiment.supervision.start_seconds)
            except CallError:
                return  # the supervisor finds the cause
            if seen != path.read_text(encoding="utf-8"):
                option = "stream" if path.name == MANIFEST else "--run-dir"
                raise RunFailed(
                    f"{option}: {role}'s node does not see {path.parent}; name a folder that all nodes share"
                )

    def _finish_stream(self) -> None:
        """Completes a recorded stream, whose shards are closed."""
        experiment, plan, stream = self.record.experiment, self.record.plan, self.record.stream_dir
        if experiment.record:
            folders = [shard_folder(stream, index) for index in range(experiment.collector.actors)]
            shards = [read_index(folder, "record the stream again") for folder in folders]
            write_manifest(stream, describe(experiment, plan, self._spec), shards)

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


def _soonest_snapshot(record: RunRecord) -> int:
    """Returns an update that every learner can be asked for before it makes it; the last of the plan at most."""
    newest, fastest = 0, 0.0
    for name in record.experiment.all_learners:
        rows = record.recent(learner_role(name))
        newest = max(newest, record.updates(name))
        fastest = max(fastest, len(rows) / max(sum(row["seconds"] for row in rows), 1e-9))
    return min(newest + 1 + math.ceil(REQUEST_S * fastest), record.plan.updates)


def _check_servers(servers: Servers) -> None:
    """Raises RunFailed if a server of the run's own cluster has died: then no role can be started again."""
    if name := find_dead(servers):
        raise RunFailed(
            f"Ray's {name} (pid {servers[name].pid}) died (killed, crashed, or out of memory), and no role can be "
            "started without it; run again with --resume"
        )


def _check_port(port: int | None) -> None:
    """Raises RunFailed if `port` is taken, before anything is started; the server checks again."""
    with socket.socket() as probe:
        try:
            probe.bind(("", port or 0))
        except OSError as error:
            raise RunFailed(f"replay.port: port {port} is taken; choose another, or none for a free one") from error


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
