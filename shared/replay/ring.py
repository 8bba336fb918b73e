"""The replay of in-process runs: a plain ring of chunks, sampled as the Reverb tables are. Needs no server."""

import numpy as np

from shared.plan import Plan
from shared.replay.codec import Columns


class WindowRing:
    """The newest chunks of N environments; windows are any K consecutive chunks of one environment.

    Holds as many windows as a Reverb table of the same plan, drops the oldest first, and draws uniformly
    with replacement.
    """

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._capacity = plan.max_windows // plan.environments + plan.chunks_per_window - 1
        self._chunks: list[Columns] = []
        self.unrolls = 0

    @property
    def windows_inserted(self) -> int:
        return self._plan.windows_after(self.unrolls)

    def insert(self, columns: Columns) -> None:
        """One unroll of every environment: `[N, T, ...]`."""
        self._chunks.append(columns)
        del self._chunks[: -self._capacity]
        self.unrolls += 1

    def sample(self, windows: int, rng: np.random.Generator) -> Columns:
        """`[windows, K * T, ...]`. Raises ValueError before the first window is full."""
        chunks_per_window = self._plan.chunks_per_window
        starts = len(self._chunks) - chunks_per_window + 1
        if starts < 1:
            raise ValueError(
                f"replay holds {len(self._chunks)} unrolls, a window needs {chunks_per_window}; insert more first"
            )
        start = rng.integers(starts, size=windows)
        environment = rng.integers(self._plan.environments, size=windows)

        def gather(column: str) -> np.ndarray:
            return np.stack(
                [
                    np.concatenate([getattr(chunk, column)[n] for chunk in self._chunks[s : s + chunks_per_window]])
                    for s, n in zip(start, environment, strict=True)
                ]
            )

        return Columns(gather("floats"), gather("ints"))
