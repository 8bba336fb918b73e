"""Mazes for a point with velocity, in plain JAX: fast enough for a CPU.

Lengths are in cells. The point's body is a square of half-width `RADIUS` that keeps out of walls; it moves
along x, then along y, so that a wall stops one axis and the point slides along the other.
"""

import jax.numpy as jnp
import numpy as np

from shared.config import EnvOptions
from shared.envs.base import EnvSpec, EnvState, GoalEnv
from shared.envs.space import Maze, make_maze
from shared.types import Array

SECONDS_PER_STEP = 0.1
FORCE = 5.0  # cells / s^2 at full action
DRAG = 2.0  # 1 / s
TOP_SPEED = FORCE / DRAG  # per axis: a cell takes 4 steps, so that no step jumps over a wall
RADIUS = 0.15
GOAL_RADIUS = 0.25
START_RANGE = 0.3  # how far from a cell's centre starts and goals lie, per axis
# A little less than `RADIUS`: the sides of a point that rests against a wall must not round into that wall.
SIDES = np.array([-1.0, 1.0], np.float32) * (RADIUS - 1e-4)


class PointMaze(GoalEnv):
    """State `[x, y, vx, vy]` (cells, cells / s), goal `[x, y]`, action `[ax, ay]`: the share of `FORCE`."""

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
        """`key` is consumed. Cells are uniform, positions uniform in them; the point is at rest."""
        start, goal = self.maze.draw(key)
        return EnvState((), jnp.concatenate([start, jnp.zeros(2)]), goal, jnp.array(False))

    def step(self, env_state: EnvState, action: Array) -> EnvState:
        """`action` `[2]`, clipped to [-1, 1]."""
        x, y, velocity = env_state.state[0], env_state.state[1], env_state.state[2:]
        vx, vy = velocity + SECONDS_PER_STEP * (FORCE * jnp.clip(action, -1, 1) - DRAG * velocity)
        walls = self.maze.walls
        x, vx = _advance(walls, x, y, vx)
        y, vy = _advance(walls.T, y, x, vy)
        return env_state._replace(state=jnp.stack([x, y, vx, vy]))

    def cell(self, goal: Array) -> Array:
        """`[...]` int32: the free quarter of a maze cell that is nearest to `goal` `[..., 2]`."""
        return self.maze.cell(goal)


def build(env_id: str, options: EnvOptions) -> PointMaze:
    """The maze named `env_id`. Raises ValueError for options of other physics."""
    options.refuse("backend", "physics_dt", "reference_state", "separate_walls")
    maze = make_maze(env_id, jitter=START_RANGE)
    return PointMaze(maze, options.episode_length or 200)


def _advance(walls: np.ndarray, along: Array, across: Array, velocity: Array) -> tuple[Array, Array]:
    """Moves a point `[]` along the first axis of `walls`: its new coordinate and velocity on that axis."""
    reach = jnp.where(velocity > 0, RADIUS, -RADIUS)
    along = along + SECONDS_PER_STEP * velocity
    ahead = jnp.round(along + reach).astype(jnp.int32)
    hit = jnp.asarray(walls)[ahead, jnp.round(across + SIDES).astype(jnp.int32)].any()
    touching = ahead - jnp.where(velocity > 0, 0.5, -0.5) - reach
    return jnp.where(hit, touching, along), jnp.where(hit, 0.0, velocity)
