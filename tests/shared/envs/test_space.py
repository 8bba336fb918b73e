from collections import Counter

import jax
import numpy as np
import pytest

from shared.envs.space import GRIDS, Histogram, Maze, Ring

GOALS = {  # number of goal cells of each published layout
    "u_maze": 6,
    "u_maze_eval": 3,
    "u_maze_single_eval": 1,
    "u_maze_eval_1f2f3f4f5f": 5,
    "u_maze_eval_1f2f3f4f": 4,
    "u_maze_eval_1f2f3f": 3,
    "u_maze_eval_5f6f": 2,
    "u2_maze": 8,
    "u2_maze_eval": 4,
    "u3_maze": 10,
    "u3_maze_eval": 5,
    "u3_maze_single_eval": 1,
    "u4_maze": 10,
    "u4_maze_eval": 4,
    "u5_maze": 16,
    "u5_maze_eval": 8,
    "u5_maze_single_eval": 1,
    "u6_maze": 14,
    "u6_maze_eval": 7,
    "u7_maze": 12,
    "u7_maze_eval": 6,
    "big_maze": 25,
    "big_maze_eval": 9,
    "big_maze_eval_10": 10,
    "hardest_maze": 45,
}


def cells_of(space: Histogram | Maze | Ring, points: np.ndarray) -> np.ndarray:
    return np.asarray(jax.jit(space.cell)(points))


def drawn(maze: Maze, n: int) -> tuple[np.ndarray, np.ndarray]:
    keys = jax.random.split(jax.random.key(0), n)
    return tuple(np.asarray(x) for x in jax.jit(jax.vmap(maze.draw))(keys))  # type: ignore[return-value]


@pytest.mark.parametrize("name", GRIDS)
def test_grids_are_mazes_with_the_published_goals(name: str) -> None:
    maze = Maze(GRIDS[name], scale=4.0)
    if name in GOALS:
        assert len(maze.goals) == GOALS[name]
        assert len(maze.starts) == 1
    if "_eval" in name:  # the same walls and start as the maze for training
        training_maze = Maze(GRIDS[name.split("_eval")[0].removesuffix("_single")], scale=4.0)
        np.testing.assert_array_equal(maze.walls, training_maze.walls)
        np.testing.assert_array_equal(maze.starts, training_maze.starts)
    free = np.argwhere(~maze.walls)
    assert maze.num_cells == 4 * len(free)


def test_rows_lie_along_x_and_columns_along_y() -> None:
    starts, goals = drawn(Maze(GRIDS["u4_maze"], scale=4.0), 500)
    np.testing.assert_array_equal(np.unique(starts, axis=0), [[8.0, 4.0]])
    cells = {tuple(goal) for goal in goals.tolist()}
    assert cells == {(4, 4), (4, 8), (4, 12), (8, 12), (12, 12), (16, 4), (16, 12), (20, 4), (20, 8), (20, 12)}


def test_origin_and_jitter_move_starts_and_goals() -> None:
    starts, goals = drawn(Maze(GRIDS["push"], scale=8.0, origin=(-8.0, -8.0), jitter=0.25), 2000)
    assert abs(starts).max() <= 2
    assert abs(starts).max() > 1.9
    near = {tuple(goal) for goal in (8 * np.round(goals / 8)).tolist()}
    assert near == {(8, 16), (16, 8)}


def test_each_number_of_hops_is_equally_likely() -> None:
    maze = Maze(GRIDS["u_maze"], scale=4.0, hops=(1, 5))
    path = [(1, 1), (1, 2), (1, 3), (2, 3), (3, 3), (3, 2), (3, 1)]
    np.testing.assert_array_equal(maze.corridor, path)
    n = 4000
    starts, goals = (np.round(x / 4).astype(int) for x in drawn(maze, n))
    pairs = Counter((path.index(tuple(s)), path.index(tuple(g))) for s, g in zip(starts, goals, strict=True))
    assert set(pairs) == {(i, i + 1) for i in range(6)} | {(0, 5), (1, 6)}
    for (i, j), count in pairs.items():
        share = 1 / 2 / (6 if j - i == 1 else 2)
        assert count == pytest.approx(n * share, rel=0.2)


def test_hops_need_a_corridor_that_is_long_enough() -> None:
    with pytest.raises(ValueError, match="7 cells long, too short for 7 hops"):
        Maze(GRIDS["u_maze"], hops=(7,))
    with pytest.raises(ValueError, match="without branches"):
        Maze(GRIDS["big_maze"], hops=(1,))


@pytest.mark.parametrize(
    ("grid", "message"),
    [
        ("####/#X#/####", "equally long"),
        ("###/#Y#/###", "equally long"),
        ("###/#X./###", "closed border"),
        ("####/#R.#/####", "a start and a goal"),
    ],
)
def test_bad_grids_are_refused(grid: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Maze(grid)


def test_cells_scale_with_the_maze() -> None:
    small, large = Maze(GRIDS["u_maze"]), Maze(GRIDS["u_maze"], scale=4.0, origin=(-3.0, 7.0))
    points = np.random.default_rng(0).uniform(-1, 6, (200, 2))
    moved = np.array([-3.0, 7.0]) + 4 * points
    np.testing.assert_array_equal(cells_of(small, points), cells_of(large, moved))


def test_ring_goals_are_uniform_in_angle_and_radius() -> None:
    keys = jax.random.split(jax.random.key(0), 5000)
    starts, goals = jax.jit(jax.vmap(Ring(1.0, 5.0).draw))(keys)
    assert (np.asarray(starts) == 0).all()
    radius = np.linalg.norm(goals, axis=-1)
    assert 1 <= radius.min() < 1.05
    assert 4.95 < radius.max() <= 5.0001
    assert radius.mean() == pytest.approx(3, abs=0.1)
    np.testing.assert_allclose(np.asarray(goals).mean(axis=0), 0, atol=0.15)


def test_histogram_cells_by_hand() -> None:
    cells = Histogram((0.0, -1.0), (2.0, 1.0), (2, 4))
    assert cells.num_cells == 8
    points = np.array([[0.1, -0.9], [1.9, 0.9], [0.1, 0.1], [-5, 5], [5, -5], [1.0, 0.0]])
    np.testing.assert_array_equal(cells_of(cells, points), [0, 7, 2, 3, 4, 6])
    assert cells_of(Ring(10, 10), np.array([[99.0, 99.0], [-99, -99]])).tolist() == [255, 0]
