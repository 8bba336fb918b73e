"""Hindsight goals: each row of a window learns to reach a later row. On the device, O(W) for each window."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from shared.types import CONTINUES, Array, Rows

SELF_WEIGHT = 1e-5  # weight of a row as its own goal: the fallback where its episode has no later row


class Transitions(NamedTuple):
    """Input of a gradient step: `state` `[..., S]`, `action` `[..., H * A]`, `goal` `[..., G]`, `valid` `[...]` bool.

    `valid` is false where H actions in a row do not all belong to the row's episode; none with single actions.
    """

    state: Array
    action: Array
    goal: Array
    valid: Array | None = None


def crop(rows: Rows, length: int, max_offset: int, key: Array) -> Rows:
    """Crops `rows` `[B, K * T, ...]` to `length` consecutive rows of each window, `[B, length, ...]`.

    Offsets are uniform in 0..`max_offset`. A window ends where a chunk ends, so every start occurs only with the
    offsets 0..T-1. `key` is consumed.
    """
    offsets = jax.random.randint(key, (rows.episode.shape[0],), 0, max_offset + 1)

    def crop_one(window: Rows, offset: Array) -> Rows:
        return jax.tree.map(lambda x: jax.lax.dynamic_slice_in_dim(x, offset, length), window)

    return jax.vmap(crop_one)(rows, offsets)


def later_rows(episode: Array) -> jax.Array:
    """Returns the number `[B, W]` int32 of later rows in each row's episode, given `episode` `[B, W]`."""
    length = episode.shape[-1]
    index = jnp.arange(length)
    last_of_episode = jnp.concatenate([episode[:, 1:] != episode[:, :-1], jnp.ones_like(episode[:, :1], bool)], axis=1)
    end = jax.lax.cummin(jnp.where(last_of_episode, index, length), axis=1, reverse=True)
    return end - index


def goal_offsets(later: Array, discount: float, key: Array) -> jax.Array:
    """Returns the distance `[B, W]` int32, in rows, from each row to its goal row, given its `later` rows `[B, W]`.

    Row i draws row j > i of its episode with probability proportional to `discount ** (j - i)`, and itself with weight
    1e-5. The draw inverts the truncated geometric distribution, so no `[W, W]` matrix is needed. `key` is consumed.
    """
    log_discount = jnp.log(discount)
    reach = -jnp.expm1(later * log_discount)  # 1 - discount ** later
    weight = discount / (1 - discount) * reach
    uniform = jax.random.uniform(key, later.shape) * (weight + SELF_WEIGHT) - SELF_WEIGHT
    share = jnp.clip(uniform / jnp.maximum(weight, SELF_WEIGHT), 0, 1)  # of the geometric part
    offset = 1 + jnp.floor(jnp.log1p(-share * reach) / log_discount).astype(jnp.int32)
    return jnp.where((uniform < 0) | (later == 0), 0, jnp.clip(offset, 1, jnp.maximum(later, 1)))


def future_goals(
    rows: Rows, goal_indices: tuple[int, ...], discount: float, key: Array, final_goals: bool = False
) -> jax.Array:
    """Returns the hindsight goals `[B, W, G]` of `rows` `[B, W, ...]`, drawn by `goal_offsets`. `key` is consumed.

    With `final_goals`, the state in which an episode ended counts as one more later row.
    """
    achieved = rows.state[..., jnp.array(goal_indices)]
    index = jnp.arange(rows.episode.shape[1])
    later = later_rows(rows.episode)
    if not final_goals:
        offset = goal_offsets(later, discount, key)
        return jnp.take_along_axis(achieved, (index + offset)[..., None], axis=1)
    last = index + later  # the last row of each row's episode in the window
    ended = jnp.take_along_axis(rows.end, last, axis=1) != CONTINUES
    offset = goal_offsets(later + ended, discount, key)
    goal = jnp.take_along_axis(achieved, jnp.minimum(index + offset, last)[..., None], axis=1)
    final = jnp.take_along_axis(rows.final, last[..., None], axis=1)
    return jnp.where((offset > later)[..., None], final, goal)


def chunk_actions(rows: Rows, chunk: int) -> tuple[Array, Array | None]:
    """Returns the actions of each of `rows` `[B, W, ...]` and its successors, `[B, W, H * A]`, and which are valid.

    `valid` `[B, W]` is false where a chunk leaves its row's episode, or the window; none for single actions.
    """
    if chunk == 1:
        return rows.action, None
    shifted = [jnp.roll(rows.action, -step, axis=1) for step in range(chunk)]
    return jnp.concatenate(shifted, axis=-1), later_rows(rows.episode) >= chunk - 1


def relabel(
    rows: Rows, goal_indices: tuple[int, ...], discount: float, key: Array, chunk: int = 1, final_goals: bool = False
) -> Transitions:
    """Returns `rows` `[B, W, ...]` with hindsight goals, as `[B, W - 1, ...]`: the last row has no later one.

    Algorithm: Wang et al. (2025), after Eysenbach et al., "Contrastive Learning as Goal-Conditioned RL" (2022).
    `key` is consumed.
    """
    goal = future_goals(rows, goal_indices, discount, key, final_goals)
    action, valid = chunk_actions(rows, chunk)
    return jax.tree.map(lambda x: x[:, :-1], Transitions(rows.state, action, goal, valid))
