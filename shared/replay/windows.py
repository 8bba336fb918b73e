"""Counts of complete windows: K consecutive unrolls of one environment, none of them void. Pure numpy."""

from typing import NamedTuple

import numpy as np

from shared.types import Array

VOID_EPISODE = -1


def is_void(ints: Array) -> np.ndarray:
    """Returns `[N]` bool for `ints` `[N, T, 4]`: True for chunks without data, whose episode is -1.

    Such a chunk stands for an environment that broke (see `make_collect`), so that an unroll keeps its shape.
    """
    return np.asarray(ints)[:, 0, 0] == VOID_EPISODE


class WindowCount(NamedTuple):
    """Windows of N environments up to unroll `number`.

    `run` `[N]` counts consecutive chunks up to that unroll, `made` all windows so far. Numbers grow; each incarnation
    of a collector skips one, so that no window spans two incarnations.
    """

    number: int
    run: np.ndarray
    made: int

    def after(self, number: int, ints: Array, chunks_per_window: int) -> "WindowCount":
        """Returns the count after unroll `number`, `ints` `[N, T, 4]`. Raises ValueError unless numbers grow."""
        if number <= self.number:
            raise ValueError(f"unroll {number} comes after unroll {self.number}; numbers count upwards")
        before = self.run if number == self.number + 1 else np.zeros_like(self.run)
        run = np.where(is_void(ints), 0, before + 1)
        return WindowCount(number, run, self.made + int(np.sum(run >= chunks_per_window)))

    def complete(self, chunks_per_window: int) -> np.ndarray:
        """Returns `[N]` bool: True for environments whose newest chunk completed a window."""
        return self.run >= chunks_per_window


def no_windows(environments: int) -> WindowCount:
    """Returns the count before unroll 0."""
    return WindowCount(-1, np.zeros(environments, np.int64), 0)
