"""Mazes for a point with velocity, in plain JAX: fast enough for a CPU.

Lengths are in cells. The point's body is a square of half-width `RADIUS` that stays out of walls. It moves along x,
then along y, so a wall stops one axis while the point slides along the other.
"""

import jax.numpy as jnp
import numpy as np

from shared.config import EnvOptions
from shared.envs.base import EnvSpec, EnvState, GoalEnv
from shared.envs.space import GRIDS, Maze
from shared.types import Array

SECONDS_PER_STEP = 0.1
FORCE = 5.0  # cells / s^2 at full action
DRAG = 2.0  # 1 / s
TOP_SPEED = FORCE / DRAG  # per axis: a cell takes 4 steps, so no step jumps over a wall
RADIUS = 0.15
GOAL_RADIUS = 0.25
START_RANGE = 0.3  # largest distance of starts and goals from a cell's centre, per axis
# A little less than `RADIUS`: the sides of a point that rests against a wall must not round into that wall.
SIDES = np.array([-1.0, 1.0], np.float32) * (RADIUS - 1e-4)

TOUCH = 1e-3  # largest gap to a wall that counts as contact


class PointMaze(GoalEnv):
    """State `[x, y, vx, vy]` (cells, cells / s), goal `[x, y]`, action `[ax, ay]` (shares of `FORCE`)."""

    def __init__(self, maze: Maze, episode_length: int) -> None:
        self.maze = maze
        self.spec = EnvSpec(
            state_size=4,
            goal_size=2,
            action_size=2,
            goal_indices=(0, 1),
            episode_length=episode_length,
            goal_radius=GOAL_RADIUS,
            num_cells=maze.num_cells,
        )

    def reset(self, key: Array) -> EnvState:
        """Draws cells and positions in them uniformly; the point is at rest. `key` is consumed."""
        start, goal = self.maze.draw(key)
        return EnvState((), jnp.concatenate([start, jnp.zeros(2)]), goal, jnp.array(False))

    def step(self, env_state: EnvState, action: Array) -> EnvState:
        """Applies `action` `[2]`, clipped to [-1, 1]."""
        x, y, velocity = env_state.state[0], env_state.state[1], env_state.state[2:]
        vx, vy = velocity + SECONDS_PER_STEP * (FORCE * jnp.clip(action, -1, 1) - DRAG * velocity)
        walls = self.maze.walls
        x, vx = _advance(walls, x, y, vx)
        y, vy = _advance(walls.T, y, x, vy)
        return env_state._replace(state=jnp.stack([x, y, vx, vy]))

    def cell(self, goal: Array) -> Array:
        return self.maze.cell(goal)

    def measures(self, env_state: EnvState) -> dict[str, Array]:
        x, y, velocity = env_state.state[0], env_state.state[1], env_state.state[2:]
        walls = self.maze.walls
        touches = _touches(walls, x, y) | _touches(walls.T, y, x)
        return {"speed": jnp.linalg.norm(velocity), "wall_contact": touches}


def build(env_id: str, options: EnvOptions) -> PointMaze:
    """Returns the maze named `env_id`. Raises ValueError for options that it does not have."""
    options.refuse("backend", "physics_dt", "reference_state", "separate_walls")
    return PointMaze(Maze(GRIDS[env_id], jitter=START_RANGE), options.episode_length or 200)


def _advance(walls: np.ndarray, along: Array, across: Array, velocity: Array) -> tuple[Array, Array]:
    """Moves a point `[]` along the first axis of `walls`; returns its new coordinate and velocity on that axis."""
    reach = jnp.where(velocity > 0, RADIUS, -RADIUS)
    along = along + SECONDS_PER_STEP * velocity
    ahead = jnp.round(along + reach).astype(jnp.int32)
    hit = jnp.asarray(walls)[ahead, jnp.round(across + SIDES).astype(jnp.int32)].any()
    touching = ahead - jnp.where(velocity > 0, 0.5, -0.5) - reach
    return jnp.where(hit, touching, along), jnp.where(hit, 0.0, velocity)


def _touches(walls: np.ndarray, along: Array, across: Array) -> Array:
    """Returns `[]` bool: a point rests against a wall that lies before or behind it on the first axis of `walls`."""
    ahead = jnp.round(along + np.array([-1.0, 1.0]) * (RADIUS + TOUCH)).astype(jnp.int32)
    return jnp.asarray(walls)[ahead[:, None], jnp.round(across + SIDES).astype(jnp.int32)].any()
