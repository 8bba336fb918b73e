"""A whole run in one process, synchronous and deterministic: no Ray, no Reverb.

The oracle that the distributed path is tested against, and all that a small machine needs.
"""

import zlib
from collections.abc import Callable

import numpy as np

from collector.collector import Collector
from collector.evaluator import Evaluator
from deploy.record import EVALUATOR, REPLAY, RunRecord, collector_role, learner_role
from learner.learner import Learner
from shared import checkpoint
from shared.config import ACTIVE
from shared.envs.registry import Envs
from shared.metrics import Reporter
from shared.replay.codec import Columns
from shared.replay.ring import WindowRing


class InProcessRun:
    """Collectors, a ring of windows, all learners and the evaluator, taking turns."""

    def __init__(self, record: RunRecord, envs: Envs) -> None:
        experiment, plan = record.experiment, record.plan
        self.record = record
        training = envs.training
        self.collectors = [Collector(experiment, plan, training, index) for index in range(experiment.collector.actors)]
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
            self._collect()
            for name in self.learners:
                self._train(name, on_progress)
            on_progress()
        for name, learner in self.learners.items():
            checkpoint.save(self.record.run_dir / "checkpoints" / name, learner.state)

    def _collect(self) -> None:
        policy = self.learners[ACTIVE].policy()
        unroll = []
        for index, collector in enumerate(self.collectors):
            collected = collector.collect(policy)
            unroll.append(collected.columns)
            acted = {"policy_lag": self.learners[ACTIVE].updates - policy.version, "policy_version": policy.version}
            self._report(collector_role(index), collected.metrics | acted)
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
