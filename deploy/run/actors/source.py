"""Actors of the roles that data come from: collectors, and feeders in their place."""

import threading
import time
from abc import abstractmethod
from collections.abc import Iterator
from itertools import takewhile
from pathlib import Path
from typing import Any

import jax
import numpy as np
import ray
from ray.exceptions import GetTimeoutError, ObjectLostError, RayActorError

from collector.collector import Collector, make_count
from collector.feeder import Feeder
from deploy.layout import STREAM
from deploy.recovery import snapshots
from deploy.recovery.restart_states import on_host
from deploy.run.actors.role import WritingActor
from shared.config import Experiment
from shared.envs.base import GoalEnv
from shared.envs.registry import make_envs
from shared.params import Policy
from shared.plan import Plan
from shared.position import Position, start_position
from shared.replay.audit import AuditLog
from shared.replay.codec import Columns
from shared.replay.reconnecting import ReconnectingInserter, RefillSplit, ServerIncarnation
from shared.replay.windows import WindowCount
from shared.roles import Role
from shared.stream.format import ShardSummary, describe, shard_folder
from shared.stream.read import open_stream
from shared.stream.shard import read_shard
from shared.stream.write import StreamWriter

REMOTE_TIMEOUT_S = 60.0  # for weights and snapshots on their way; they are there or their owner is gone


class SourceActor(WritingActor):
    """Where data come from: subclasses insert the unrolls of collector `index`."""

    def __init__(
        self, stacks_path: str, experiment: Experiment, plan: Plan, role: Role, reported: Position | None, run_dir: str
    ) -> None:
        """`reported`: the position that the driver has recorded of this role; none before its first row."""
        super().__init__(stacks_path, experiment, run_dir)
        self._plan, self._role, self._index = plan, role, int(role.id)
        self._reported = reported or start_position(experiment.collector.environments, cells=0)
        self._inserter = ReconnectingInserter(
            plan,
            self._index,
            experiment.collector.environments,
            self.past,
            self._reporter,
            self._stop,
            experiment.replay.timeout_seconds,
            AuditLog(self._run_dir / "audit" / f"source-{self._index}.keys") if experiment.replay.audit else None,
            self._paused,
        )
        self._ready = threading.Event()
        self._to_come = list(plan.snapshot_updates)
        self._reporter.sizes["queue/unconfirmed"] = lambda: self._inserter.in_flight

    def open(self) -> None:
        """Before `past` is asked the first time."""

    @abstractmethod
    def past(self, first: int) -> Iterator[tuple[int, Columns]]:
        """The unrolls from number `first` on that are in the stream, as far as this source has come."""

    @abstractmethod
    def provide(self, env: GoalEnv, position: Position | None) -> None:
        """Inserts all that is asked for, or ends when `self._stop` is set. `position`: where the last life ended."""

    def connect(self, life: ServerIncarnation) -> None:
        self._inserter.connect(life)

    def disconnect(self) -> RefillSplit | None:
        """See `ReconnectingInserter`; none while it is not known yet."""
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
        return [snapshots.Part(self._run_dir, updates, self._role) for updates in passed]

    def _position(self, env: GoalEnv) -> Position | None:
        """The position at which the predecessor ended: as reported, and advanced by the rest of its stream."""
        plan, reported = self._plan, self._reported
        count = jax.jit(make_count(env))
        position = start_position(self._experiment.collector.environments, env.spec.num_cells)
        last = reported.windows.number
        read: list[WindowCount] = []
        before = 0  # windows among the unrolls read here, up to the reported position
        for number, columns in self.past(max(last - plan.stored_unrolls - plan.chunks_per_window, 0)):
            visits = count(columns.floats, columns.ints) if number > last else np.zeros_like(position.visits)
            position = position.after(number, columns.ints, visits, plan.chunks_per_window)
            read.append(position.windows)
            if number <= last:
                before, position = position.windows.made, position._replace(unrolls=0)
        if not read:
            return None
        missing = reported.windows.made - before  # made from unrolls that the stream no longer holds
        for windows in read:
            self._inserter.register_windows(windows._replace(made=max(windows.made + missing, 0)))
        return Position(
            windows=position.windows._replace(made=position.windows.made + missing),
            unrolls=reported.unrolls + position.unrolls,
            visits=position.visits + (reported.visits if reported.unrolls else 0),
        )


class CollectorActor(SourceActor):
    def __init__(
        self,
        stacks_path: str,
        experiment: Experiment,
        plan: Plan,
        role: Role,
        reported: Position | None,
        run_dir: str,
        store: Any,
        snapshot: str | None,
    ) -> None:
        """`snapshot`: the part that it goes on from, in the same life; none: a new one."""
        super().__init__(stacks_path, experiment, plan, role, reported, run_dir)
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
            collector.resume(
                snapshots.read_state(folder, jax.eval_shape(lambda: collector.state)), snapshots.read_position(folder)
            )
        self._pass_by(collector.position)

        def insert(number: int, columns: Columns) -> None:
            self._wait_for_room()
            # Written first: replay never holds what could not be put in again.
            self._writer.write(columns, number)
            self._inserter.register_windows(collector.position.windows)
            self._inserter.insert(number, columns)
            for part in self._pass_by(collector.position):
                self._wait_for_room()
                began = time.monotonic()
                part.begin()
                snapshots.link_stream(part, self._writer.cut(), shard_folder(self._stream, self._index))
                state = on_host(collector.state)
                pause_s = time.monotonic() - began
                self._background.write(snapshots.write_source, part, collector.position, state, pause_s)

        collector.run(self._pull, insert, lambda: self._inserter.room, self._reporter, self._stop.is_set)
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
        self._fed = self._reported.windows.number

    def past(self, first: int) -> Iterator[tuple[int, Columns]]:
        return takewhile(lambda unroll: unroll[0] <= self._fed, self._from(first))

    def provide(self, env: GoalEnv, position: Position | None) -> None:
        feeder = Feeder(self._experiment, self._plan, env, self._from(self._fed + 1), position)
        self._pass_by(feeder.position)

        def insert(number: int, columns: Columns) -> None:
            self._fed = number
            self._inserter.register_windows(feeder.position.windows)
            self._inserter.insert(number, columns)
            for part in self._pass_by(feeder.position):
                part.begin()
                self._background.write(snapshots.write_source, part, feeder.position, None, 0.0)

        feeder.run(insert, self._reporter, self._stop.is_set)

    def _from(self, first: int) -> Iterator[tuple[int, Columns]]:
        return self._shard.shard(self._index, first)
