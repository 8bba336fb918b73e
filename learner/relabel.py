"""Hindsight goals: which later state each row of a window is taught to reach. On the device, O(W) a window."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from shared.types import Array, Rows

SELF_WEIGHT = 1e-5  # of a row as its own goal: the fallback where its episode has no later row


class Transitions(NamedTuple):
    """`state` `[..., S]`, `action` `[..., A]`, `goal` `[..., G]`: what a gradient step trains on."""

    state: Array
    action: Array
    goal: Array


def crop(rows: Rows, length: int, max_offset: int, key: Array) -> Rows:
    """`length` consecutive rows of each window, from an offset drawn uniformly from 0..`max_offset`.

    `rows` `[B, K * T, ...]` to `[B, length, ...]`. `key` is consumed. A window ends where a chunk ends, so
    only with offsets 0..T-1 does every start occur.
    """
    offsets = jax.random.randint(key, (rows.episode.shape[0],), 0, max_offset + 1)

    def crop_one(window: Rows, offset: Array) -> Rows:
        return jax.tree.map(lambda x: jax.lax.dynamic_slice_in_dim(x, offset, length), window)

    return jax.vmap(crop_one)(rows, offsets)


def later_rows(episode: Array) -> jax.Array:
    """How many later rows of the same episode follow each row: `[B, W]` int32 of `episode` `[B, W]`."""
    length = episode.shape[-1]
    index = jnp.arange(length)
    last_of_episode = jnp.concatenate([episode[:, 1:] != episode[:, :-1], jnp.ones_like(episode[:, :1], bool)], axis=1)
    end = jax.lax.cummin(jnp.where(last_of_episode, index, length), axis=1, reverse=True)
    return end - index


def goal_offsets(episode: Array, discount: float, key: Array) -> jax.Array:
    """How far ahead the goal row of each row lies: `[B, W]` int32 of `episode` `[B, W]`. `key` is consumed.

    Row i takes row j > i of its episode with probability proportional to `discount ** (j - i)` and itself
    with weight 1e-5; drawn by inverting the truncated geometric distribution, not from a `[W, W]` matrix.
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
    """`rows` `[B, W, ...]` with hindsight goals, as `[B, W - 1, ...]`: the last row has no later one.

    Algorithm: Wang et al. (2025), after Eysenbach et al., "Contrastive Learning as Goal-Conditioned RL"
    (2022). `key` is consumed.
    """
    index = jnp.arange(rows.episode.shape[1]) + goal_offsets(rows.episode, discount, key)
    achieved = rows.state[..., jnp.array(goal_indices)]
    goal = jnp.take_along_axis(achieved, index[..., None], axis=1)
    return Transitions(rows.state[:, :-1], rows.action[:, :-1], goal[:, :-1])
