"""A whole run in one process, synchronous and deterministic: no Ray, no Reverb.

The oracle that the distributed path is tested against, and all that a small machine needs.
"""

import time
import zlib
from collections.abc import Callable, Iterator, Mapping
from itertools import takewhile
from pathlib import Path

import jax
import numpy as np

from collector.collector import Collected, Collector, Position
from collector.evaluator import Evaluator
from collector.feeder import Feeder
from deploy import snapshots
from deploy.record import EVALUATOR, REPLAY, RunRecord, learner_role, source_roles
from deploy.resume import SnapshotTaker
from deploy.states import on_host
from learner.learner import Learner
from shared import checkpoint
from shared.config import ACTIVE
from shared.disk import DISK_SPACE, Disk, DiskTeller
from shared.envs.base import GoalEnv
from shared.envs.registry import Envs
from shared.metrics import Reporter
from shared.replay.codec import Columns
from shared.replay.ring import WindowRing
from shared.stream.format import describe, shard_folder
from shared.stream.read import open_stream
from shared.stream.shard import read_shard
from shared.stream.write import StreamWriter, write_manifest


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
                part = record.snapshot.folder / role
                state = snapshots.read_state(part, jax.eval_shape(lambda collector=collector: collector.state))
                collector.go_on(state, snapshots.read_position(part))
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

    def unroll(self, learners: Mapping[str, Learner]) -> Iterator[tuple[int, str, Collected]]:
        """One unroll of each that is not done, with the collector learner's policy: index, role, unroll."""
        policy = learners[ACTIVE].policy()
        acted = {"policy_lag": learners[ACTIVE].updates - policy.version, "policy_version": policy.version}
        for index, (role, collector) in enumerate(zip(self.roles, self._collectors, strict=True)):
            if collector.done:
                continue
            collected = collector.collect(policy)
            self._writers[index].write(collected.columns, collected.number)
            yield index, role, collected._replace(metrics=collected.metrics | acted)

    def write_part(self, index: int, part: snapshots.Part) -> None:
        began, collector = time.monotonic(), self._collectors[index]
        part.begin()
        snapshots.link_stream(part, self._writers[index].cut(), shard_folder(self._directory, index))
        snapshots.write_source(part, collector.position, on_host(collector.state), time.monotonic() - began)

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
        parts = [record.snapshot.folder / role if record.snapshot else None for role in self.roles]
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

    def unroll(self, learners: Mapping[str, Learner]) -> Iterator[tuple[int, str, Collected]]:
        """The next unroll of each that is not done: index, role, unroll."""
        for index, (role, feeder) in enumerate(zip(self.roles, self._feeders, strict=True)):
            if not feeder.done:
                yield index, role, feeder.feed()

    def write_part(self, index: int, part: snapshots.Part) -> None:
        part.begin()
        snapshots.write_source(part, self._feeders[index].position, None, 0.0)

    def finish(self) -> None:
        pass  # nothing was written

    def _from(self, index: int, first: int) -> Iterator[tuple[int, Columns]]:
        return self._stream.shard(index, first)


class InProcessRun:
    """Collectors or a stream, a ring of windows, all learners and the evaluator, taking turns."""

    def __init__(self, record: RunRecord, envs: Envs, say: Callable[[str], None] = lambda text: None) -> None:
        """`say` gets what a person has to know while the run goes on: that it waits for room on its disk."""
        experiment, plan = record.experiment, record.plan
        self.record = record
        self._disk = Disk(record.run_dir, experiment.supervision.disk_reserve_gb)
        self._teller = DiskTeller(self._disk, say)
        training = envs.training
        self._source = _Stream(record, training) if experiment.stream else _Collectors(record, training)
        self.learners = {
            name: Learner(experiment, plan, training.spec, name, record.run_dir / "reports")
            for name in experiment.all_learners
        }
        self.ring = WindowRing(plan, experiment.collector.actors)
        self._evaluator = Evaluator(experiment, plan, envs.evaluation)
        self._reporters: dict[str, Reporter] = {}
        self._rngs = {
            name: np.random.default_rng([experiment.seed, zlib.crc32(name.encode())]) for name in self.learners
        }
        self._taker = SnapshotTaker(record, in_process=True)
        if record.snapshot:
            self._go_on(record.snapshot.folder)

    def run(self, on_progress: Callable[[], None] = lambda: None) -> None:
        """Spends the budget, then writes every learner's checkpoint."""
        if not self.record.snapshot:
            for name in self.learners:
                self._evaluate(name)
        while not self._source.done:
            self._insert()
            for name in self.learners:
                self._train(name, on_progress)
            self._take_snapshot()
            on_progress()
        self._source.finish()
        self._wait_for_room()
        for name, learner in self.learners.items():
            checkpoint.save(self.record.run_dir / "checkpoints" / name, learner.state)
        self.record.remove_backups()

    @property
    def windows(self) -> int:
        """Inserted so far."""
        return sum(position.windows.made for position in self._source.positions)

    def _insert(self) -> None:
        self._wait_for_room()
        for index, role, collected in self._source.unroll(self.learners):
            self.ring.insert(index, collected.number, collected.columns)
            self._report(role, collected.metrics)
        counts = {f"{name}/inserted": self.windows for name in self.learners}
        self._report(REPLAY, {"env_steps": self.record.env_steps} | counts)

    def _train(self, name: str, on_progress: Callable[[], None]) -> None:
        learner, plan = self.learners[name], self.record.plan
        while learner.updates < plan.updates_after(self.windows):
            windows = self.ring.sample(plan.windows_per_update, self._rngs[name])
            metrics = learner.update(windows)
            self._report(learner_role(name), learner.describe(metrics, self.windows))
            if learner.updates in plan.evaluation_updates:
                self._evaluate(name)
            on_progress()

    def _evaluate(self, name: str) -> None:
        self._report(EVALUATOR, self._evaluator.evaluate(name, self.learners[name].policy()))

    def _take_snapshot(self) -> None:
        """After an unroll, once a planned count of updates is reached; all learners have made equally many."""
        updates = min(learner.updates for learner in self.learners.values())
        if not self._taker.due(updates):
            return
        self._wait_for_room()
        run_dir = self.record.run_dir
        for name, learner in self.learners.items():
            part = snapshots.Part(run_dir, updates, learner_role(name))
            snapshots.write_learner(part, on_host(learner.state), 0.0)
        for index, role in enumerate(self._source.roles):
            self._source.write_part(index, snapshots.Part(run_dir, updates, role))
        rngs = {name: rng.bit_generator.state for name, rng in self._rngs.items()}
        snapshots.write_driver(snapshots.Part(run_dir, updates, snapshots.DRIVER), rngs)
        self._taker.finish(updates)

    def _go_on(self, folder: Path) -> None:
        """Everything as it was after the snapshot in `folder`, equal to the bit."""
        for name, learner in self.learners.items():
            like = jax.eval_shape(lambda learner=learner: learner.state)
            learner.go_on(snapshots.read_state(folder / learner_role(name), like))
        for name, state in snapshots.read_driver(folder / snapshots.DRIVER).items():
            self._rngs[name].bit_generator.state = state
        for index, position in enumerate(self._source.positions):
            first = max(position.windows.number - 2 * self.record.plan.stored_unrolls, 0)
            for number, columns in self._source.past(index, first):
                self.ring.insert(index, number, columns)

    def _wait_for_room(self) -> None:
        """All roles wait; the first source's rows tell how long."""
        if not self._disk.short:
            return
        self._teller.tell({"the run": DISK_SPACE})
        self._disk.wait_for_room(self._reporter(self._source.roles[0]), should_stop=lambda: False)
        self._teller.tell({"the run": ""})

    def _reporter(self, role: str) -> Reporter:
        return self._reporters.setdefault(role, Reporter())

    def _report(self, role: str, row: dict) -> None:
        reporter = self._reporter(role)
        reporter.row(row)
        for reported in reporter.drain().rows:
            self.record.add(role, reported)
