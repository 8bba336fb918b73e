"""The feeder: a recorded stream into replay, in a collector's place."""

from collections.abc import Callable, Iterator

import jax
import numpy as np

from collector.collector import Collected, make_count, progress
from shared.config import Experiment
from shared.envs.base import GoalEnv
from shared.metrics import Reporter
from shared.plan import Plan
from shared.replay.codec import Columns


class Feeder:
    """One shard of a recorded stream, unroll after unroll. Counts coverage, steps no environment."""

    def __init__(self, experiment: Experiment, plan: Plan, env: GoalEnv, unrolls: Iterator[Columns]) -> None:
        """`unrolls`: `[N, T, ...]` each, at least as many as the plan's."""
        self._plan = plan
        self._steps = experiment.collector.environments * plan.unroll_length
        self._unrolls = unrolls
        self._count = jax.jit(make_count(env))
        self.unrolls = 0
        self.visits = np.zeros(env.spec.num_cells, np.int64)

    def feed(self) -> Collected:
        """The next unroll."""
        columns = next(self._unrolls)
        self.visits += np.asarray(self._count(columns.floats))
        self.unrolls += 1
        return Collected(columns, progress(self.unrolls, self._steps, self.visits))

    def run(self, insert: Callable[[Columns], object], reporter: Reporter, should_stop: Callable[[], bool]) -> None:
        """Inserts what the plan asks for, or ends when `should_stop()`."""
        reporter.filling = True
        while self.unrolls < self._plan.unrolls and not should_stop():
            fed = self.feed()
            with reporter.waiting("replay full"):
                insert(fed.columns)
            reporter.filling = self.unrolls < self._plan.chunks_per_window
            reporter.row(fed.metrics)
