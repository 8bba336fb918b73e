"""Starts and goals of environments, and the cells of goal space that state coverage counts.

Mazes are plain numbers, so points, ants and humanoids walk in the same mazes.
"""

import math
import re
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from shared.types import Array

CELLS_PER_SIDE = 2  # state coverage counts quarters of maze cells, unless a maze says otherwise

# Ids of short hops: the grid with the corridor, and the numbers of cells between start and goal.
HOPS = re.compile(r"ant_(u|u2|u3|u4|u5)_maze_gen_((?:[1-9][0-9]?f)+)")

# `#` wall, `R` start, `G` goal, `X` start and goal, `.` other free cell. Row i lies at x = i, column j at y = j.
GRIDS = {
    "u_maze": "#####/#RGG#/###G#/#GGG#/#####",
    "u_maze_eval": "#####/#R..#/###.#/#GGG#/#####",
    "u_maze_single_eval": "#####/#R..#/###.#/#G..#/#####",
    "u_maze_eval_1f2f3f4f5f": "#####/#RGG#/###G#/#.GG#/#####",
    "u_maze_eval_1f2f3f4f": "#####/#RGG#/###G#/#..G#/#####",
    "u_maze_eval_1f2f3f": "#####/#RGG#/###G#/#...#/#####",
    "u_maze_eval_5f6f": "#####/#R..#/###.#/#GG.#/#####",
    "u2_maze": "######/#RGGG#/####G#/#GGGG#/######",
    "u2_maze_eval": "######/#R...#/####.#/#GGGG#/######",
    "u3_maze": "#######/#RGGGG#/#####G#/#GGGGG#/#######",
    "u3_maze_eval": "#######/#R....#/#####.#/#GGGGG#/#######",
    "u3_maze_single_eval": "#######/#R....#/#####.#/#G....#/#######",
    "u4_maze": "#####/#GGG#/#R#G#/###G#/#G#G#/#GGG#/#####",
    "u4_maze_eval": "#####/#...#/#R#.#/###.#/#G#.#/#GGG#/#####",
    "u5_maze": "########/#GGGGGG#/#R####G#/######G#/#G####G#/#GGGGGG#/########",
    "u5_maze_eval": "########/#......#/#R####.#/######.#/#G####G#/#GGGGGG#/########",
    "u5_maze_single_eval": "########/#......#/#R####.#/######.#/#G####.#/#......#/########",
    "u6_maze": "#######/#GGGGG#/#R###G#/#####G#/#G###G#/#GGGGG#/#######",
    "u6_maze_eval": "#######/#.....#/#R###.#/#####.#/#G###G#/#GGGGG#/#######",
    "u7_maze": "######/#GGGG#/#R##G#/####G#/#G##G#/#GGGG#/######",
    "u7_maze_eval": "######/#....#/#R##.#/####.#/#G##G#/#GGGG#/######",
    "big_maze": "########/#RG##GG#/#GG#GGG#/##GGG###/#GG#GGG#/#G#GG#G#/#GGG#GG#/########",
    "big_maze_eval": "########/#R.##GG#/#..#..G#/##...###/#..#...#/#.#G.#G#/#.GG#GG#/########",
    "big_maze_eval_10": "########/#R.##GG#/#..#.GG#/##...###/#..#...#/#.#G.#G#/#.GG#GG#/########",
    "hardest_maze": (
        "############/#RGGG#GGGGG#/#G##G#G#G#G#/#GGGGGG#GGG#/#G####G###G#/#GG#G#GGGGG#/##G#G#G#G###/#GG#GGG#GGG#"
        "/############"
    ),
    "push": "#####/#R.##/#..G#/##G##/#####",
    "point_u_maze": "#####/#XXX#/###X#/#XXX#/#####",
    "point_big_maze": "########/#XX##XX#/#XX#XXX#/##XXX###/#XX#XXX#/#X#XX#X#/#XXX#XX#/########",
    "point_spiral_maze": "#########/#RRRRRRR#/#######.#/#.....#.#/#.###G#.#/#.#GGG#.#/#.#####.#/#.......#/#########",
}


class Histogram:
    """Box of goal space, divided evenly; positions outside count in the nearest cell."""

    def __init__(self, low: tuple[float, ...], high: tuple[float, ...], bins: tuple[int, ...]) -> None:
        self.low, self.high, self.bins = np.array(low), np.array(high), bins
        self.num_cells = math.prod(bins)

    def cell(self, position: Array) -> Array:
        """Returns the cells `[...]` int32 of positions `[..., D]`, of which only the box's dimensions count."""
        position, bins = jnp.asarray(position)[..., : len(self.bins)], np.array(self.bins)
        share = (position - self.low) / (self.high - self.low)
        index = jnp.clip(jnp.floor(share * bins).astype(jnp.int32), 0, bins - 1)
        return jnp.ravel_multi_index(tuple(jnp.moveaxis(index, -1, 0)), self.bins, mode="clip").astype(jnp.int32)


class Ring(Histogram):
    """Open plane with starts at the origin and goals around it. Lengths in metres."""

    def __init__(self, nearest: float, farthest: float) -> None:
        edge = 1.25 * farthest
        super().__init__((-edge, -edge), (edge, edge), (16, 16))
        self.nearest, self.farthest = nearest, farthest

    def draw(self, key: Array) -> tuple[Array, Array]:
        """Returns a start `[2]` and a goal `[2]`. `key` is consumed.

        The goal's angle and its distance are uniform, so goals are denser near the origin.
        """
        angle, share = jax.random.uniform(key, (2,))
        radius = self.nearest + share * (self.farthest - self.nearest)
        goal = radius * jnp.stack([jnp.cos(2 * jnp.pi * angle), jnp.sin(2 * jnp.pi * angle)])
        return jnp.zeros(2), goal


@dataclass(frozen=True)
class Maze:
    """Grid of square cells.

    Args:
        grid: Rows joined by `/`, in the symbols of `GRIDS`.
        scale: A cell's side in metres; cell (i, j) is centred on `origin + scale * (i, j)`.
        jitter: Largest distance of starts and goals from a cell's centre, per axis, in cells.
        hops: Numbers of cells along the corridor between a start and its goal, each equally likely; if empty, starts
            and goals are drawn from the cells that the grid names.
        cells_per_side: Parts of a maze cell's side that `cell` tells apart.

    Raises:
        ValueError: The grid is not rectangular and closed, has no start or no goal, or has no corridor for `hops`.
    """

    grid: str
    scale: float = 1.0
    origin: tuple[float, float] = (0.0, 0.0)
    jitter: float = 0.0
    hops: tuple[int, ...] = ()
    cells_per_side: int = CELLS_PER_SIDE

    def __post_init__(self) -> None:
        if len({len(row) for row in self.grid.split("/")}) != 1 or set(self.grid) - set("#RGX./"):
            raise ValueError(f"a maze's rows must be equally long and hold '#RGX.' only: {self.grid}")
        border = self.walls.copy()
        border[1:-1, 1:-1] = True
        if not border.all() or not len(self.starts) or not len(self.goals):
            raise ValueError(f"a maze needs a closed border of '#', a start and a goal: {self.grid}")
        if self.hops and max(self.hops) >= len(self.corridor):
            raise ValueError(
                f"the maze's corridor is {len(self.corridor)} cells long, too short for {max(self.hops)} hops"
            )

    @cached_property
    def walls(self) -> np.ndarray:
        """`[rows, columns]` bool."""
        return self._where("#")

    @cached_property
    def starts(self) -> np.ndarray:
        """`[cells, 2]` float32: centres of the cells that starts are drawn from, in metres."""
        return self.centres(np.argwhere(self._where("RX")))

    @cached_property
    def goals(self) -> np.ndarray:
        """`[cells, 2]` float32: centres of the cells that goals are drawn from, in metres."""
        return self.centres(np.argwhere(self._where("GX")))

    @cached_property
    def corridor(self) -> np.ndarray:
        """`[cells, 2]` int: free cells in the order of a walk from the start. ValueError for a maze that branches."""
        path: list[tuple[int, int]] = []
        ahead = [tuple(np.argwhere(self._where("RX"))[0])]
        while ahead:
            if len(ahead) > 1:
                raise ValueError(f"short hops need a corridor without branches: {self.grid}")
            path += ahead
            i, j = path[-1]
            beside = [(i + 1, j), (i - 1, j), (i, j + 1), (i, j - 1)]
            ahead = [cell for cell in beside if not self.walls[cell] and cell not in path]
        return np.array(path)

    def centres(self, cells: np.ndarray) -> np.ndarray:
        """Returns centres `[..., 2]` float32 in metres of `cells` `[..., 2]`, which may be fractions of cells."""
        return (np.array(self.origin) + self.scale * cells).astype(np.float32)

    def in_cells(self, position: Any) -> Any:
        """Returns x, y in cells `[..., 2]`, the first of `position` `[..., D]` in metres; `centres` is the inverse."""
        return (position[..., :2] - np.array(self.origin)) / self.scale

    def draw(self, key: Array) -> tuple[Array, Array]:
        """Returns a start `[2]` and a goal `[2]` in metres. `key` is consumed."""
        # One draw for all six numbers, because drawing is most of the cost of a point's reset.
        share = jax.random.uniform(key, (6,))
        if self.hops:
            pairs, shares = map(jnp.asarray, self._hop_pairs)
            which = jnp.searchsorted(shares, share[0], side="right")
            start, goal = pairs[jnp.minimum(which, len(pairs) - 1)]
        else:
            start, goal = _pick(self.starts, share[0]), _pick(self.goals, share[1])
        reach = self.jitter * self.scale
        return start + reach * (2 * share[2:4] - 1), goal + reach * (2 * share[4:6] - 1)

    @cached_property
    def _hop_pairs(self) -> tuple[np.ndarray, np.ndarray]:
        """Pairs of start and goal `[pairs, 2, 2]` in metres, and their cumulated probabilities `[pairs]`."""
        path = self.corridor
        hops = [(hop, i) for hop in self.hops for i in range(len(path) - hop)]
        pairs = np.array([(path[i], path[i + hop]) for hop, i in hops])
        shares = [1 / (len(path) - hop) / len(self.hops) for hop, _ in hops]
        return self.centres(pairs), np.cumsum(shares).astype(np.float32)

    @property
    def num_cells(self) -> int:
        return len(self._cell_centres)

    def cell(self, position: Array) -> Array:
        """Returns the free parts `[...]` int32 of maze cells nearest to x, y, the first of `position` `[..., D]`."""
        part = jnp.floor((self.in_cells(jnp.asarray(position)) + 0.5) * self.cells_per_side).astype(jnp.int32)
        row, column = jnp.moveaxis(jnp.clip(part, 0, np.array(self._nearest_cell.shape) - 1), -1, 0)
        return jnp.asarray(self._nearest_cell)[row, column]

    @cached_property
    def _cell_centres(self) -> np.ndarray:
        """`[num_cells, 2]` in cells."""
        return _part_centres(~self.walls, self.cells_per_side)

    @cached_property
    def _nearest_cell(self) -> np.ndarray:
        """`[cells_per_side * rows, cells_per_side * columns]` int32."""
        everywhere = _part_centres(np.ones_like(self.walls), self.cells_per_side)
        distance = np.linalg.norm(everywhere[:, None] - self._cell_centres, axis=-1)
        return distance.argmin(axis=1).astype(np.int32).reshape(np.array(self.walls.shape) * self.cells_per_side)

    def _where(self, symbols: str) -> np.ndarray:
        return np.array([[symbol in symbols for symbol in row] for row in self.grid.split("/")])


def _part_centres(cells: np.ndarray, per_side: int) -> np.ndarray:
    """Returns the centres `[k, 2]` of the parts, `per_side` along each side, of all true `cells` `[rows, columns]`."""
    parts = cells.repeat(per_side, axis=0).repeat(per_side, axis=1)
    return (np.argwhere(parts) + 0.5) / per_side - 0.5


def _pick(cells: np.ndarray, uniform: Array) -> Array:
    """Returns a row of `cells` `[k, 2]`, chosen by a `uniform` number in [0, 1)."""
    return jnp.asarray(cells)[(uniform * len(cells)).astype(jnp.int32)]
