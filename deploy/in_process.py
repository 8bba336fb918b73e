"""A whole run in one process, synchronous and deterministic: no Ray, no Reverb.

The oracle that the distributed path is tested against, and all that a small machine needs.
"""

import zlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numpy as np

from collector.collector import Collected, Collector
from collector.evaluator import Evaluator
from collector.feeder import Feeder
from deploy.record import EVALUATOR, REPLAY, RunRecord, learner_role, source_roles
from learner.learner import Learner
from shared import checkpoint
from shared.config import ACTIVE
from shared.envs.base import GoalEnv
from shared.envs.registry import Envs
from shared.metrics import Reporter
from shared.replay.codec import Columns
from shared.replay.ring import WindowRing
from shared.stream.format import describe
from shared.stream.read import open_stream
from shared.stream.write import StreamWriter, write_manifest


class _Collectors:
    """Every collector, one after the other; records what they collect where that is asked for."""

    def __init__(self, record: RunRecord, env: GoalEnv) -> None:
        experiment, plan = record.experiment, record.plan
        self._roles = source_roles(experiment)
        self._directory, self._description = record.stream_dir, describe(experiment, plan, env.spec)
        self._collectors = [Collector(experiment, plan, env, index) for index in range(len(self._roles))]
        indices = range(len(self._roles) if experiment.record else 0)
        self._writers = [StreamWriter(self._directory, index, self._description) for index in indices]

    def unroll(self, learners: Mapping[str, Learner]) -> Iterator[tuple[str, Collected]]:
        """One unroll of each, with the collector learner's policy."""
        policy = learners[ACTIVE].policy()
        acted = {"policy_lag": learners[ACTIVE].updates - policy.version, "policy_version": policy.version}
        for index, (role, collector) in enumerate(zip(self._roles, self._collectors, strict=True)):
            collected = collector.collect(policy)
            if self._writers:
                self._writers[index].write(collected.columns)
            yield role, collected._replace(metrics=collected.metrics | acted)

    def finish(self) -> None:
        if self._writers:
            write_manifest(self._directory, self._description, [writer.close() for writer in self._writers])


class _Stream:
    """Every shard of a recorded stream, one after the other."""

    def __init__(self, record: RunRecord, env: GoalEnv) -> None:
        experiment, plan = record.experiment, record.plan
        stream = open_stream(Path(str(experiment.stream)), verify=False)  # which was done before the start
        self._feeders = {
            role: Feeder(experiment, plan, env, stream.shard(index))
            for index, role in enumerate(source_roles(experiment))
        }

    def unroll(self, learners: Mapping[str, Learner]) -> Iterator[tuple[str, Collected]]:
        """The next unroll of each."""
        return ((role, feeder.feed()) for role, feeder in self._feeders.items())

    def finish(self) -> None:
        pass  # nothing was recorded


class InProcessRun:
    """Collectors or a stream, a ring of windows, all learners and the evaluator, taking turns."""

    def __init__(self, record: RunRecord, envs: Envs) -> None:
        experiment, plan = record.experiment, record.plan
        self.record = record
        training = envs.training
        self._source = _Stream(record, training) if experiment.stream else _Collectors(record, training)
        self.learners = {name: Learner(experiment, plan, training.spec, name) for name in experiment.all_learners}
        self.ring = WindowRing(plan)
        self._evaluator = Evaluator(experiment, plan, envs.evaluation)
        self._reporters: dict[str, Reporter] = {}
        self._rngs = {
            name: np.random.default_rng([experiment.seed, zlib.crc32(name.encode())]) for name in self.learners
        }

    def run(self, on_progress: Callable[[], None] = lambda: None) -> None:
        """Spends the budget, then writes every learner's checkpoint."""
        for name in self.learners:
            self._evaluate(name)
        for _ in range(self.record.plan.unrolls):
            self._insert()
            for name in self.learners:
                self._train(name, on_progress)
            on_progress()
        self._source.finish()
        for name, learner in self.learners.items():
            checkpoint.save(self.record.run_dir / "checkpoints" / name, learner.state)

    def _insert(self) -> None:
        unroll = []
        for role, collected in self._source.unroll(self.learners):
            unroll.append(collected.columns)
            self._report(role, collected.metrics)
        self.ring.insert(Columns(*(np.concatenate(column) for column in zip(*unroll, strict=True))))
        inserted = self.ring.windows_inserted
        self._report(REPLAY, {"env_steps": self.record.env_steps} | {f"{n}/inserted": inserted for n in self.learners})

    def _train(self, name: str, on_progress: Callable[[], None]) -> None:
        learner, plan = self.learners[name], self.record.plan
        while learner.updates < plan.updates_after(self.ring.windows_inserted):
            windows = self.ring.sample(plan.windows_per_update, self._rngs[name])
            metrics = learner.update(windows)
            self._report(learner_role(name), learner.describe(metrics, self.ring.windows_inserted))
            if learner.updates in plan.evaluation_updates:
                self._evaluate(name)
            on_progress()

    def _evaluate(self, name: str) -> None:
        self._report(EVALUATOR, self._evaluator.evaluate(name, self.learners[name].policy()))

    def _report(self, role: str, row: dict) -> None:
        reporter = self._reporters.setdefault(role, Reporter())
        reporter.row(row)
        for reported in reporter.drain().rows:
            self.record.add(role, reported)
