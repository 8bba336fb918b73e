import mujoco
import numpy as np
import pytest

from shared.envs.space import GRIDS, Maze
from shared.envs.walls import add_walls, beside_free, rectangles


def built(maze: Maze, separate: bool) -> mujoco.MjModel:
    spec = mujoco.MjSpec()
    add_walls(spec, maze, separate)
    return spec.compile()


def covered(model: mujoco.MjModel, points: np.ndarray) -> np.ndarray:
    """Returns the number of boxes `[...]` that contain each of `points` `[..., 2]`."""
    low = (model.geom_pos - model.geom_size)[:, :2]
    high = (model.geom_pos + model.geom_size)[:, :2]
    inside = (points[..., None, :] > low) & (points[..., None, :] < high)
    return inside.all(axis=-1).sum(axis=-1)


@pytest.mark.parametrize("separate", [False, True])
@pytest.mark.parametrize("name", ["u_maze", "u4_maze", "big_maze", "hardest_maze", "push"])
def test_boxes_fill_each_wall_cell_once_and_nothing_else(name: str, separate: bool) -> None:
    maze = Maze(GRIDS[name], scale=4.0, origin=(1.0, -2.0))
    model = built(maze, separate)
    cells = np.argwhere(np.ones_like(maze.walls))
    offsets = np.array([(a, b) for a in (-0.49, 0, 0.49) for b in (-0.49, 0, 0.49)])
    points = np.array(maze.origin) + 4.0 * (cells[:, None] + offsets)
    np.testing.assert_array_equal(covered(model, points), np.repeat(maze.walls.ravel()[:, None], 9, axis=1))
    assert (model.geom_pos[:, 2] == 1).all()  # half of a cell's side high, from the floor up
    assert (model.geom_size[:, 2] == 1).all()
    assert model.ngeom == (maze.walls.sum() if separate else len(rectangles(maze.walls)))


def test_merging_leaves_few_boxes() -> None:
    counts = {
        name: len(rectangles(Maze(GRIDS[name]).walls)) for name in ("u_maze", "u5_maze", "big_maze", "hardest_maze")
    }
    assert counts == {"u_maze": 5, "u5_maze": 6, "big_maze": 12, "hardest_maze": 15}


@pytest.mark.parametrize("name", GRIDS)
def test_walls_beside_free_cells_collide(name: str) -> None:
    maze = Maze(GRIDS[name])
    touchable = beside_free(maze.walls)
    for i, j in np.argwhere(maze.walls):
        neighbours = [(i + a, j + b) for a, b in ((1, 0), (-1, 0), (0, 1), (0, -1))]
        rows, columns = maze.walls.shape
        free = [0 <= a < rows and 0 <= b < columns and not maze.walls[a, b] for a, b in neighbours]
        assert touchable[i, j] == any(free)
    model = built(maze, separate=True)
    np.testing.assert_array_equal(model.geom_contype, touchable[maze.walls])
    np.testing.assert_array_equal(model.geom_conaffinity, touchable[maze.walls])
    assert model.geom_contype.sum() < model.ngeom  # the four corners touch no free cell
    merged = built(maze, separate=False)
    assert merged.geom_contype.sum() <= len(rectangles(maze.walls))
