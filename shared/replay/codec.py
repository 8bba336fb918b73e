"""Rows as the two columns that replay stores, and back. Pure, traced into the rollout and the update."""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from shared.types import Array, Rows

INT_COLUMNS = 4  # episode, step, policy version, end


class Columns(NamedTuple):
    """`floats` `[..., S + A + G]` float32 (state, action and final point side by side), `ints` `[..., 4]` int32.

    Two columns instead of seven: a replay item costs one slice per chunk and column.
    """

    floats: Array
    ints: Array


def pack(rows: Rows) -> Columns:
    """Returns `rows` of leading shape `[...]` as columns of the same leading shape."""
    return Columns(
        floats=jnp.concatenate([rows.state, rows.action, rows.final], axis=-1, dtype=jnp.float32),
        ints=jnp.stack([rows.episode, rows.step, rows.version, rows.end], axis=-1).astype(jnp.int32),
    )


def unpack(columns: Columns, state_size: int, action_size: int) -> Rows:
    """Inverse of `pack`, equal to the bit for float32 states and actions."""
    episode, step, version, end = jnp.moveaxis(columns.ints, -1, 0)
    state, action, final = jnp.split(columns.floats, [state_size, state_size + action_size], axis=-1)
    return Rows(state, action, episode, step, version, end, final)


def add_ends(columns: Columns, goal_size: int) -> Columns:
    """Returns the columns of a recording without ends, `[..., S + A]` and `[..., 3]`, as of episodes without ends."""
    floats, ints = columns
    return Columns(
        *(
            np.concatenate([column, np.zeros((*column.shape[:-1], more), column.dtype)], axis=-1)
            for column, more in ((floats, goal_size), (ints, 1))
        )
    )


def on_host(
    columns: Columns, environments: int, steps: int | str = "T", num_floats: int | str = "F"
) -> list[np.ndarray]:
    """Returns an unroll's columns as contiguous numpy arrays. A letter in place of a size allows any.

    Raises ValueError unless `floats` is float32 `[environments, steps, num_floats]` and `ints` int32 beside it.
    """
    floats, ints = (np.ascontiguousarray(column) for column in columns)
    if steps == "T" and floats.ndim == 3 and floats.size:
        steps, num_floats = floats.shape[1:]
    for name, array, dtype, size in (("floats", floats, "float32", num_floats), ("ints", ints, "int32", INT_COLUMNS)):
        if array.dtype != dtype or array.shape != (environments, steps, size):
            wanted = f"{dtype} [{environments}, {steps}, {size}]"
            raise ValueError(f"{name}: {wanted} is needed, not {array.dtype} {list(array.shape)}")
    return [floats, ints]
