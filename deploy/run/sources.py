"""Sources of unrolls with what they keep on disk: the same in a process of their own and inside one process.

A collector writes every unroll to its stream before it inserts it, so that replay never holds what could not be
inserted again. Both kinds of source write their part of each snapshot.
"""

import time
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
from learner.acting import collecting_policy
from shared.config import Experiment
from shared.envs.base import GoalEnv
from shared.metrics import Reporter
from shared.params import Policy
from shared.plan import Plan
from shared.position import Position, start_position
from shared.replay.codec import Columns, add_ends
from shared.replay.windows import WindowCount
from shared.roles import Kind, Role
from shared.stream.format import ShardSummary, describe, shard_folder
from shared.stream.read import open_stream
from shared.stream.shard import read_shard
from shared.stream.write import StreamWriter


class Source:
    """A collector with its shard of the run's stream, or a feeder with its shard of a recorded stream."""

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
        """Opens the shard; `start` must come before `run`.

        Args:
            reported: the position that the driver has recorded of `role`; none before its first row.
            wait_for_room: waits while the disk of `run_dir` is short of room.
        """
        self.role, self.index = role, int(role.id)
        self._experiment, self._plan, self._env, self._wait_for_room = experiment, plan, env, wait_for_room
        self._reported = reported or start_position(experiment.collector.environments, env.spec.num_cells)
        self.position = self._reported
        """The position after the newest unroll."""
        self._writer: StreamWriter | None = None
        self._closed: ShardSummary | None = None
        if role.kind is Kind.FEEDER:
            self._recorded = open_stream(Path(str(experiment.stream)), verify=False)  # the command has verified it
            return
        self._description = describe(experiment, plan, env.spec)
        keep = None if experiment.record else plan.stored_unrolls
        self._writer = StreamWriter(run_dir / STREAM, self.index, self._description, keep_unrolls=keep)
        self._shard = shard_folder(run_dir / STREAM, self.index)

    def past(self, first: int) -> Iterator[tuple[int, Columns]]:
        """Yields `(number, columns)` of the source's unrolls so far, from number `first` on."""
        if self._writer is not None:
            return read_shard(self._shard, self._description, first)
        fed = self.position.windows.number
        return takewhile(lambda unroll: unroll[0] <= fed, self._recorded_unrolls(first))

    def _recorded_unrolls(self, first: int) -> Iterator[tuple[int, Columns]]:
        recorded = self._recorded
        for number, columns in recorded.shard(self.index, first):
            has_ends = recorded.description.has_ends
            yield number, columns if has_ends else add_ends(columns, self._env.spec.goal_size)

    def recover(self, register: Callable[[WindowCount], None]) -> Position | None:
        """Returns the position at which the predecessor ended: as reported, and advanced by the rest of its stream.

        `register` gets the windows after each unroll that is read. None is returned if the stream is empty.
        """
        plan, reported = self._plan, self._reported
        count = jax.jit(make_count(self._env))
        position = start_position(self._experiment.collector.environments, self._env.spec.num_cells)
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

    def start(self, position: Position | None, snapshot: Path | None = None) -> None:
        """Prepares `run`.

        Args:
            position: the position at which an earlier incarnation ended; none: the source begins.
            snapshot: the role's part of the snapshot from which the run resumes; a collector gets its environments.
        """
        if self._writer is None:
            first = position.windows.number + 1 if position else 0
            unrolls = self._recorded_unrolls(first)
            self._loop: Collector | Feeder = Feeder(self._experiment, self._plan, self._env, unrolls, position)
        else:
            policy = collecting_policy(self._experiment, self._env.spec)
            self._loop = collector = Collector(self._experiment, self._plan, self._env, self.index, policy, position)
            if snapshot is not None:
                state = snapshots.read_state(snapshot, jax.eval_shape(lambda: collector.state))
                collector.resume(state, snapshots.read_position(snapshot))
        self.position = self._loop.position

    def run(
        self,
        pull: Callable[[int], Policy | None],
        insert: Callable[[int, Columns], None],
        room: Callable[[], bool],
        reporter: Reporter,
        should_stop: Callable[[], bool],
    ) -> None:
        """Inserts all unrolls of the plan; see `Collector.run`."""

        def write_and_insert(number: int, columns: Columns) -> None:
            if self._writer is not None:
                self._wait_for_room()
                self._writer.write(columns, number)
            self.position = self._loop.position
            insert(number, columns)

        if isinstance(self._loop, Feeder):
            self._loop.run(write_and_insert, reporter, should_stop)
        else:
            self._loop.run(pull, write_and_insert, room, reporter, should_stop)

    def begin_part(self, part: snapshots.Part) -> Callable[[], None]:
        """Takes the source's part of a snapshot as it is now; the function returned writes the rest of it."""
        if self._writer is None or isinstance(self._loop, Feeder):
            part.begin()
            return partial(snapshots.write_source, part, self.position, None, 0.0)
        self._wait_for_room()
        began = time.monotonic()
        part.begin()
        snapshots.link_stream(part, self._closed or self._writer.cut(), self._shard)
        state = on_host(self._loop.state)
        return partial(snapshots.write_source, part, self.position, state, time.monotonic() - began)

    def close(self) -> ShardSummary | None:
        """Completes the shard that a collector wrote, and returns it; parts of snapshots may still follow."""
        self._closed = self._writer.close() if self._writer is not None else None
        return self._closed
