"""Ray's side of every role: a process, its clients, and nothing else. The roles themselves never import Ray.

Each actor works in one thread and answers the driver's polls in another, so that an answer is a heartbeat.
An actor may be a role's second or third life: then it goes on where the last one was.
"""

import faulthandler
import signal
import threading
import time
import traceback
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterator
from itertools import takewhile
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import ray
from ray.exceptions import GetTimeoutError, ObjectLostError, RayActorError

from collector.collector import Collector, Position, make_count, start_position
from collector.evaluator import Evaluator, Snapshot, SnapshotQueue
from collector.feeder import Feeder
from deploy import snapshots
from deploy.processes import Process
from deploy.record import STATE, STREAM, learner_role, source_roles
from deploy.states import Background, OwnStates, on_host
from learner.guard import NonFiniteError
from learner.learner import Learner
from shared import checkpoint
from shared.config import ACTIVE, ConfigError, Experiment
from shared.envs.base import GoalEnv
from shared.envs.registry import make_envs
from shared.metrics import Report, Reporter, Row
from shared.params import Policy
from shared.plan import Plan
from shared.replay.audit import AuditLog
from shared.replay.codec import Columns
from shared.replay.errors import ReplayStopped, ReplayTimeout
from shared.replay.lives import Behind, LastingInserter, LastingSampler, Life
from shared.stream.format import ShardSummary, describe, shard_folder
from shared.stream.read import open_stream
from shared.stream.shard import read_shard
from shared.stream.write import StreamWriter

# What another process would meet as well.
FATAL = (NonFiniteError, ReplayTimeout, ConfigError)
REMOTE_TIMEOUT_S = 60.0  # for weights and snapshots on their way; they are there or their owner is gone


class RoleActor(Process, ABC):
    """A role's process. Subclasses say what the work is."""

    def __init__(self, stacks_path: str) -> None:
        """`stacks_path`: where SIGUSR1 leaves the stacks of all threads, however stuck they are."""
        self._stacks = open(stacks_path, "a", encoding="utf-8")  # noqa: SIM115 - as long as the process lives
        faulthandler.register(signal.SIGUSR1, file=self._stacks)
        self._reporter = Reporter()
        self._stop = threading.Event()
        self._done = False
        self._error = self._details = ""
        self._fatal = False

    def read(self, path: str) -> str | None:
        """What a file holds as this node sees it; none where there is no such file."""
        try:
            return Path(path).read_text(encoding="utf-8")
        except OSError:
            return None

    def start(self) -> None:
        threading.Thread(target=self._main, name="work", daemon=True).start()

    def poll(self) -> Report:
        return self._reporter.drain(self._done, self._error, self._details)._replace(fatal=self._fatal)

    def stop(self) -> None:
        """Asks the work to end; `poll` tells when it has."""
        self._stop.set()

    @abstractmethod
    def work(self) -> None:
        """The role's loop; returns when it is done or `self._stop` is set."""

    def _main(self) -> None:
        try:
            self.work()
        except ReplayStopped:
            pass  # we asked for it
        except Exception as error:  # noqa: BLE001 - whatever it is, the driver must hear of it
            self._fatal = isinstance(error, FATAL)
            self._details = traceback.format_exc()
            self._error = " ".join(f"{type(error).__name__}: {error}".split())
        self._done = True


class SourceActor(RoleActor):
    """Where data come from: subclasses insert the unrolls of collector `index`."""

    def __init__(
        self, stacks_path: str, experiment: Experiment, plan: Plan, index: int, seen: Row, run_dir: str
    ) -> None:
        """`seen`: the last that was heard of this role, empty at its first life."""
        super().__init__(stacks_path)
        self._experiment, self._plan, self._index, self._seen = experiment, plan, index, seen
        self._inserter = LastingInserter(
            plan,
            index,
            experiment.collector.environments,
            self.past,
            self._reporter,
            self._stop,
            experiment.replay.timeout_seconds,
            AuditLog(Path(run_dir) / "audit" / f"source-{index}.keys") if experiment.replay.audit else None,
        )
        self._ready = threading.Event()
        self._run_dir, self._background = Path(run_dir), Background()
        self._to_come = list(plan.snapshot_updates)

    def open(self) -> None:
        """Before `past` is asked the first time."""

    @abstractmethod
    def past(self, first: int) -> Iterator[tuple[int, Columns]]:
        """The unrolls from number `first` on that are in the stream, as far as this source has come."""

    @abstractmethod
    def provide(self, env: GoalEnv, position: Position | None) -> None:
        """Inserts all that is asked for, or ends when `self._stop` is set. `position`: where the last life ended."""

    def connect(self, life: Life) -> None:
        self._inserter.connect(life)

    def disconnect(self) -> Behind | None:
        """See `LastingInserter`; none while it is not known yet."""
        return self._inserter.disconnect() if self._ready.is_set() else None

    def work(self) -> None:
        env = make_envs(self._experiment).training
        self.open()
        position = self._position(env)
        self._ready.set()
        try:
            self._inserter.open()
            self.provide(env, position)
            with self._reporter.waiting("replay full"):
                self._inserter.flush()
            self._background.wait()
            self._done = not self._stop.is_set()
            self._inserter.keep_filling()
        finally:
            self._inserter.close()

    def _pass_by(self, position: Position) -> list[snapshots.Part]:
        """Parts in the snapshots whose windows are made at `position`, and were not when this was asked last."""
        windows = position.windows.made // self._experiment.collector.environments
        passed = [updates for updates in self._to_come if self._plan.snapshot_windows(updates) <= windows]
        del self._to_come[: len(passed)]
        role = source_roles(self._experiment)[self._index]
        return [snapshots.Part(self._run_dir, updates, role) for updates in passed]

    def _position(self, env: GoalEnv) -> Position | None:
        """Where the last life ended: what was seen of it, and what its stream says beyond that."""
        plan, seen = self._plan, self._seen
        count = jax.jit(make_count(env))
        position = start_position(self._experiment.collector.environments, env.spec.num_cells)
        last_seen = seen.get("number", -1)
        told = []
        before = 0  # windows of the part of the stream that is read here, up to what was seen
        for number, columns in self.past(max(last_seen - plan.stored_unrolls - plan.chunks_per_window, 0)):
            visits = count(columns.floats, columns.ints) if number > last_seen else np.zeros_like(position.visits)
            position = position.after(number, columns.ints, visits, plan.chunks_per_window)
            told.append(position.windows)
            if number <= last_seen:
                before, position = position.windows.made, position._replace(unrolls=0)
        if not told:
            return None
        missing = seen.get("windows", 0) - before
        for windows in told:
            self._inserter.know(windows._replace(made=max(windows.made + missing, 0)))
        return Position(
            windows=position.windows._replace(made=position.windows.made + missing),
            unrolls=seen.get("unrolls", 0) + position.unrolls,
            visits=position.visits + np.array(seen.get("visits", 0)),
        )


class CollectorActor(SourceActor):
    def __init__(
        self,
        stacks_path: str,
        experiment: Experiment,
        plan: Plan,
        index: int,
        seen: Row,
        run_dir: str,
        store: Any,
        snapshot: str | None,
    ) -> None:
        """`snapshot`: the part that it goes on from, in the same life; none: a new one."""
        super().__init__(stacks_path, experiment, plan, index, seen, run_dir)
        self._store, self._snapshot = store, snapshot
        self._stream = Path(run_dir) / STREAM
        self._shard: ShardSummary | None = None

    def shard(self) -> ShardSummary | None:
        """What the stream holds of this collector, once its work is done."""
        return self._shard

    def open(self) -> None:
        spec = make_envs(self._experiment).training.spec
        self._description = describe(self._experiment, self._plan, spec)
        keep = None if self._experiment.record else self._plan.stored_unrolls
        self._writer = StreamWriter(self._stream, self._index, self._description, keep_unrolls=keep)

    def past(self, first: int) -> Iterator[tuple[int, Columns]]:
        return read_shard(shard_folder(self._stream, self._index), self._description, first)

    def provide(self, env: GoalEnv, position: Position | None) -> None:
        collector = Collector(self._experiment, self._plan, env, self._index, position)
        if self._snapshot is not None:
            folder = Path(self._snapshot)
            collector.go_on(
                snapshots.read_state(folder, jax.eval_shape(lambda: collector.state)), snapshots.read_position(folder)
            )
        self._pass_by(collector.position)

        def insert(number: int, columns: Columns) -> None:
            # Written first: replay never holds what could not be put in again.
            self._writer.write(columns, number)
            self._inserter.know(collector.position.windows)
            self._inserter.insert(number, columns)
            for part in self._pass_by(collector.position):
                began = time.monotonic()
                part.begin()
                snapshots.link_stream(part, self._writer.cut(), shard_folder(self._stream, self._index))
                state = on_host(collector.state)
                pause_s = time.monotonic() - began
                self._background.write(snapshots.write_source, part, collector.position, state, pause_s)

        collector.run(self._pull, insert, self._reporter, self._stop.is_set)
        self._shard = self._writer.close()

    def _pull(self, version: int) -> Policy | None:
        """None as well where the weights went with the learner that made them; its next life publishes first."""
        try:
            newest = ray.get(self._store.newest.remote(version), timeout=REMOTE_TIMEOUT_S)
            return newest and Policy(newest.version, ray.get(newest.params[0], timeout=REMOTE_TIMEOUT_S))
        except (ObjectLostError, RayActorError, GetTimeoutError):
            return None


class FeederActor(SourceActor):
    """A shard of the experiment's stream in a collector's place."""

    def open(self) -> None:
        self._shard = open_stream(Path(str(self._experiment.stream)), verify=False)  # the driver has
        self._fed = self._seen.get("number", -1)

    def past(self, first: int) -> Iterator[tuple[int, Columns]]:
        return takewhile(lambda unroll: unroll[0] <= self._fed, self._from(first))

    def provide(self, env: GoalEnv, position: Position | None) -> None:
        feeder = Feeder(self._experiment, self._plan, env, self._from(self._fed + 1), position)
        self._pass_by(feeder.position)

        def insert(number: int, columns: Columns) -> None:
            self._fed = number
            self._inserter.know(feeder.position.windows)
            self._inserter.insert(number, columns)
            for part in self._pass_by(feeder.position):
                part.begin()
                self._background.write(snapshots.write_source, part, feeder.position, None, 0.0)

        feeder.run(insert, self._reporter, self._stop.is_set)

    def _from(self, first: int) -> Iterator[tuple[int, Columns]]:
        return self._shard.shard(self._index, first)


class LearnerActor(RoleActor):
    def __init__(
        self,
        stacks_path: str,
        experiment: Experiment,
        plan: Plan,
        name: str,
        store: Any,
        evaluator: Any,
        run_dir: str,
    ) -> None:
        super().__init__(stacks_path)
        self._experiment, self._plan, self._name = experiment, plan, name
        self._store, self._evaluator, self._run_dir = store, evaluator, Path(run_dir)
        timeout_s = experiment.replay.timeout_seconds
        self._sampler = LastingSampler(plan, name, to_device, self._reporter, self._stop, timeout_s)
        self._newest: Policy | None = None  # published; holds a reference to the weights
        self._published: Any = None
        self._snapshot: Snapshot | None = None
        self._submitted: Any = None

    def connect(self, life: Life) -> None:
        self._sampler.connect(life)

    def disconnect(self) -> int | None:
        """Windows taken from replay; none while it is not known yet."""
        return self._sampler.disconnect()

    def work(self) -> None:
        experiment, plan = self._experiment, self._plan
        spec = make_envs(experiment).training.spec
        background = Background()
        states = OwnStates(self._run_dir / STATE / self._name, background)
        learner = Learner(experiment, plan, spec, self._name, self._run_dir / "reports")
        held = states.newest(jax.eval_shape(lambda: Learner.initial_state(experiment, spec, self._name)))
        if held is not None:
            learner.go_on(held)
        sampler = self._sampler
        sampler.open(spec.state_size + spec.action_size, learner.updates * plan.windows_per_update)

        def keep() -> None:
            part = snapshots.Part(self._run_dir, learner.updates, learner_role(self._name))
            if learner.updates not in plan.snapshot_updates or part.sealed:
                states.offer(learner.updates, learner.state)
                return
            began = time.monotonic()
            state = on_host(learner.state)
            background.write(snapshots.write_learner, part, state, time.monotonic() - began)

        try:
            learner.run(
                sample=sampler.sample,
                windows_inserted=sampler.windows_inserted,
                publish=self._publish if self._name == ACTIVE else lambda policy: None,
                snapshot=self._submit,
                keep=keep,
                reporter=self._reporter,
                should_stop=self._stop.is_set,
            )
        finally:
            sampler.close()
            background.wait()
        if learner.updates == plan.updates:
            states.keep(learner.updates, learner.state)
            checkpoint.save(self._run_dir / "checkpoints" / self._name, learner.state)

    def publish_again(self) -> None:
        """The store was lost, and with it the reference to the newest weights, which are here."""
        if self._newest is not None:
            self._store.publish.remote(self._newest)

    def submit_again(self, evaluator: Any) -> None:
        """The evaluator was lost, and perhaps the last snapshot with it."""
        self._evaluator, self._submitted = evaluator, None
        if self._snapshot is not None:
            self._submitted = evaluator.submit.remote(self._snapshot)

    def _publish(self, policy: Policy) -> None:
        if self._published is not None:  # one on its way at a time; where the store hangs, the newest is enough
            ray.wait([self._published], timeout=REMOTE_TIMEOUT_S)
        # In a list, or Ray would send the weights themselves.
        self._newest = Policy(policy.version, [ray.put(policy.params)])
        self._published = self._store.publish.remote(self._newest)

    def _submit(self, policy: Policy) -> None:
        if self._submitted is not None:  # one on its way at a time
            ray.wait([self._submitted], timeout=REMOTE_TIMEOUT_S)
        self._snapshot = Snapshot(self._name, policy, last=policy.version == self._plan.updates)
        self._submitted = self._evaluator.submit.remote(self._snapshot)


class EvaluatorActor(RoleActor):
    def __init__(self, stacks_path: str, experiment: Experiment, plan: Plan, finished: Collection[str]) -> None:
        """`finished`: learners whose last snapshot was evaluated in an earlier life."""
        super().__init__(stacks_path)
        self._experiment, self._plan, self._finished = experiment, plan, frozenset(finished)
        self._snapshots = SnapshotQueue()

    def submit(self, snapshot: Snapshot) -> None:
        self._snapshots.put(snapshot)

    def work(self) -> None:
        env = make_envs(self._experiment).evaluation
        evaluator = Evaluator(self._experiment, self._plan, env)
        evaluator.run(self._snapshots, self._reporter, self._stop.is_set, self._finished)


def to_device(columns: Columns) -> Columns:
    """A copy on the learner's device, finished when this returns: the sampler reuses its buffers."""
    return jax.block_until_ready(Columns(*(jnp.array(column, copy=True) for column in columns)))
