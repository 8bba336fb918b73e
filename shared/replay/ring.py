"""Replay of in-process runs: rings of chunks on the device, sampled like Reverb's tables, without a server."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from shared.plan import Plan
from shared.replay.codec import INT_COLUMNS, Columns
from shared.replay.windows import no_windows
from shared.types import Array


class WindowRing:
    """Newest unrolls of every source; a window is K consecutive chunks of one environment.

    Holds as many windows as a Reverb table of the same plan, drops the oldest first, and draws with replacement. The
    device's arrays are allocated once; the host knows which windows are complete.
    """

    def __init__(self, plan: Plan, sources: int, row_size: int) -> None:
        """`sources`: number of collectors or shards of equally many environments; `row_size`: floats of a row."""
        environments, unrolls = plan.environments // sources, plan.stored_unrolls
        held = (sources, unrolls, environments, plan.unroll_length)
        self._columns = Columns(jnp.zeros((*held, row_size)), jnp.zeros((*held, INT_COLUMNS), jnp.int32))
        self._chunks_per_window = plan.chunks_per_window
        self._counts = [no_windows(environments) for _ in range(sources)]
        self._inserted = np.zeros(sources, np.int64)  # unrolls; modulo the unrolls held, the place of the next one
        self._complete = np.zeros((sources, unrolls, environments), bool)  # a chunk ends a window; oldest unroll first

    def insert(self, source: int, number: int, columns: Columns) -> None:
        """Inserts unroll `number` of `source`: `[N, T, ...]`, on the host or, which costs no copy, on the device.

        Raises ValueError unless numbers count upwards.
        """
        count = self._counts[source].after(number, columns.ints, self._chunks_per_window)
        self._counts[source] = count
        self._columns = _insert(self._columns, columns, source, self._inserted[source] % self._complete.shape[1])
        self._inserted[source] += 1
        complete = self._complete[source]
        complete[:-1] = complete[1:]
        complete[-1] = count.complete(self._chunks_per_window)

    def sample(self, windows: int, rng: np.random.Generator, every_environment: bool = False) -> Columns:
        """Returns `[windows, K * T, ...]` on the device, drawn from all windows alike.

        `every_environment`: an equal number of each environment, whose windows are alike; `windows` is a multiple of
        the environments. Raises ValueError before the first window, or that of each environment, is complete.
        """
        chunks, held = self._chunks_per_window, self._complete.shape[1]
        complete = self._complete[:, chunks - 1 :]  # those before them end windows whose first chunk is gone
        if not (complete.any(axis=1).all() if every_environment else complete.any()):
            stored = min(max(self._inserted), held)
            raise ValueError(f"replay holds {stored} unrolls, a window needs {chunks}; insert more first")
        source, first, environment = (_draw_of_each if every_environment else _draw)(complete, windows, rng)
        places = (self._inserted[source] + first)[:, None] + np.arange(chunks)
        return _gather(self._columns, source, places % held, environment)


def _draw(complete: np.ndarray, windows: int, rng: np.random.Generator) -> tuple[np.ndarray, ...]:
    """Returns indices `[windows]` into `complete` `[sources, unrolls, N]`, of true entries drawn alike."""
    there = np.flatnonzero(complete)
    return np.unravel_index(there[rng.integers(there.size, size=windows)], complete.shape)


def _draw_of_each(complete: np.ndarray, windows: int, rng: np.random.Generator) -> tuple[np.ndarray, ...]:
    """Returns the same, with equally many of each environment."""
    unrolls, environments = complete.shape[1:]
    of_each = complete.transpose(0, 2, 1).reshape(-1, unrolls)
    drawn = np.tile(np.arange(len(of_each)), windows // len(of_each))
    nth = rng.integers(of_each.sum(axis=1)[drawn])
    true_first = np.argsort(~of_each, axis=1, kind="stable")
    source, environment = np.divmod(drawn, environments)
    return source, true_first[drawn, nth], environment


@partial(jax.jit, donate_argnums=0)
def _insert(held: Columns, unroll: Columns, source: Array, place: Array) -> Columns:
    """Returns `held` `[sources, unrolls, N, T, ...]` with `unroll` `[N, T, ...]` in its place."""
    start = (source, place, 0, 0, 0)
    return jax.tree.map(lambda ring, new: jax.lax.dynamic_update_slice(ring, new[None, None], start), held, unroll)


@jax.jit
def _gather(held: Columns, source: Array, places: Array, environment: Array) -> Columns:
    """Returns windows `[B, K * T, ...]` of `held` `[sources, unrolls, N, T, ...]`; `places` `[B, K]`, others `[B]`."""
    chunks = jax.tree.map(lambda column: column[source[:, None], places, environment[:, None]], held)
    return jax.tree.map(lambda column: column.reshape(len(column), -1, column.shape[-1]), chunks)
