"""A maze's walls as few MuJoCo boxes, with contacts only for boxes that a body can touch."""

import itertools

import mujoco
import numpy as np

from shared.envs.space import Maze

WALL = "wall_"  # geoms' names begin with it
HEIGHT = 0.5  # of a wall, in cells
_COLOUR = (0.55, 0.6, 0.68, 1.0)


def add_walls(spec: mujoco.MjSpec, maze: Maze, separate: bool) -> None:
    """Adds a box to the world of `spec` for each rectangle of wall cells of `maze`, or for each cell if `separate`.

    A box collides with geoms that share a `conaffinity` or `contype` bit with it. A box without a free cell beside
    it collides with nothing.
    """
    cells = [(i, j, i, j) for i, j in np.argwhere(maze.walls)] if separate else rectangles(maze.walls)
    touchable = beside_free(maze.walls)
    for number, (top, left, bottom, right) in enumerate(cells):
        x, y = maze.centres(np.array([(top + bottom) / 2, (left + right) / 2]))
        half = maze.scale / 2 * np.array([bottom - top + 1, right - left + 1, HEIGHT])
        collides = int(touchable[top : bottom + 1, left : right + 1].any())
        spec.worldbody.add_geom(
            name=f"{WALL}{number}",
            type=mujoco.mjtGeom.mjGEOM_BOX,
            pos=(x, y, half[2]),
            size=half,
            contype=collides,
            conaffinity=collides,
            rgba=_COLOUR,
        )


def beside_free(walls: np.ndarray) -> np.ndarray:
    """Returns `[rows, columns]` bool: wall cells that share a side with a free cell."""
    free = np.pad(~walls, 1)
    beside = free[:-2, 1:-1] | free[2:, 1:-1] | free[1:-1, :-2] | free[1:-1, 2:]
    return walls & beside


def rectangles(walls: np.ndarray) -> list[tuple[int, int, int, int]]:
    """Returns rectangles (top, left, bottom, right), ends included, that cover each wall cell once; largest first."""
    spans = [tuple(itertools.combinations_with_replacement(range(size), 2)) for size in walls.shape]
    boxes = [(top, left, bottom, right) for (top, bottom), (left, right) in itertools.product(*spans)]
    uncovered, found = walls.copy(), []
    while uncovered.any():
        boxes = [box for box in boxes if uncovered[_cells(box)].all()]
        found.append(max(boxes, key=lambda box: uncovered[_cells(box)].size))
        uncovered[_cells(found[-1])] = False
    return found


def _cells(box: tuple[int, int, int, int]) -> tuple[slice, slice]:
    top, left, bottom, right = box
    return slice(top, bottom + 1), slice(left, right + 1)
