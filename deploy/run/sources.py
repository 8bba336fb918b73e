"""Sources of unrolls with what they keep on disk: the same in a process of their own and inside one process.

A collector writes every unroll to its stream before it inserts it, so that replay never holds what could not be
inserted again. Both kinds of source write their part of each snapshot.
"""

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from functools import partial
from itertools import takewhile
from pathlib import Path

import jax
import numpy as np

from collector.collector import Collector, make_count
from collector.feeder import Feeder
from deploy.layout import STREAM
from deploy.recovery import snapshots
from deploy.recovery.background import on_host
from shared.config import Experiment
from shared.envs.base import GoalEnv
from shared.metrics import Reporter
from shared.params import Policy
from shared.plan import Plan
from shared.position import Position, start_position
from shared.replay.codec import Columns
from shared.replay.windows import WindowCount
from shared.roles import Kind, Role
from shared.stream.format import ShardSummary, describe, shard_folder
from shared.stream.read import open_stream
from shared.stream.shard import read_shard
from shared.stream.write import StreamWriter

Insert = Callable[[int, Columns], None]


class Source(ABC):
    """A collector or a feeder, its stream, and its parts of snapshots."""

    def __init__(self, experiment: Experiment, plan: Plan, env: GoalEnv, role: Role, reported: Position | None) -> None:
        """`reported`: the position that the driver has recorded of `role`; none before its first row."""
        self.experiment, self.plan, self.env, self.role = experiment, plan, env, role
        self.index = int(role.id)
        self.reported = reported or start_position(experiment.collector.environments, env.spec.num_cells)

    @property
    @abstractmethod
    def position(self) -> Position:
        """The position after the newest unroll."""

    def recover(self, register: Callable[[WindowCount], None]) -> Position | None:
        """Returns the position at which the predecessor ended: as reported, and advanced by the rest of its stream.

        `register` gets the windows after each unroll that is read. None is returned if the stream is empty.
        """
        plan, reported = self.plan, self.reported
        count = jax.jit(make_count(self.env))
        position = start_position(self.experiment.collector.environments, self.env.spec.num_cells)
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
            register(windows._replace(made=max(windows.made + missing, 0)))
        return Position(
            windows=position.windows._replace(made=position.windows.made + missing),
            unrolls=reported.unrolls + position.unrolls,
            visits=reported.visits + position.visits,
        )

    @abstractmethod
    def start(self, position: Position | None, snapshot: Path | None = None) -> None:
        """Prepares `run`.

        Args:
            position: the position at which an earlier incarnation ended; none: the source begins.
            snapshot: a collector's part of the snapshot from which the run resumes; it brings the environments.
        """

    @abstractmethod
    def past(self, first: int) -> Iterator[tuple[int, Columns]]:
        """Yields `(number, columns)` of the source's unrolls so far, from number `first` on."""

    @abstractmethod
    def run(
        self,
        pull: Callable[[int], Policy | None],
        insert: Insert,
        room: Callable[[], bool],
        reporter: Reporter,
        should_stop: Callable[[], bool],
    ) -> None:
        """Inserts all unrolls of the plan; arguments as in `Collector.run`."""

    @abstractmethod
    def begin_part(self, part: snapshots.Part) -> Callable[[], None]:
        """Takes the source's part of a snapshot as it is now; the function returned writes the rest of it."""

    @abstractmethod
    def close(self) -> ShardSummary | None:
        """Completes what the source has written; returns its shard of the run's stream."""


class CollectorSource(Source):
    """A collector and its shard of the run's stream."""

    def __init__(
        self,
        experiment: Experiment,
        plan: Plan,
        env: GoalEnv,
        role: Role,
        reported: Position | None,
        run_dir: Path,
        wait_for_room: Callable[[], None],
    ) -> None:
        """`wait_for_room()` waits while the disk of `run_dir` is short of room; see `Source` for the rest."""
        super().__init__(experiment, plan, env, role, reported)
        self._wait_for_room = wait_for_room
        self._stream = run_dir / STREAM
        self._description = describe(experiment, plan, env.spec)
        keep = None if experiment.record else plan.stored_unrolls
        self._writer = StreamWriter(self._stream, self.index, self._description, keep_unrolls=keep)
        self._shard = shard_folder(self._stream, self.index)
        self._collector: Collector | None = None

    @property
    def _started(self) -> Collector:
        assert self._collector is not None, "run follows start"
        return self._collector

    @property
    def position(self) -> Position:
        return self._started.position

    def start(self, position: Position | None, snapshot: Path | None = None) -> None:
        self._collector = collector = Collector(self.experiment, self.plan, self.env, self.index, position)
        if snapshot is not None:
            state = snapshots.read_state(snapshot, jax.eval_shape(lambda: collector.state))
            collector.resume(state, snapshots.read_position(snapshot))

    def past(self, first: int) -> Iterator[tuple[int, Columns]]:
        return read_shard(self._shard, self._description, first)

    def run(
        self,
        pull: Callable[[int], Policy | None],
        insert: Insert,
        room: Callable[[], bool],
        reporter: Reporter,
        should_stop: Callable[[], bool],
    ) -> None:
        def write_and_insert(number: int, columns: Columns) -> None:
            self._wait_for_room()
            self._writer.write(columns, number)
            insert(number, columns)

        self._started.run(pull, write_and_insert, room, reporter, should_stop)

    def begin_part(self, part: snapshots.Part) -> Callable[[], None]:
        self._wait_for_room()
        began = time.monotonic()
        part.begin()
        snapshots.link_stream(part, self._writer.cut(), self._shard)
        position, state = self.position, on_host(self._started.state)
        return partial(snapshots.write_source, part, position, state, time.monotonic() - began)

    def close(self) -> ShardSummary:
        return self._writer.close()


class FeederSource(Source):
    """A feeder of one shard of the recorded stream that the experiment names."""

    def __init__(self, experiment: Experiment, plan: Plan, env: GoalEnv, role: Role, reported: Position | None) -> None:
        super().__init__(experiment, plan, env, role, reported)
        self._stream = open_stream(Path(str(experiment.stream)), verify=False)  # the command has verified it
        self._feeder: Feeder | None = None
        self._fed = self.reported.windows.number

    @property
    def position(self) -> Position:
        assert self._feeder is not None, "run follows start"
        return self._feeder.position

    def start(self, position: Position | None, snapshot: Path | None = None) -> None:
        unrolls = self._stream.shard(self.index, self._fed + 1)
        self._feeder = Feeder(self.experiment, self.plan, self.env, unrolls, position)

    def past(self, first: int) -> Iterator[tuple[int, Columns]]:
        return takewhile(lambda unroll: unroll[0] <= self._fed, self._stream.shard(self.index, first))

    def run(
        self,
        pull: Callable[[int], Policy | None],
        insert: Insert,
        room: Callable[[], bool],
        reporter: Reporter,
        should_stop: Callable[[], bool],
    ) -> None:
        def advance_and_insert(number: int, columns: Columns) -> None:
            self._fed = number
            insert(number, columns)

        assert self._feeder is not None, "run follows start"
        self._feeder.run(advance_and_insert, reporter, should_stop)

    def begin_part(self, part: snapshots.Part) -> Callable[[], None]:
        part.begin()
        return partial(snapshots.write_source, part, self.position, None, 0.0)

    def close(self) -> None:
        return None


def make_source(
    experiment: Experiment,
    plan: Plan,
    env: GoalEnv,
    role: Role,
    reported: Position | None,
    run_dir: Path,
    wait_for_room: Callable[[], None],
) -> Source:
    """Returns the source that fills `role`; see `CollectorSource` for the arguments."""
    if role.kind is Kind.FEEDER:
        return FeederSource(experiment, plan, env, role, reported)
    return CollectorSource(experiment, plan, env, role, reported, run_dir, wait_for_room)
