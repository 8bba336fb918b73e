"""Which chunks make a window: K consecutive unrolls of one environment, all of them there. Pure numpy."""

from typing import NamedTuple

import numpy as np

from shared.types import Array

VOID_EPISODE = -1


def is_void(ints: Array) -> np.ndarray:
    """`[N]` bool for `ints` `[N, T, 3]`: a chunk whose episode is -1 holds nothing.

    It stands where an environment broke (see `make_collect`), so that an unroll keeps its shape.
    """
    return np.asarray(ints)[:, 0, 0] == VOID_EPISODE


class WindowCount(NamedTuple):
    """How far N environments have come. `number` of the newest unroll; `run` `[N]`: consecutive chunks up to it.

    Unrolls are numbered upwards. A collector that starts again leaves out a number, so that no window spans
    two of its lives. `made`: windows so far, over all environments.
    """

    number: int
    run: np.ndarray
    made: int

    def after(self, number: int, ints: Array, chunks_per_window: int) -> "WindowCount":
        """With unroll `number`, `ints` `[N, T, 3]`. Raises ValueError unless numbers count upwards."""
        if number <= self.number:
            raise ValueError(f"unroll {number} comes after unroll {self.number}; numbers count upwards")
        before = self.run if number == self.number + 1 else np.zeros_like(self.run)
        run = np.where(is_void(ints), 0, before + 1)
        return WindowCount(number, run, self.made + int(np.sum(run >= chunks_per_window)))

    def complete(self, chunks_per_window: int) -> np.ndarray:
        """`[N]` bool: environments whose newest chunk completed a window."""
        return self.run >= chunks_per_window


def no_windows(environments: int) -> WindowCount:
    """Before the first unroll, which is number 0."""
    return WindowCount(-1, np.zeros(environments, np.int64), 0)
