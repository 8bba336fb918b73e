"""Mazes for a point with velocity, in plain JAX: fast enough for a CPU.

Lengths are in cells. The point's body is a square of half-width `RADIUS` that stays out of walls. It moves along x,
then along y, so a wall stops one axis while the point slides along the other.
"""

import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from shared.config import EnvOptions
from shared.envs.base import EnvSpec, EnvState, GoalEnv
from shared.envs.geodesic import longest_walk
from shared.envs.labyrinth import LABYRINTH, labyrinth
from shared.envs.space import CELLS_PER_SIDE, GRIDS, Maze
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

SHORTEST_EPISODE = 200  # environment steps
# All episodes begin in one corner, so random actions need long episodes to pass the first junctions, although the
# farthest goal is 15 cells away.
_EPISODES = {"point_hardest_maze": 400}
# Episodes of labyrinths, for each cell of the longest way: a walk at top speed takes 4 steps, one that slows down at
# every corner takes 6, and the rest of the episode is time at the goal.
STEPS_PER_CELL = 10
ROUND_STEPS = 50


class PointMaze(GoalEnv):
    """One point, or `bodies` points that share a maze, do not collide and have one joint goal.

    State `[x, y, vx, vy]` (cells, cells / s), goal `[x, y]` and action `[ax, ay]` (shares of `FORCE`) of the first
    point, then those of the next one. The distance to the joint goal is Euclidean over all points, and its radius grows
    with the root of their number: the goal is reached when the root mean square of the points' own distances is below
    `GOAL_RADIUS`.
    """

    def __init__(self, maze: Maze, episode_length: int, bodies: int = 1) -> None:
        self.maze, self.bodies = maze, bodies
        self._counted = min(bodies, 2)
        self.spec = EnvSpec(
            state_size=4 * bodies,
            goal_size=2 * bodies,
            action_size=2 * bodies,
            goal_indices=tuple(4 * body + axis for body in range(bodies) for axis in (0, 1)),
            episode_length=episode_length,
            goal_radius=GOAL_RADIUS * math.sqrt(bodies),
            num_cells=maze.num_cells**self._counted,
        )

    def reset(self, key: Array) -> EnvState:
        """Draws cells and positions in them uniformly, for each point; all are at rest. `key` is consumed."""
        keys = key[None] if self.bodies == 1 else jax.random.split(key, self.bodies)
        starts, goals = jax.vmap(self.maze.draw)(keys)
        state = jnp.concatenate([starts, jnp.zeros((self.bodies, 2))], axis=1)
        return EnvState((), state.ravel(), goals.ravel(), jnp.array(False))

    def step(self, env_state: EnvState, action: Array) -> EnvState:
        """Applies `action` `[2 * bodies]`, clipped to [-1, 1]."""
        walls = self.maze.walls
        moved = jax.vmap(partial(_move, walls))(self._by_body(env_state.state), self._by_body(action))
        return env_state._replace(state=moved.ravel())

    def cell(self, goal: Array) -> Array:
        """Returns the cells `[...]` int32 of `goal` `[..., G]`.

        Several points have joint cells, of which there are too many to count: the cells here are those of the first
        two points together.
        """
        points = jnp.reshape(goal, (*jnp.shape(goal)[:-1], self.bodies, 2))[..., : self._counted, :]
        cells = jnp.moveaxis(self.maze.cell(points), -1, 0)
        return jnp.ravel_multi_index(tuple(cells), (self.maze.num_cells,) * self._counted, mode="clip")

    def measures(self, env_state: EnvState) -> dict[str, Array]:
        """Returns the mean speed of the points, and whether any of them touches a wall."""
        state = self._by_body(env_state.state)
        touches = jax.vmap(partial(_touches_any, self.maze.walls))(state)
        return {"speed": jnp.linalg.norm(state[:, 2:], axis=-1).mean(), "wall_contact": touches.any()}

    def _by_body(self, numbers: Array) -> Array:
        return jnp.reshape(numbers, (self.bodies, -1))


def build(env_id: str, options: EnvOptions) -> PointMaze:
    """Returns the maze named `env_id`. Raises ValueError for options that it does not have, or a bad labyrinth."""
    options.refuse("backend", "physics_dt", "reference_state", "separate_walls")
    if LABYRINTH.fullmatch(env_id):
        grid = labyrinth(env_id)
    else:
        grid = GRIDS.get(env_id) or GRIDS[env_id.removeprefix("point_")]
    maze = Maze(grid, jitter=START_RANGE, cells_per_side=CELLS_PER_SIDE if options.bodies == 1 else 1)
    return PointMaze(maze, options.episode_length or _episode_length(env_id, maze), options.bodies)


def _episode_length(env_id: str, maze: Maze) -> int:
    if LABYRINTH.fullmatch(env_id):
        steps = STEPS_PER_CELL * longest_walk(maze)
        return max(SHORTEST_EPISODE, -(-steps // ROUND_STEPS) * ROUND_STEPS)
    return _EPISODES.get(env_id, SHORTEST_EPISODE)


def _move(walls: np.ndarray, state: Array, action: Array) -> Array:
    """Returns the state `[4]` of a point after a step with `action` `[2]`."""
    x, y, velocity = state[0], state[1], state[2:]
    vx, vy = velocity + SECONDS_PER_STEP * (FORCE * jnp.clip(action, -1, 1) - DRAG * velocity)
    x, vx = _advance(walls, x, y, vx)
    y, vy = _advance(walls.T, y, x, vy)
    return jnp.stack([x, y, vx, vy])


def _advance(walls: np.ndarray, along: Array, across: Array, velocity: Array) -> tuple[Array, Array]:
    """Moves a point `[]` along the first axis of `walls`; returns its new coordinate and velocity on that axis."""
    reach = jnp.where(velocity > 0, RADIUS, -RADIUS)
    along = along + SECONDS_PER_STEP * velocity
    ahead = jnp.round(along + reach).astype(jnp.int32)
    hit = jnp.asarray(walls)[ahead, jnp.round(across + SIDES).astype(jnp.int32)].any()
    touching = ahead - jnp.where(velocity > 0, 0.5, -0.5) - reach
    return jnp.where(hit, touching, along), jnp.where(hit, 0.0, velocity)


def _touches_any(walls: np.ndarray, state: Array) -> Array:
    """Returns `[]` bool: a point with `state` `[4]` rests against a wall on any side."""
    x, y = state[0], state[1]
    return _touches(walls, x, y) | _touches(walls.T, y, x)


def _touches(walls: np.ndarray, along: Array, across: Array) -> Array:
    """Returns `[]` bool: a point rests against a wall that lies before or behind it on the first axis of `walls`."""
    ahead = jnp.round(along + np.array([-1.0, 1.0]) * (RADIUS + TOUCH)).astype(jnp.int32)
    return jnp.asarray(walls)[ahead[:, None], jnp.round(across + SIDES).astype(jnp.int32)].any()
