"""Environments that a test slows down, holds or hangs by files in the folder `PACE_DIR`."""

import os
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from field import Field

from shared.config import EnvOptions
from shared.envs.base import EnvState
from shared.envs.registry import make_env

UNROLL_S, POLL_S = 0.2, 0.05


def pause_if_asked(zero: np.ndarray) -> np.ndarray:
    """Returns `zero` after the pauses that the files in `PACE_DIR` request.

    `hang` blocks one call for good and is removed by the call. `slow` delays each call by `UNROLL_S` seconds. `hold`
    blocks each call until the test removes the file.
    """
    folder = Path(os.environ["PACE_DIR"])
    if (folder / "hang").exists():
        (folder / "hang").unlink()
        time.sleep(10_000)
    if (folder / "slow").exists():
        time.sleep(UNROLL_S)
    while (folder / "hold").exists():
        time.sleep(POLL_S)
    return zero


def _paced(state: EnvState) -> EnvState:
    """Returns `state` unchanged, after a pause. An unroll draws start states once, so that it pauses once."""
    number = jax.ShapeDtypeStruct((), jnp.float32)
    zero = jax.pure_callback(pause_if_asked, number, 0 * state.state[0], vmap_method="expand_dims")
    return state._replace(state=state.state + zero)


class PacedMaze:
    def __init__(self, options: EnvOptions) -> None:
        maze = make_env("point_u_maze", options)
        self.maze, self.spec, self.step, self.cell, self.distance = maze, maze.spec, maze.step, maze.cell, maze.distance

    def reset(self, key: jax.Array) -> EnvState:
        return _paced(self.maze.reset(key))


class PacedField(Field):
    def reset(self, key: jax.Array) -> EnvState:
        return _paced(super().reset(key))
