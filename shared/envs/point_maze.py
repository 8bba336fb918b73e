"""Mazes for a point with velocity, in plain JAX: fast enough for a CPU.

Lengths are in cells: row i and column j of the grid are the unit square centred on (i, j). The point's body
is a square of half-width `RADIUS` that keeps out of walls; it moves along x, then along y, so that a wall
stops one axis and the point slides along the other.
"""

from dataclasses import dataclass
from functools import cached_property

import jax
import jax.numpy as jnp
import numpy as np

from shared.envs.base import EnvSpec, EnvState
from shared.types import Array

SECONDS_PER_STEP = 0.1
FORCE = 5.0  # cells / s^2 at full action
DRAG = 2.0  # 1 / s
TOP_SPEED = FORCE / DRAG  # per axis: a cell takes 4 steps, so that no step jumps over a wall
RADIUS = 0.15
GOAL_RADIUS = 0.25
START_RANGE = 0.3  # how far from a cell's centre starts and goals lie, per axis
CELLS_PER_SIDE = 2  # coverage counts quarters of maze cells
# A little less than `RADIUS`: the sides of a point that rests against a wall must not round into that wall.
SIDES = np.array([-1.0, 1.0], np.float32) * (RADIUS - 1e-4)

GRIDS = {
    "point_u_maze": "#####/#XXX#/###X#/#XXX#/#####",
    "point_big_maze": "########/#XX##XX#/#XX#XXX#/##XXX###/#XX#XXX#/#X#XX#X#/#XXX#XX#/########",
    "point_spiral_maze": "#########/#RRRRRRR#/#######.#/#.....#.#/#.###G#.#/#.#GGG#.#/#.#####.#/#.......#/#########",
}


@dataclass(frozen=True)
class PointMaze:
    """State `[x, y, vx, vy]` (cells, cells / s), goal `[x, y]`, action `[ax, ay]`: the share of `FORCE`.

    `grid`: rows of `#` wall, `R` start, `G` goal, `X` both and `.` neither. Raises ValueError if a grid is
    not rectangular, not closed, or has no start or no goal.
    """

    grid: tuple[str, ...]
    episode_length: int = 200

    def __post_init__(self) -> None:
        if len({len(row) for row in self.grid}) != 1 or set("".join(self.grid)) - set("#RGX."):
            raise ValueError(f"a maze's rows must be equally long and hold '#RGX.' only: {self.grid}")
        border = self.walls.copy()
        border[1:-1, 1:-1] = True
        if not border.all() or not len(self.starts) or not len(self.goals):
            raise ValueError(f"a maze needs a closed border of '#', a start and a goal: {self.grid}")

    @cached_property
    def spec(self) -> EnvSpec:
        return EnvSpec(
            state_size=4,
            goal_size=2,
            action_size=2,
            goal_indices=(0, 1),
            episode_length=self.episode_length,
            goal_radius=GOAL_RADIUS,
            num_cells=len(self._cell_centres),
        )

    @cached_property
    def walls(self) -> np.ndarray:
        """`[rows, columns]` bool."""
        return _where(self.grid, "#")

    @cached_property
    def starts(self) -> np.ndarray:
        """`[cells, 2]` float32: the centres of the cells that starts are drawn from."""
        return np.argwhere(_where(self.grid, "RX")).astype(np.float32)

    @cached_property
    def goals(self) -> np.ndarray:
        """`[cells, 2]` float32: the centres of the cells that goals are drawn from."""
        return np.argwhere(_where(self.grid, "GX")).astype(np.float32)

    def reset(self, key: Array) -> EnvState:
        """`key` is consumed. Cells are uniform, positions uniform in them; the point is at rest."""
        # One draw for all six numbers: drawing is most of a reset's cost.
        draw = jax.random.uniform(key, (6,))
        start = _pick(self.starts, draw[0]) + START_RANGE * (2 * draw[2:4] - 1)
        goal = _pick(self.goals, draw[1]) + START_RANGE * (2 * draw[4:6] - 1)
        return EnvState((), jnp.concatenate([start, jnp.zeros(2)]), goal, jnp.array(False))

    def step(self, env_state: EnvState, action: Array) -> EnvState:
        """`action` `[2]`, clipped to [-1, 1]."""
        x, y, velocity = env_state.state[0], env_state.state[1], env_state.state[2:]
        vx, vy = velocity + SECONDS_PER_STEP * (FORCE * jnp.clip(action, -1, 1) - DRAG * velocity)
        x, vx = _advance(self.walls, x, y, vx)
        y, vy = _advance(self.walls.T, y, x, vy)
        return env_state._replace(state=jnp.stack([x, y, vx, vy]))

    def cell(self, goal: Array) -> Array:
        """`[...]` int32: the free quarter of a maze cell that is nearest to `goal` `[..., 2]`."""
        quarter = jnp.floor((jnp.asarray(goal) + 0.5) * CELLS_PER_SIDE).astype(jnp.int32)
        row, column = jnp.moveaxis(jnp.clip(quarter, 0, np.array(self._nearest_cell.shape) - 1), -1, 0)
        return jnp.asarray(self._nearest_cell)[row, column]

    @cached_property
    def _cell_centres(self) -> np.ndarray:
        """`[num_cells, 2]`"""
        return _quarter_centres(~self.walls)

    @cached_property
    def _nearest_cell(self) -> np.ndarray:
        """`[CELLS_PER_SIDE * rows, CELLS_PER_SIDE * columns]` int32"""
        everywhere = _quarter_centres(np.ones_like(self.walls))
        distance = np.linalg.norm(everywhere[:, None] - self._cell_centres, axis=-1)
        return distance.argmin(axis=1).astype(np.int32).reshape(np.array(self.walls.shape) * CELLS_PER_SIDE)


def build(env_id: str, episode_length: int | None = None) -> PointMaze:
    """The maze named `env_id`, with its own episode length unless one is given."""
    grid = tuple(GRIDS[env_id].split("/"))
    return PointMaze(grid) if episode_length is None else PointMaze(grid, episode_length)


def _advance(walls: np.ndarray, along: Array, across: Array, velocity: Array) -> tuple[Array, Array]:
    """Moves a point `[]` along the first axis of `walls`: its new coordinate and velocity on that axis."""
    reach = jnp.where(velocity > 0, RADIUS, -RADIUS)
    along = along + SECONDS_PER_STEP * velocity
    ahead = jnp.round(along + reach).astype(jnp.int32)
    hit = jnp.asarray(walls)[ahead, jnp.round(across + SIDES).astype(jnp.int32)].any()
    touching = ahead - jnp.where(velocity > 0, 0.5, -0.5) - reach
    return jnp.where(hit, touching, along), jnp.where(hit, 0.0, velocity)


def _where(grid: tuple[str, ...], symbols: str) -> np.ndarray:
    return np.array([[symbol in symbols for symbol in row] for row in grid])


def _quarter_centres(cells: np.ndarray) -> np.ndarray:
    """`[k, 2]`: the centres of the quarters of those `cells` `[rows, columns]` that are true."""
    quarters = cells.repeat(CELLS_PER_SIDE, axis=0).repeat(CELLS_PER_SIDE, axis=1)
    return (np.argwhere(quarters) + 0.5) / CELLS_PER_SIDE - 0.5


def _pick(cells: np.ndarray, uniform: Array) -> Array:
    """A row of `cells` `[k, 2]`, by a `uniform` number in [0, 1)."""
    return jnp.asarray(cells)[(uniform * len(cells)).astype(jnp.int32)]
