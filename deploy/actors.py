"""Ray's side of every role: a process, its clients, and nothing else. The roles themselves never import Ray.

Each actor works in one thread and answers the driver's polls in another, so that an answer is a heartbeat.
"""

import os
import threading
import traceback
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import ray

from collector.collector import Collector
from collector.evaluator import Evaluator, Snapshot, SnapshotQueue
from collector.feeder import Feeder
from learner.learner import Learner
from shared import checkpoint
from shared.config import ACTIVE, Experiment
from shared.envs.base import GoalEnv
from shared.envs.registry import make_envs
from shared.metrics import Report, Reporter
from shared.params import Policy
from shared.plan import Plan
from shared.replay.codec import Columns
from shared.replay.errors import ReplayStopped
from shared.replay.info import ReplayMonitor
from shared.replay.insert import Inserter
from shared.replay.sample import Sampler
from shared.stream.format import ShardSummary, describe
from shared.stream.read import open_stream
from shared.stream.write import StreamWriter, recording

REMOTE_TIMEOUT_S = 60.0  # for weights and snapshots on their way; they are there or their owner is gone


class RoleActor(ABC):
    """A role's process. Subclasses say what the work is."""

    def __init__(self) -> None:
        self._reporter = Reporter()
        self._stop = threading.Event()
        self._done = False
        self._error = self._details = ""
        self._address = ""

    def pid(self) -> int:
        return os.getpid()

    def read(self, path: str) -> str | None:
        """What a file holds as this node sees it; none where there is no such file."""
        try:
            return Path(path).read_text(encoding="utf-8")
        except OSError:
            return None

    def start(self, address: str) -> None:
        """`address` of the replay server: it starts while this process does, so it comes late."""
        self._address = address
        threading.Thread(target=self._main, name="work", daemon=True).start()

    def poll(self) -> Report:
        return self._reporter.drain(self._done, self._error, self._details)

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
            self._details = traceback.format_exc()
            self._error = " ".join(f"{type(error).__name__}: {error}".split())
        self._done = True


class SourceActor(RoleActor):
    """Where data come from: subclasses insert the unrolls of collector `index`."""

    def __init__(self, experiment: Experiment, plan: Plan, index: int, tables: Sequence[str]) -> None:
        super().__init__()
        self._experiment, self._plan, self._index, self._tables = experiment, plan, index, tables

    @abstractmethod
    def provide(self, env: GoalEnv, insert: Callable[[Columns], object]) -> None:
        """Inserts all that is asked for, or ends when `self._stop` is set."""

    def work(self) -> None:
        env = make_envs(self._experiment).training
        timeout_s = self._experiment.replay.timeout_seconds
        inserter = Inserter(
            self._address,
            self._tables,
            self._plan.chunks_per_window,
            self._experiment.collector.environments,
            timeout_s=timeout_s,
            should_stop=self._stop,
        )
        try:
            self.provide(env, inserter.insert)
            with self._reporter.waiting("replay full"):
                inserter.flush(timeout_s)
        finally:
            inserter.close()


class CollectorActor(SourceActor):
    def __init__(
        self, experiment: Experiment, plan: Plan, index: int, tables: Sequence[str], store: Any, stream_path: str
    ) -> None:
        super().__init__(experiment, plan, index, tables)
        self._store, self._stream_path = store, stream_path
        self._shard: ShardSummary | None = None

    def shard(self) -> ShardSummary | None:
        """What was recorded, once the work is done; none if it was not to be, or was stopped."""
        return self._shard

    def provide(self, env: GoalEnv, insert: Callable[[Columns], object]) -> None:
        experiment, plan = self._experiment, self._plan
        collector = Collector(experiment, plan, env, self._index)
        if not experiment.record:
            collector.run(self._pull, insert, self._reporter, self._stop.is_set)
            return
        writer = StreamWriter(Path(self._stream_path), self._index, describe(experiment, plan, env.spec))
        record = recording(insert, writer)
        collector.run(self._pull, record, self._reporter, self._stop.is_set)
        if collector.unrolls == plan.unrolls:
            self._shard = writer.close()

    def _pull(self, above: int) -> Policy | None:
        newest = ray.get(self._store.newest.remote(above), timeout=REMOTE_TIMEOUT_S)
        if newest is None:
            return None
        return Policy(newest.version, ray.get(newest.params[0], timeout=REMOTE_TIMEOUT_S))


class FeederActor(SourceActor):
    """A shard of the experiment's stream in a collector's place."""

    def provide(self, env: GoalEnv, insert: Callable[[Columns], object]) -> None:
        stream = open_stream(Path(str(self._experiment.stream)), verify=False)  # the driver has
        feeder = Feeder(self._experiment, self._plan, env, stream.shard(self._index))
        feeder.run(insert, self._reporter, self._stop.is_set)


class LearnerActor(RoleActor):
    def __init__(
        self,
        experiment: Experiment,
        plan: Plan,
        name: str,
        table: str,
        store: Any,
        evaluator: Any,
        checkpoint_path: str,
    ) -> None:
        super().__init__()
        self._experiment, self._plan, self._name = experiment, plan, name
        self._table = table
        self._store, self._evaluator = store, evaluator
        self._checkpoint_path = checkpoint_path
        self._inserted = 0
        self._published: Any = None

    def work(self) -> None:
        experiment, plan = self._experiment, self._plan
        spec = make_envs(experiment).training.spec
        learner = Learner(experiment, plan, spec, self._name)
        monitor = ReplayMonitor(self._address, [self._table])
        sampler = Sampler(
            self._address,
            self._table,
            plan.windows_per_update,
            plan.window_rows,
            spec.state_size + spec.action_size,
            to_device,
            timeout_s=experiment.replay.timeout_seconds,
            max_windows=plan.updates * plan.windows_per_update,
        )
        try:
            learner.run(
                sample=lambda: sampler.sample(self._stop)[0],
                windows_inserted=lambda: self._windows_inserted(monitor),
                publish=self._publish if self._name == ACTIVE else lambda policy: None,
                snapshot=self._snapshot,
                reporter=self._reporter,
                should_stop=self._stop.is_set,
            )
        finally:
            sampler.close()
            monitor.close()
        if learner.updates == plan.updates:
            checkpoint.save(Path(self._checkpoint_path), learner.state)

    def _windows_inserted(self, monitor: ReplayMonitor) -> int:
        info = monitor.poll()
        if info is not None:  # else it missed one poll: the last count is a little old
            self._inserted = info.tables[self._table].inserted
        return self._inserted

    def _publish(self, policy: Policy) -> None:
        if self._published is not None:  # one on its way at a time
            ray.get(self._published, timeout=REMOTE_TIMEOUT_S)
        reference = ray.put(policy.params)
        # In a list, or Ray would send the weights themselves.
        self._published = self._store.publish.remote(Policy(policy.version, [reference]))

    def _snapshot(self, policy: Policy) -> None:
        snapshot = Snapshot(self._name, policy, last=policy.version == self._plan.updates)
        ray.get(self._evaluator.submit.remote(snapshot), timeout=REMOTE_TIMEOUT_S)


class EvaluatorActor(RoleActor):
    def __init__(self, experiment: Experiment, plan: Plan) -> None:
        super().__init__()
        self._experiment, self._plan = experiment, plan
        self._snapshots = SnapshotQueue()

    def submit(self, snapshot: Snapshot) -> None:
        self._snapshots.put(snapshot)

    def work(self) -> None:
        env = make_envs(self._experiment).evaluation
        evaluator = Evaluator(self._experiment, self._plan, env)
        evaluator.run(self._snapshots, self._reporter, self._stop.is_set)


def to_device(columns: Columns) -> Columns:
    """A copy on the learner's device, finished when this returns: the sampler reuses its buffers."""
    return jax.block_until_ready(Columns(*(jnp.array(column, copy=True) for column in columns)))
