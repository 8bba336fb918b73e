"""Environments whose host code waits where a test asks for it by files in the folder `PACE_DIR`."""

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
    """Sleeps once for good on a file `hang`, `UNROLL_S` seconds on a file `slow`, and as long as `hold` is there."""
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
    """`state` unchanged, after a pause. Starts are drawn once in an unroll, so that each unroll has one pause."""
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
