"""Where an environment's starts and goals lie, and the cells that state coverage counts.

Everything here is plain numbers: whatever walks in a maze, a point, an ant or a humanoid, walks in this one.
"""

from abc import ABC, abstractmethod
from collections import deque
from dataclasses import dataclass, field
from functools import cached_property

import jax
import jax.numpy as jnp
import numpy as np

from shared.types import Array

CELLS_PER_SIDE = 2  # coverage counts quarters of maze cells

# Rows of `#` wall, `R` start, `G` goal, `X` both, `.` neither; row i lies at x = i, column j at y = j.
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


class Space(ABC):
    """Draws starts and goals on the plane and divides it into cells."""

    num_cells: int

    @abstractmethod
    def draw(self, key: Array) -> tuple[Array, Array]:
        """A start `[2]` and a goal `[2]`, in metres. `key` is consumed."""

    @abstractmethod
    def cell(self, position: Array) -> Array:
        """The cell `[...]` int32 in 0..num_cells-1 of positions `[..., 2]`."""


@dataclass(frozen=True)
class Histogram:
    """A box of goal space divided evenly; what lies outside counts in the nearest cell."""

    low: tuple[float, ...]
    high: tuple[float, ...]
    bins: tuple[int, ...]

    @property
    def num_cells(self) -> int:
        return int(np.prod(self.bins))

    def cell(self, position: Array) -> Array:
        """The cell `[...]` int32 of positions `[..., D]`."""
        low, high, bins = np.array(self.low), np.array(self.high), np.array(self.bins)
        share = (jnp.asarray(position) - low) / (high - low)
        index = jnp.clip(jnp.floor(share * bins).astype(jnp.int32), 0, bins - 1)
        return jnp.ravel_multi_index(tuple(jnp.moveaxis(index, -1, 0)), self.bins, mode="clip").astype(jnp.int32)


@dataclass(frozen=True)
class Ring(Space):
    """An open plane: starts at the origin, goals around it. Lengths in metres."""

    nearest: float
    farthest: float

    @cached_property
    def _histogram(self) -> Histogram:
        edge = 1.25 * self.farthest
        return Histogram((-edge, -edge), (edge, edge), (16, 16))

    @property
    def num_cells(self) -> int:  # type: ignore[override]
        return self._histogram.num_cells

    def draw(self, key: Array) -> tuple[Array, Array]:
        """The goal's angle and its distance are uniform, so that goals are denser near the origin."""
        angle, share = jax.random.uniform(key, (2,))
        radius = self.nearest + share * (self.farthest - self.nearest)
        goal = radius * jnp.stack([jnp.cos(2 * jnp.pi * angle), jnp.sin(2 * jnp.pi * angle)])
        return jnp.zeros(2), goal

    def cell(self, position: Array) -> Array:
        return self._histogram.cell(position)


@dataclass(frozen=True)
class Maze(Space):
    """A grid of square cells. Raises ValueError unless it is rectangular, closed, and has a start and a goal.

    `scale`: a cell's side in metres; cell (i, j) is centred on `origin + scale * (i, j)`. `jitter`: how far
    from a cell's centre starts and goals lie, per axis, in cells. `hops`: if any, a start and a goal are
    two cells of the corridor, the goal that many cells further on; each number of cells is equally likely.
    """

    grid: tuple[str, ...]
    scale: float = 1.0
    origin: tuple[float, float] = (0.0, 0.0)
    jitter: float = 0.0
    hops: tuple[int, ...] = field(default=())

    def __post_init__(self) -> None:
        if len({len(row) for row in self.grid}) != 1 or set("".join(self.grid)) - set("#RGX."):
            raise ValueError(f"a maze's rows must be equally long and hold '#RGX.' only: {self.grid}")
        border = self.walls.copy()
        border[1:-1, 1:-1] = True
        if not border.all() or not len(self.starts) or not len(self.goals):
            raise ValueError(f"a maze needs a closed border of '#', a start and a goal: {self.grid}")
        if self.hops and max(self.hops) >= len(self.corridor):
            raise ValueError(f"its corridor is {len(self.corridor)} cells long, too short for {max(self.hops)} hops")

    @cached_property
    def walls(self) -> np.ndarray:
        """`[rows, columns]` bool."""
        return self._where("#")

    @cached_property
    def starts(self) -> np.ndarray:
        """`[cells, 2]` float32: the centres of the cells that starts are drawn from, in metres."""
        return self.centres(np.argwhere(self._where("RX")))

    @cached_property
    def goals(self) -> np.ndarray:
        """`[cells, 2]` float32: the centres of the cells that goals are drawn from, in metres."""
        return self.centres(np.argwhere(self._where("GX")))

    @cached_property
    def corridor(self) -> np.ndarray:
        """`[cells, 2]` int: the free cells in the order in which a walk from the start meets them.

        Raises ValueError for a maze that branches.
        """
        todo = deque([tuple(np.argwhere(self._where("RX"))[0])])
        path: list[tuple[int, int]] = []
        while todo:
            i, j = todo.popleft()
            path.append((i, j))
            beside = [(i + 1, j), (i - 1, j), (i, j + 1), (i, j - 1)]
            todo.extend(cell for cell in beside if not self.walls[cell] and cell not in path)
            if len(todo) > 1:
                raise ValueError(f"short hops need a corridor without branches: {self.grid}")
        return np.array(path)

    def centres(self, cells: np.ndarray) -> np.ndarray:
        """Centres `[..., 2]` float32 in metres of `cells` `[..., 2]`, which may be fractions of cells."""
        return (np.array(self.origin) + self.scale * cells).astype(np.float32)

    def draw(self, key: Array) -> tuple[Array, Array]:
        # One draw for all six numbers: drawing is most of the cost of a point's reset.
        share = jax.random.uniform(key, (6,))
        if self.hops:
            pairs = jnp.asarray(self._hop_pairs)
            which = jnp.searchsorted(jnp.asarray(self._hop_shares), share[0], side="right")
            start, goal = pairs[jnp.minimum(which, len(pairs) - 1)]
        else:
            start, goal = _pick(self.starts, share[0]), _pick(self.goals, share[1])
        reach = self.jitter * self.scale
        return start + reach * (2 * share[2:4] - 1), goal + reach * (2 * share[4:6] - 1)

    @cached_property
    def _hop_pairs(self) -> np.ndarray:
        """`[pairs, 2, 2]` float32: every start and goal, in metres."""
        path = self.corridor
        pairs = [(path[i], path[i + hop]) for hop in self.hops for i in range(len(path) - hop)]
        return self.centres(np.array(pairs))

    @cached_property
    def _hop_shares(self) -> np.ndarray:
        """`[pairs]` float32: cumulated probabilities."""
        length = len(self.corridor)
        shares = [np.full(length - hop, 1 / (length - hop) / len(self.hops)) for hop in self.hops]
        return np.cumsum(np.concatenate(shares)).astype(np.float32)

    @property
    def num_cells(self) -> int:  # type: ignore[override]
        return len(self._cell_centres)

    def cell(self, position: Array) -> Array:
        """`[...]` int32: the free quarter of a maze cell that is nearest to `position` `[..., 2]`."""
        in_cells = (jnp.asarray(position) - np.array(self.origin)) / self.scale
        quarter = jnp.floor((in_cells + 0.5) * CELLS_PER_SIDE).astype(jnp.int32)
        row, column = jnp.moveaxis(jnp.clip(quarter, 0, np.array(self._nearest_cell.shape) - 1), -1, 0)
        return jnp.asarray(self._nearest_cell)[row, column]

    @cached_property
    def _cell_centres(self) -> np.ndarray:
        """`[num_cells, 2]` in cells."""
        return _quarter_centres(~self.walls)

    @cached_property
    def _nearest_cell(self) -> np.ndarray:
        """`[CELLS_PER_SIDE * rows, CELLS_PER_SIDE * columns]` int32"""
        everywhere = _quarter_centres(np.ones_like(self.walls))
        distance = np.linalg.norm(everywhere[:, None] - self._cell_centres, axis=-1)
        return distance.argmin(axis=1).astype(np.int32).reshape(np.array(self.walls.shape) * CELLS_PER_SIDE)

    def _where(self, symbols: str) -> np.ndarray:
        return np.array([[symbol in symbols for symbol in row] for row in self.grid])


def make_maze(
    name: str,
    scale: float = 1.0,
    origin: tuple[float, float] = (0.0, 0.0),
    jitter: float = 0.0,
    hops: tuple[int, ...] = (),
) -> Maze:
    """The maze of one of `GRIDS`."""
    return Maze(tuple(GRIDS[name].split("/")), scale, origin, jitter, hops)


def _quarter_centres(cells: np.ndarray) -> np.ndarray:
    """`[k, 2]`: the centres of the quarters of those `cells` `[rows, columns]` that are true."""
    quarters = cells.repeat(CELLS_PER_SIDE, axis=0).repeat(CELLS_PER_SIDE, axis=1)
    return (np.argwhere(quarters) + 0.5) / CELLS_PER_SIDE - 0.5


def _pick(cells: np.ndarray, uniform: Array) -> Array:
    """A row of `cells` `[k, 2]`, by a `uniform` number in [0, 1)."""
    return jnp.asarray(cells)[(uniform * len(cells)).astype(jnp.int32)]
