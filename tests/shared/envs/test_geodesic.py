import heapq
import itertools

import numpy as np
import pytest

from shared.envs.geodesic import Walls, longest_walk, shortest_paths
from shared.envs.space import GRIDS, Maze

LAYOUTS = sorted({name.removesuffix("_eval") for name in GRIDS if "single" not in name and "f" not in name})
SAMPLES = np.linspace(0, 1, 801)[1:-1, None]


def is_free(maze: Maze, points: np.ndarray) -> np.ndarray:
    """Returns for `points` `[..., 2]` in cells whether they lie outside all walls; edges are free."""
    cells = np.stack(
        [np.floor(points + 0.5 + shift) for shift in ((-1e-7, -1e-7), (-1e-7, 1e-7), (1e-7, -1e-7), (1e-7, 1e-7))]
    )
    return ~maze.walls[cells[..., 0].astype(int), cells[..., 1].astype(int)].all(axis=0)


def brute_force(maze: Maze, start: np.ndarray, end: np.ndarray) -> float:
    """Returns the length of the shortest path in cells, by Dijkstra over all vertices of the grid.

    A vertex sees another one if no sample of the line between them lies in a wall.
    """
    rows, columns = maze.walls.shape
    nodes = np.array([start, end, *itertools.product(np.arange(rows - 1) + 0.5, np.arange(columns - 1) + 0.5)])
    best, queue = {0: 0.0}, [(0.0, 0)]
    while queue:
        length, index = heapq.heappop(queue)
        if index == 1:
            return length
        if length > best[index]:
            continue
        lines = nodes[index] + SAMPLES * (nodes[:, None] - nodes[index])
        for other in np.flatnonzero(is_free(maze, lines).all(axis=1)).tolist():
            there = length + float(np.linalg.norm(nodes[other] - nodes[index]))
            if there < best.get(other, np.inf):
                best[other] = there
                heapq.heappush(queue, (there, other))
    return np.nan


@pytest.mark.parametrize("layout", LAYOUTS)
def test_shortest_paths_equal_a_brute_force(layout: str) -> None:
    maze = Maze(GRIDS[layout], scale=4.0, origin=(-8.0, 2.0))
    rng = np.random.default_rng(0)
    free = np.argwhere(~maze.walls)
    starts, ends = (free[rng.integers(len(free), size=4)] + rng.uniform(-0.5, 0.5, (4, 2)) for _ in range(2))
    expected = [4.0 * brute_force(maze, start, end) for start, end in zip(starts, ends, strict=True)]
    lengths = shortest_paths(maze).lengths(maze.centres(starts), maze.centres(ends))
    np.testing.assert_allclose(lengths, expected, rtol=1e-4)


def test_paths_by_hand() -> None:
    paths = shortest_paths(Maze("#####/#XXX#/###X#/#XXX#/#####"))
    starts = np.array([[1, 1], [1, 1], [1, 1], [1, 3]])
    ends = np.array([[1, 3], [3, 1], [2, 3], [1, 3]])
    around = 2 * np.hypot(0.5, 1.5) + 1  # along the wall's end, from corner (1.5, 2.5) to corner (2.5, 2.5)
    bent = np.hypot(0.5, 1.5) + np.hypot(0.5, 0.5)
    np.testing.assert_allclose(paths.lengths(starts, ends), [2, around, bent, 0], rtol=1e-6)
    assert np.isnan(paths.lengths(np.array([[1.0, 1.0]]), np.array([[2.0, 1.0]]))).all()  # into a wall


def test_no_path_leads_between_walls_that_touch() -> None:
    diagonal = Maze("####/#X##/##X#/####")  # both free cells touch in one point alone
    assert np.isnan(shortest_paths(diagonal).lengths(np.array([[1, 1]]), np.array([[2, 2]]))).all()
    seam = Walls(np.array([list(row) for row in ("####", "#..#", "####", "#..#", "####")]) == "#")
    assert seam.hides(np.array([1.5, 1.0]), np.array([2.5, 2.0]))
    assert seam.hides(np.array([1.0, 1.5]), np.array([3.0, 1.5]))  # along the seam of two cells


def test_clearance_is_the_distance_to_the_nearest_wall() -> None:
    walls = Walls(Maze("#####/#XXX#/###X#/#XXX#/#####").walls)
    points = np.array([[1.0, 1.0], [1.3, 1.0], [1.5, 1.0], [2.0, 1.0], [1.6, 3.0]])
    np.testing.assert_allclose(walls.clearance(points), [0.5, 0.2, 0.0, -0.5, 0.5], atol=1e-6)


def test_longest_walk_by_hand() -> None:
    assert longest_walk(Maze(GRIDS["u_maze"], scale=4.0, origin=(-8.0, 2.0))) == 6
    assert longest_walk(Maze("#####/#RG.#/#####")) == 1
    assert longest_walk(Maze("#####/#XXX#/###X#/#X.X#/#####")) == 6
