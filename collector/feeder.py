"""The feeder: inserts the unrolls of a recorded stream into replay, in the place of a collector."""

from collections.abc import Callable, Iterator

import jax

from collector.collector import Collected, make_count, progress_metrics
from shared.config import Experiment
from shared.envs.base import GoalEnv
from shared.errors import RunFailed
from shared.metrics import Reporter
from shared.plan import Plan
from shared.position import Position, start_position
from shared.replay.codec import Columns


class Feeder:
    """Reads one shard of a stream, unroll after unroll. Counts coverage, steps no environment."""

    def __init__(
        self,
        experiment: Experiment,
        plan: Plan,
        env: GoalEnv,
        unrolls: Iterator[tuple[int, Columns]],
        position: Position | None = None,
    ) -> None:
        """Begins at the first of `unrolls`.

        Args:
            env: the training environment, whose cells are counted.
            unrolls: the shard's `(number, [N, T, ...])` that come after `position`.
            position: the position at which an earlier incarnation ended.
        """
        environments = experiment.collector.environments
        self._steps = environments * plan.unroll_length
        self._chunks_per_window = plan.chunks_per_window
        self._target = plan.windows_after(plan.unrolls) // plan.environments * environments
        self._unrolls, self._stream = unrolls, experiment.stream
        self._count = jax.jit(make_count(env))
        self.position = position or start_position(environments, env.spec.num_cells)

    @property
    def done(self) -> bool:
        """True once every window of the plan is fed."""
        return self.position.windows.made >= self._target

    def feed(self) -> Collected:
        """Reads the next unroll. Raises RunFailed if the shard ends before every window of the plan is fed."""
        unroll = next(self._unrolls, None)
        if unroll is None:
            raise RunFailed(
                f"stream: {self._stream} ends after {self.position.unrolls} unrolls and {self.position.windows.made} "
                f"windows of a shard, {self._target} windows were expected; lower budget.env_steps, or record it again"
            )
        number, columns = unroll
        visits = self._count(columns.floats, columns.ints)
        self.position = self.position.after(number, columns.ints, visits, self._chunks_per_window)
        return Collected(number, columns, progress_metrics(self.position, self._steps))

    def run(
        self, insert: Callable[[int, Columns], object], reporter: Reporter, should_stop: Callable[[], bool]
    ) -> None:
        """Inserts unrolls until every window of the plan is fed or `should_stop()`; see `Collector.run`."""
        reporter.filling = True
        while not self.done and not should_stop():
            fed = self.feed()
            with reporter.waiting("replay full"):
                insert(fed.number, fed.columns)
            reporter.filling = not self.position.windows.made
            reporter.row(fed.metrics, index=fed.number, position=self.position)
