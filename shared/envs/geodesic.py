"""Shortest paths through a maze, for a point without width, in numpy and scipy.

A shortest path is straight between corners of walls. So the corners that see each other make a graph, and a path is
start, corners, goal. The graph is made once for a maze.
"""

from functools import cached_property, lru_cache

import numpy as np
from scipy.sparse.csgraph import shortest_path

from shared.envs.space import Maze
from shared.types import Array

_EPS = 1e-6  # cells: a path may touch walls, and positions are float32


class Walls:
    """Walls of a maze as boxes, in cells; the cell (i, j) is centred on (i, j)."""

    def __init__(self, walls: np.ndarray) -> None:
        """`walls` `[rows, columns]` bool."""
        self._walls = walls
        boxes = np.concatenate([_runs(walls), _runs(walls.T)[:, [1, 0, 3, 2]]])
        # Runs along both axes overlap where walls touch, so that no path fits between two cells of wall.
        self._low, self._high = boxes[:, :2] - 0.5, boxes[:, 2:] + 0.5

    def clearance(self, points: np.ndarray) -> np.ndarray:
        """Returns the distance `[...]` of `points` `[..., 2]` to the nearest wall, the larger one of both axes' gaps.

        It is negative within a wall.
        """
        gaps = np.maximum(self._low - points[..., None, :], points[..., None, :] - self._high)
        return gaps.max(axis=-1).min(axis=-1)

    def hides(self, starts: np.ndarray, ends: np.ndarray) -> np.ndarray:
        """Returns `[...]` bool: true if a wall lies between `starts` `[..., 2]` and `ends` `[..., 2]`."""
        starts, ends = np.broadcast_arrays(starts, ends)
        along = (ends - starts)[..., None, :]
        with np.errstate(divide="ignore", invalid="ignore"):
            enter, leave = ((edge - starts[..., None, :]) / along for edge in (self._low + _EPS, self._high - _EPS))
        parallel = along == 0
        beside = (starts[..., None, :] <= self._low + _EPS) | (starts[..., None, :] >= self._high - _EPS)
        first = np.where(parallel, np.where(beside, np.inf, -np.inf), np.minimum(enter, leave)).max(axis=-1)
        last = np.where(parallel, np.inf, np.maximum(enter, leave)).min(axis=-1)
        crossed = (np.maximum(first, 0) < np.minimum(last, 1)).any(axis=-1)
        return crossed | self._passes_pinch(starts, ends)

    def _passes_pinch(self, starts: np.ndarray, ends: np.ndarray) -> np.ndarray:
        """Returns `[...]` bool: true if the way leads through a point at which two cells of wall touch diagonally."""
        pinches = self._vertices([(True, False, False, True), (False, True, True, False)])
        along = (ends - starts)[..., None, :]
        to_pinch = pinches - starts[..., None, :]
        squared = (along**2).sum(axis=-1)
        share = (to_pinch * along).sum(axis=-1) / np.maximum(squared, _EPS**2)
        off = np.abs(to_pinch[..., 0] * along[..., 1] - to_pinch[..., 1] * along[..., 0])
        near = off <= _EPS * np.sqrt(squared)
        return (near & (share > 0) & (share < 1)).any(axis=-1)

    @cached_property
    def corners(self) -> np.ndarray:
        """`[corners, 2]`: vertices with wall on one of four sides, around which shortest paths bend."""
        return self._vertices([tuple(index == wall for index in range(4)) for wall in range(4)])

    def _vertices(self, patterns: list[tuple[bool, ...]]) -> np.ndarray:
        """Returns the vertices `[k, 2]` whose four cells (row by row) are walls as one of `patterns` says."""
        walls = self._walls
        around = np.stack([walls[:-1, :-1], walls[:-1, 1:], walls[1:, :-1], walls[1:, 1:]], axis=-1)
        wanted = np.any([(around == pattern).all(axis=-1) for pattern in np.array(patterns)], axis=0)
        return np.argwhere(wanted) + 0.5


class ShortestPaths:
    """Lengths of shortest paths through `maze`, in its positions' units."""

    def __init__(self, maze: Maze) -> None:
        self._maze, self.walls = maze, Walls(maze.walls)
        corners = self._corners = self.walls.corners
        straight = np.linalg.norm(corners[:, None] - corners, axis=-1)
        self._between = shortest_path(np.where(self._hidden(corners), np.inf, straight)) if len(corners) else straight

    def lengths(self, starts: Array, ends: Array) -> np.ndarray:
        """Returns the lengths `[E]` from `starts` to `ends`, both `[E, D]` of which x and y come first.

        A length is NaN if no path exists, as to a point within a wall.
        """
        first_point, last_point = (self._maze.in_cells(np.asarray(points, np.float64)) for points in (starts, ends))
        hidden = self.walls.hides(first_point, last_point)
        straight = np.where(hidden, np.inf, np.linalg.norm(last_point - first_point, axis=-1))
        first, last = self._to_corners(first_point), self._to_corners(last_point)
        bent = (first[:, :, None] + self._between + last[:, None, :]).min(axis=(1, 2), initial=np.inf)
        lengths = np.minimum(straight, bent)
        outside = (self.walls.clearance(np.stack([first_point, last_point])) < -_EPS).any(axis=0)
        return self._maze.scale * np.where(np.isfinite(lengths) & ~outside, lengths, np.nan)

    def _to_corners(self, points: np.ndarray) -> np.ndarray:
        """Returns the distances `[E, corners]` of `points` `[E, 2]` to the corners; infinite to hidden ones."""
        return np.where(self._hidden(points), np.inf, np.linalg.norm(points[:, None] - self._corners, axis=-1))

    def _hidden(self, points: np.ndarray) -> np.ndarray:
        """Returns `[P, corners]` bool: true if a wall lies between a point of `points` `[P, 2]` and a corner."""
        # Point by point: all at once, large mazes need gigabytes.
        return np.array([self.walls.hides(point, self._corners) for point in points]).reshape(len(points), -1)


@lru_cache
def shortest_paths(maze: Maze) -> ShortestPaths:
    """Returns the shortest paths of `maze`; equal mazes share them."""
    return ShortestPaths(maze)


def longest_walk(maze: Maze) -> int:
    """Returns the length of the longest shortest path from a start to a goal, in cells and from side to side."""
    free = np.argwhere(~maze.walls)
    beside = np.abs(free[:, None] - free).sum(axis=-1) == 1
    starts, goals = (
        [np.flatnonzero((free == np.round(cell)).all(axis=1))[0] for cell in maze.in_cells(cells)]
        for cells in (maze.starts, maze.goals)
    )
    return int(shortest_path(beside, unweighted=True)[np.ix_(starts, goals)].max())


def _runs(walls: np.ndarray) -> np.ndarray:
    """Returns `[k, 4]` (row, first column, row, last column) of the longest runs of wall along each row."""
    padded = np.pad(walls.astype(np.int8), ((0, 0), (1, 1)))
    change = np.diff(padded, axis=1)
    (rows, firsts), (_, ends) = np.nonzero(change == 1), np.nonzero(change == -1)
    return np.stack([rows, firsts, rows, ends - 1], axis=1)
