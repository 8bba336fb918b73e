"""A whole run in one process, synchronous and deterministic: no Ray, no Reverb.

The oracle that the distributed path is tested against, and all that a small machine needs.
"""

import time
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import chain, takewhile
from pathlib import Path
from typing import Any

import jax
import numpy as np

from collector.collector import Collected, Collector
from collector.evaluator import Evaluator
from collector.feeder import Feeder
from deploy.mode import Mode
from deploy.recovery import snapshots
from deploy.recovery.restart_states import BackgroundWriter, on_host
from deploy.run.record import RunRecord
from deploy.run.snapshot_taker import SnapshotTaker
from learner.learner import Learner
from shared import checkpoint
from shared.config import ACTIVE
from shared.disk import DISK_SPACE, Disk, DiskNotices
from shared.envs.base import GoalEnv
from shared.envs.registry import Envs
from shared.metrics import Reporter
from shared.position import Position
from shared.replay.codec import Columns
from shared.replay.ring import WindowRing
from shared.roles import EVALUATOR, REPLAY, Role, learner_role, source_roles
from shared.stream.format import describe, shard_folder
from shared.stream.read import open_stream
from shared.stream.shard import read_shard
from shared.stream.write import StreamWriter, write_manifest
from shared.types import Metrics


class _Collectors:
    """Every collector, one after the other, and their streams: recordings, or tails for snapshots."""

    def __init__(self, record: RunRecord, env: GoalEnv) -> None:
        experiment, plan = record.experiment, record.plan
        self.roles = source_roles(experiment)
        self._directory, self._description = record.stream_dir, describe(experiment, plan, env.spec)
        self._recorded = experiment.record
        self._collectors = [Collector(experiment, plan, env, index) for index in range(len(self.roles))]
        if record.snapshot:
            for role, collector in zip(self.roles, self._collectors, strict=True):
                part = record.snapshot.folder / str(role)
                state = snapshots.read_state(part, jax.eval_shape(lambda collector=collector: collector.state))
                collector.resume(state, snapshots.read_position(part))
        keep = None if self._recorded else plan.stored_unrolls
        self._writers = [
            StreamWriter(self._directory, index, self._description, keep_unrolls=keep)
            for index in range(len(self.roles))
        ]

    @property
    def positions(self) -> list[Position]:
        return [collector.position for collector in self._collectors]

    @property
    def done(self) -> bool:
        return all(collector.done for collector in self._collectors)

    def past(self, index: int, first: int) -> Iterator[tuple[int, Columns]]:
        """The unrolls of collector `index` so far, from number `first` on."""
        return read_shard(shard_folder(self._directory, index), self._description, first)

    def unroll(self, learners: Mapping[str, Learner]) -> Iterator[tuple[int, Role, Collected]]:
        """One unroll of each that is not done, with the collector learner's policy: index, role, unroll."""
        policy = learners[ACTIVE].policy()
        lag = {"policy_lag": learners[ACTIVE].updates - policy.version}
        for index, (role, collector) in enumerate(zip(self.roles, self._collectors, strict=True)):
            if collector.done:
                continue
            collected = collector.collect_on_device(policy)
            self._writers[index].write(Columns(*jax.device_get(collected.columns)), collected.number)
            yield index, role, collected._replace(metrics=collected.metrics | lag)

    def begin_part(self, index: int, part: snapshots.Part) -> Callable[[], None]:
        """Takes it as it is now; the rest of the writing is what is returned."""
        began, collector = time.monotonic(), self._collectors[index]
        part.begin()
        snapshots.link_stream(part, self._writers[index].cut(), shard_folder(self._directory, index))
        position, state = collector.position, on_host(collector.state)
        return partial(snapshots.write_source, part, position, state, time.monotonic() - began)

    def finish(self) -> None:
        shards = [writer.close() for writer in self._writers]
        if self._recorded:
            write_manifest(self._directory, self._description, shards)


class _Stream:
    """Every shard of a recorded stream, one after the other."""

    def __init__(self, record: RunRecord, env: GoalEnv) -> None:
        experiment, plan = record.experiment, record.plan
        self.roles = source_roles(experiment)
        self._stream = open_stream(Path(str(experiment.stream)), verify=False)  # which was done before the start
        parts = [record.snapshot.folder / str(role) if record.snapshot else None for role in self.roles]
        begun = [snapshots.read_position(part) if part else None for part in parts]
        self._feeders = [
            Feeder(experiment, plan, env, self._from(index, position.windows.number + 1 if position else 0), position)
            for index, position in enumerate(begun)
        ]

    @property
    def positions(self) -> list[Position]:
        return [feeder.position for feeder in self._feeders]

    @property
    def done(self) -> bool:
        return all(feeder.done for feeder in self._feeders)

    def past(self, index: int, first: int) -> Iterator[tuple[int, Columns]]:
        """The unrolls of shard `index` so far, from number `first` on."""
        fed = self._feeders[index].position.windows.number
        return takewhile(lambda unroll: unroll[0] <= fed, self._from(index, first))

    def unroll(self, learners: Mapping[str, Learner]) -> Iterator[tuple[int, Role, Collected]]:
        """The next unroll of each that is not done: index, role, unroll."""
        for index, (role, feeder) in enumerate(zip(self.roles, self._feeders, strict=True)):
            if not feeder.done:
                yield index, role, feeder.feed()

    def begin_part(self, index: int, part: snapshots.Part) -> Callable[[], None]:
        """Takes it as it is now; the rest of the writing is what is returned."""
        part.begin()
        return partial(snapshots.write_source, part, self._feeders[index].position, None, 0.0)

    def finish(self) -> None:
        pass  # nothing was written

    def _from(self, index: int, first: int) -> Iterator[tuple[int, Columns]]:
        return self._stream.shard(index, first)


def _call_all(calls: Sequence[Callable[[], None]]) -> None:
    for call in calls:
        call()


def _groups(learners: Mapping[str, Learner], mode: Mode) -> list[list[str]]:
    """Who trains as one computation with whom."""
    groups: dict[Any, list[str]] = {}
    for name, learner in learners.items():
        groups.setdefault(learner.kind if mode is Mode.TOGETHER else name, []).append(name)
    return list(groups.values())


def _at_once(learners: int) -> int:
    """How many train at the same time. On two cores three take two thirds of the time of one after the other.

    An accelerator runs one after the other anyway, and learners that span several devices would wait for each other.
    """
    return learners if jax.default_backend() == "cpu" and jax.local_device_count() == 1 else 1


class InProcessRun:
    """Collectors or a stream, a ring of windows, all learners and the evaluator, taking turns."""

    def __init__(
        self,
        record: RunRecord,
        envs: Envs,
        say: Callable[[str], None] = lambda text: None,
        mode: Mode = Mode.IN_PROCESS,
    ) -> None:
        """`say` gets what a person has to know while the run goes on: that it waits for room on its disk.

        `mode`: TOGETHER takes this process's one device, and equals IN_PROCESS but for rounding.
        """
        experiment, plan = record.experiment, record.plan
        self.record = record
        self._disk = Disk(record.run_dir, experiment.supervision.disk_reserve_gb)
        self._teller = DiskNotices(self._disk, say)
        training = envs.training
        self._source = _Stream(record, training) if experiment.stream else _Collectors(record, training)
        names, reports = list(experiment.all_learners), record.run_dir / "reports"
        self._threads = ThreadPoolExecutor(_at_once(len(names)), thread_name_prefix="learner")
        made = self._threads.map(lambda name: Learner(experiment, plan, training.spec, name, reports), names)
        self.learners = dict(zip(names, made, strict=True))
        self._groups = _groups(self.learners, mode)
        row_size = training.spec.state_size + training.spec.action_size
        self._ring = WindowRing(plan, experiment.collector.actors, row_size)
        self._evaluator = Evaluator(experiment, plan, envs.evaluation)
        self._reporters: dict[Role, Reporter] = {}
        self._rngs = {
            name: np.random.default_rng([experiment.seed, zlib.crc32(name.encode())]) for name in self.learners
        }
        self._background = BackgroundWriter()
        self._being_written: int | None = None  # updates of a snapshot
        self._taker = SnapshotTaker(record, mode)
        if record.snapshot:
            self._resume(record.snapshot.folder)

    def run(self, on_progress: Callable[[], None] = lambda: None) -> None:
        """Spends the budget, then writes every learner's checkpoint."""
        try:
            self._spend_budget(on_progress)
            self._finish_snapshot()
        finally:
            self._threads.shutdown(cancel_futures=True)
            self._background.wait()  # who goes on in this folder must not meet its writer
        self._wait_for_room()
        for name, learner in self.learners.items():
            checkpoint.save(self.record.run_dir / "checkpoints" / name, learner.state)
        self.record.remove_backups()

    def _spend_budget(self, on_progress: Callable[[], None]) -> None:
        untrained = self._threads.map(self._evaluate, () if self.record.snapshot else self.learners)
        while not self._source.done:
            self._insert()
            for evaluation in untrained:  # by the first turn, which inserts while this is compiled
                self._report(EVALUATOR, evaluation, evaluation["updates"])
            self._train(on_progress)
            self._take_snapshot()
            on_progress()
        self._source.finish()

    @property
    def windows(self) -> int:
        """Inserted so far."""
        return sum(position.windows.made for position in self._source.positions)

    def _insert(self) -> None:
        self._wait_for_room()
        for index, role, collected in self._source.unroll(self.learners):
            self._ring.insert(index, collected.number, collected.columns)
            self._report(role, collected.metrics, collected.number)
            self.record.move(role, self._source.positions[index])
        counts = {f"{name}/inserted": self.windows for name in self.learners}
        steps = self.record.env_steps
        self._report(REPLAY, {"env_steps": steps} | counts, steps)

    def _train(self, on_progress: Callable[[], None]) -> None:
        """The updates owed by now, of all learners at once. What they tell is written in the learners' order."""
        owed = self.record.plan.updates_after(self.windows)
        while min(learner.updates for learner in self.learners.values()) < owed:
            updated = dict(chain.from_iterable(self._threads.map(self._update, self._groups)))
            for name in self.learners:
                row, evaluation = updated[name]
                self._report(learner_role(name), row, row["updates"])
                if evaluation:
                    self._report(EVALUATOR, evaluation, evaluation["updates"])
                on_progress()

    def _update(self, names: Sequence[str]) -> list[tuple[str, tuple[Metrics, Metrics | None]]]:
        """One update of each learner of a group, and its evaluation where one is planned after it."""
        plan, learners = self.record.plan, [self.learners[name] for name in names]
        windows = [self._ring.sample(plan.windows_per_update, self._rngs[name]) for name in names]
        rows = Learner.update_together(learners, windows) if len(names) > 1 else [learners[0].update(windows[0])]
        return [
            (name, (learner.describe(row, self.windows), self._planned_evaluation(name)))
            for name, learner, row in zip(names, learners, rows, strict=True)
        ]

    def _planned_evaluation(self, name: str) -> Metrics | None:
        planned = self.learners[name].updates in self.record.plan.evaluation_updates
        return self._evaluate(name) if planned else None

    def _evaluate(self, name: str) -> Metrics:
        return self._evaluator.evaluate(name, self.learners[name].policy())

    def _take_snapshot(self) -> None:
        """After an unroll, once a planned count of updates is reached; all learners have made equally many."""
        if not self._background.busy:
            self._finish_snapshot()
        updates = min(learner.updates for learner in self.learners.values())
        if not self._taker.due(updates):
            return
        self._wait_for_room()
        self._finish_snapshot()
        run_dir = self.record.run_dir
        rest: list[Callable[[], None]] = []
        for name, learner in self.learners.items():
            began, state = time.monotonic(), on_host(learner.state)
            part = snapshots.Part(run_dir, updates, learner_role(name))
            rest.append(partial(snapshots.write_learner, part, state, time.monotonic() - began))
        for index, role in enumerate(self._source.roles):
            rest.append(self._source.begin_part(index, snapshots.Part(run_dir, updates, role)))
        rngs = {name: rng.bit_generator.state for name, rng in self._rngs.items()}
        rest.append(partial(snapshots.write_driver, snapshots.Part(run_dir, updates, snapshots.DRIVER), rngs))
        self._background.write(_call_all, rest)
        self._being_written = updates

    def _finish_snapshot(self) -> None:
        """The one being written, if any; waits for it. Raises what went wrong with it."""
        updates, self._being_written = self._being_written, None
        self._background.wait()
        if updates is not None:
            self._taker.finish(updates)

    def _resume(self, folder: Path) -> None:
        """Everything as it was after the snapshot in `folder`, equal to the bit."""
        for name, learner in self.learners.items():
            like = jax.eval_shape(lambda learner=learner: learner.state)
            learner.resume(snapshots.read_state(folder / str(learner_role(name)), like))
        for name, state in snapshots.read_driver(folder / snapshots.DRIVER).items():
            self._rngs[name].bit_generator.state = state
        for index, position in enumerate(self._source.positions):
            first = max(position.windows.number - 2 * self.record.plan.stored_unrolls, 0)
            for number, columns in self._source.past(index, first):
                self._ring.insert(index, number, columns)

    def _wait_for_room(self) -> None:
        """All roles wait; the first source's rows tell how long."""
        if not self._disk.short:
            return
        self._teller.tell({"the run": DISK_SPACE})
        self._disk.wait_for_room(self._reporter(self._source.roles[0]), should_stop=lambda: False)
        self._teller.tell({"the run": ""})

    def _reporter(self, role: Role) -> Reporter:
        return self._reporters.setdefault(role, Reporter())

    def _report(self, role: Role, row: dict, index: int) -> None:
        reporter = self._reporter(role)
        reporter.row(row, index)
        for reported in reporter.drain().rows:
            self.record.add(role, reported)
