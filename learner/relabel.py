"""Hindsight goals: each row of a window learns to reach a later row. On the device, O(W) for each window."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from shared.types import Array, Rows

SELF_WEIGHT = 1e-5  # weight of a row as its own goal: the fallback where its episode has no later row


class Transitions(NamedTuple):
    """Input of a gradient step: `state` `[..., S]`, `action` `[..., A]`, `goal` `[..., G]`."""

    state: Array
    action: Array
    goal: Array


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


def goal_offsets(episode: Array, discount: float, key: Array) -> jax.Array:
    """Returns the distance `[B, W]` int32, in rows, from each row to its goal row, given `episode` `[B, W]`.

    Row i draws row j > i of its episode with probability proportional to `discount ** (j - i)`, and itself with weight
    1e-5. The draw inverts the truncated geometric distribution, so no `[W, W]` matrix is needed. `key` is consumed.
    """
    later = later_rows(episode)
    log_discount = jnp.log(discount)
    reach = -jnp.expm1(later * log_discount)  # 1 - discount ** later
    weight = discount / (1 - discount) * reach
    uniform = jax.random.uniform(key, episode.shape) * (weight + SELF_WEIGHT) - SELF_WEIGHT
    share = jnp.clip(uniform / jnp.maximum(weight, SELF_WEIGHT), 0, 1)  # of the geometric part
    offset = 1 + jnp.floor(jnp.log1p(-share * reach) / log_discount).astype(jnp.int32)
    return jnp.where((uniform < 0) | (later == 0), 0, jnp.clip(offset, 1, jnp.maximum(later, 1)))


def relabel(rows: Rows, goal_indices: tuple[int, ...], discount: float, key: Array) -> Transitions:
    """Returns `rows` `[B, W, ...]` with hindsight goals, as `[B, W - 1, ...]`: the last row has no later one.

    Algorithm: Wang et al. (2025), after Eysenbach et al., "Contrastive Learning as Goal-Conditioned RL" (2022).
    `key` is consumed.
    """
    index = jnp.arange(rows.episode.shape[1]) + goal_offsets(rows.episode, discount, key)
    achieved = rows.state[..., jnp.array(goal_indices)]
    goal = jnp.take_along_axis(achieved, index[..., None], axis=1)
    return Transitions(rows.state[:, :-1], rows.action[:, :-1], goal[:, :-1])
