"""Rows as the two columns that replay stores, and back. Pure, traced into the rollout and the update."""

from typing import NamedTuple

import jax.numpy as jnp

from shared.types import Array, Rows

INT_COLUMNS = 3  # episode, step, policy version


class Columns(NamedTuple):
    """`floats` `[..., S + A]` float32 (state and action side by side), `ints` `[..., 3]` int32.

    Two columns, not five: a replay item costs one slice per chunk and column.
    """

    floats: Array
    ints: Array


def pack(rows: Rows) -> Columns:
    """`Rows` of leading shape `[...]` as `Columns` of the same leading shape."""
    return Columns(
        floats=jnp.concatenate([rows.state, rows.action], axis=-1, dtype=jnp.float32),
        ints=jnp.stack([rows.episode, rows.step, rows.version], axis=-1).astype(jnp.int32),
    )


def unpack(columns: Columns, state_size: int) -> Rows:
    """The inverse of `pack`, equal to the bit for float32 states and actions."""
    episode, step, version = jnp.moveaxis(columns.ints, -1, 0)
    state, action = jnp.split(columns.floats, [state_size], axis=-1)
    return Rows(state, action, episode, step, version)
