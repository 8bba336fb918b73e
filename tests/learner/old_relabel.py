"""Arithmetic of relabelling from before objectives and ends of episodes; draws must equal it to the bit."""

import jax
import jax.numpy as jnp

from learner.relabel import SELF_WEIGHT, later_rows
from shared.types import Array


def old_goal_offsets(episode: Array, discount: Array | float, key: Array) -> jax.Array:
    """Returns the distance `[B, W]` int32, in rows, from each row to its goal row, given `episode` `[B, W]`."""
    later, log_discount = later_rows(episode), jnp.log(discount)
    reach = -jnp.expm1(later * log_discount)
    weight = discount / (1 - discount) * reach
    uniform = jax.random.uniform(key, episode.shape) * (weight + SELF_WEIGHT) - SELF_WEIGHT
    share = jnp.clip(uniform / jnp.maximum(weight, SELF_WEIGHT), 0, 1)
    offset = 1 + jnp.floor(jnp.log1p(-share * reach) / log_discount).astype(jnp.int32)
    return jnp.where((uniform < 0) | (later == 0), 0, jnp.clip(offset, 1, jnp.maximum(later, 1)))
