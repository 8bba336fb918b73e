"""The replay of in-process runs: plain rings of chunks, sampled as the Reverb tables are. Needs no server."""

from collections import deque
from typing import NamedTuple

import numpy as np

from shared.plan import Plan
from shared.replay.codec import Columns
from shared.replay.windows import no_windows


class _Unroll(NamedTuple):
    """`complete` `[N]` bool: environments whose chunk here ends a window."""

    columns: Columns
    complete: np.ndarray


class WindowRing:
    """The newest unrolls of every source; windows are K consecutive chunks of one environment.

    Holds as many windows as a Reverb table of the same plan, drops the oldest first, and draws uniformly
    with replacement.
    """

    def __init__(self, plan: Plan, sources: int) -> None:
        """`sources`: collectors, or shards of a stream, of equally many environments each."""
        self._chunks_per_window = plan.chunks_per_window
        capacity = plan.stored_unrolls
        self._unrolls: list[deque[_Unroll]] = [deque(maxlen=capacity) for _ in range(sources)]
        self._counts = [no_windows(plan.environments // sources) for _ in range(sources)]

    def insert(self, source: int, number: int, columns: Columns) -> None:
        """Unroll `number` of `source`'s environments: `[N, T, ...]`."""
        count = self._counts[source].after(number, columns.ints, self._chunks_per_window)
        self._counts[source] = count
        self._unrolls[source].append(_Unroll(columns, count.complete(self._chunks_per_window)))

    def sample(self, windows: int, rng: np.random.Generator) -> Columns:
        """`[windows, K * T, ...]`. Raises ValueError before the first window is full."""
        there = [
            (source, last, environment)
            for source, unrolls in enumerate(self._unrolls)
            for last in range(self._chunks_per_window - 1, len(unrolls))
            for environment in np.flatnonzero(unrolls[last].complete)
        ]
        if not there:
            held = max(map(len, self._unrolls))
            raise ValueError(
                f"replay holds {held} unrolls, a window needs {self._chunks_per_window}; insert more first"
            )
        drawn = [self._window(*there[choice]) for choice in rng.integers(len(there), size=windows)]
        return Columns(*(np.stack(column) for column in zip(*drawn, strict=True)))

    def _window(self, source: int, last: int, environment: int) -> Columns:
        unrolls = self._unrolls[source]
        chunks = [unrolls[last - back].columns for back in reversed(range(self._chunks_per_window))]
        floats, ints = (np.concatenate([part[environment] for part in column]) for column in zip(*chunks, strict=True))
        return Columns(floats, ints)
