"""Labels of survival objectives: mixed hindsight goals, and when and how often a row's episode reaches its goal.

Distances are Euclidean in goal space, as published. An environment's own `distance` (that of `arm_grasp` differs) is
not known here; the radius is a constant of the objective. Time is counted in rows. The point in which an episode ended
is one more point behind its last row, wherever `Rows.end` says that the episode ended.

No `[W, W]` matrix is built. A scan over offsets compares each row with the row that far ahead, so memory is O(W) for
each window.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from learner.relabel import future_goals, later_rows
from shared.algorithm_config import GoalMix
from shared.types import CONTINUES, TERMINATED, Array, Rows

NESTED_RADII = (1.0, 0.5, 0.25)  # of occupancy, as shares of the radius; published
_BLOCK_WINDOWS = 128  # windows labelled at once: a CPU's caches hold them (8 times as fast as all 512 windows)
_UNROLL = 8  # offsets in one iteration of the scan: a GPU launches fewer kernels

DistanceAfter = Callable[[Array], jax.Array]  # (offset []) -> distance [B, W] of that offset's point to each row's goal


class Points(NamedTuple):
    """Columns of `Rows` that labels depend on, `[B, W, ...]`; `achieved` `[B, W, G]`: goal coordinates of the state."""

    achieved: Array
    episode: Array
    end: Array
    final: Array


class Future(NamedTuple):
    """Rest of each row's episode in its window, all `[B, W]`.

    `points` int32: later points of the episode, its end included where the window has it. `terminates` bool: the
    episode terminates in the window, at this row or later.
    """

    points: Array
    terminates: Array


def mixed_goals(
    rows: Rows, goal_indices: tuple[int, ...], mix: GoalMix, discount: float, key: Array, final_goals: bool = False
) -> jax.Array:
    """Returns hindsight goals `[B, W, G]` of `rows` `[B, W, ...]`, each of a kind drawn by the weights of `mix`.

    A row without a later one has itself as its future goal; see `future_goals` for `discount` and `final_goals`. `key`
    is consumed.
    """
    kind_key, future_key, random_key = jax.random.split(key, 3)
    achieved = rows.state[..., jnp.array(goal_indices)]
    future = future_goals(rows, goal_indices, discount, future_key, final_goals)
    other = jax.random.randint(random_key, rows.episode.shape, 0, rows.episode.shape[1])
    kind = jax.random.uniform(kind_key, rows.episode.shape) * (mix.future + mix.current + mix.random)
    return jnp.select(
        [(kind < mix.future)[..., None], (kind < mix.future + mix.current)[..., None]],
        [future, achieved],
        jnp.take_along_axis(achieved, other[..., None], axis=1),
    )


def by_blocks(label: Callable[[Points, Array], Any], rows: Rows, goal: Array, goal_indices: tuple[int, ...]) -> Any:
    """Returns `label(points, goal)` of `rows` `[B, W, ...]` and their `goal` `[B, W, G]`, computed block by block.

    `label` gets one window at a time, `[1, W, ...]`, and is vmapped over those of a block.
    """
    points = Points(rows.state[..., jnp.array(goal_indices)], rows.episode, rows.end, rows.final)

    def one_window(window: tuple[Points, Array]) -> Any:
        return jax.tree.map(lambda x: x[0], label(*jax.tree.map(lambda x: x[None], window)))

    return jax.lax.map(one_window, (points, goal), batch_size=_BLOCK_WINDOWS)


def look_ahead(points: Points, goal: Array) -> tuple[Future, DistanceAfter]:
    """Returns the future of each row of `points` `[B, W, ...]`, and `distance_after` of its `goal` `[B, W, G]`.

    `distance_after(offset)` is infinite where the row's episode has no point at that offset in the window.
    """
    length = points.episode.shape[1]
    later = later_rows(points.episode)
    last = jnp.arange(length) + later  # the last row of each row's episode in the window
    end = jnp.take_along_axis(points.end, last, axis=1)
    future = Future(later + (end != CONTINUES), end == TERMINATED)
    final = jnp.take_along_axis(points.final, last[..., None], axis=1)
    final_distance = jnp.where(end != CONTINUES, jnp.linalg.norm(final - goal, axis=-1), jnp.inf)
    # Coordinates first: the sums over them then run over whole windows.
    goal, achieved = (jnp.moveaxis(x, -1, 0) for x in (goal, points.achieved))
    padded = jnp.pad(achieved, ((0, 0), (0, 0), (0, length)))

    def distance_after(offset: Array) -> jax.Array:
        ahead = jax.lax.dynamic_slice_in_dim(padded, offset, length, axis=2)
        distance = jnp.sqrt(jnp.sum((ahead - goal) ** 2, axis=0))
        return jnp.where(offset <= later, distance, jnp.where(offset == later + 1, final_distance, jnp.inf))

    return future, distance_after


def first_reach(distance_after: DistanceAfter, future: Future, radius: float) -> jax.Array:
    """Returns the offset `[B, W]` int32, 0 included, of the first point within `radius`; -1 if there is none."""

    def one(first: jax.Array, offset: Array) -> tuple[jax.Array, None]:
        return jnp.where((first < 0) & (distance_after(offset) <= radius), offset, first), None

    offsets = jnp.arange(future.points.shape[1] + 1)
    return jax.lax.scan(one, jnp.full_like(future.points, -1), offsets, unroll=_UNROLL)[0]


def occupancy(
    distance_after: DistanceAfter, future: Future, edges: Sequence[int], radius: float
) -> tuple[jax.Array, jax.Array]:
    """Returns the share of each bin's observed points that are near the goal, and where points are observed.

    Shapes: `[B, W, K]` float and `[B, W, K]` bool.

    Bin k holds the offsets from `edges[k]` to `edges[k + 1]` - 1. A point counts by the share of the `NESTED_RADII`
    within which it is. Points after a termination are observed, and none of them is near any goal; points after a
    truncation or after the window's end are not observed.
    """
    first, stop = jnp.array(edges[:-1]), jnp.array(edges[1:])

    def inside(offset: Array, sums: jax.Array) -> jax.Array:
        distance = distance_after(offset)
        return sums + sum((distance <= radius * share).astype(jnp.float32) for share in NESTED_RADII)

    def total(bounds: tuple[Array, Array]) -> jax.Array:
        return jax.lax.fori_loop(bounds[0], bounds[1], inside, jnp.zeros(future.points.shape))

    totals = jax.lax.map(total, (first, stop))
    observed = jnp.clip(future.points[..., None] + 1 - first, 0, stop - first)
    observed = jnp.where(future.terminates[..., None], stop - first, observed)
    shares = jnp.moveaxis(totals, 0, -1) / (len(NESTED_RADII) * jnp.maximum(observed, 1))
    return shares, observed > 0
