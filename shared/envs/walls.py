"""A maze's walls as boxes of MuJoCo: few, and none tested for contact that nothing can touch."""

import itertools

import mujoco
import numpy as np

from shared.envs.space import Maze

HEIGHT = 0.5  # of a wall, in cells
_COLOUR = (0.55, 0.6, 0.68, 1.0)


def add_walls(spec: mujoco.MjSpec, maze: Maze, separate: bool) -> None:
    """Adds `maze` to the world of `spec`: a box for each rectangle of wall cells, or for each cell if `separate`.

    Boxes collide with whatever has a `conaffinity` or `contype` bit in common; those without a free cell
    beside them collide with nothing.
    """
    whole = maze.walls
    cells = [(i, j, i, j) for i, j in np.argwhere(whole)] if separate else rectangles(whole)
    for number, (top, left, bottom, right) in enumerate(cells):
        x, y = maze.centres(np.array([(top + bottom) / 2, (left + right) / 2]))
        half = maze.scale / 2 * np.array([bottom - top + 1, right - left + 1, HEIGHT])
        touchable = beside_free(whole)[top : bottom + 1, left : right + 1].any()
        spec.worldbody.add_geom(
            name=f"wall_{number}",
            type=mujoco.mjtGeom.mjGEOM_BOX,
            pos=(x, y, half[2]),
            size=half,
            contype=int(touchable),
            conaffinity=int(touchable),
            rgba=_COLOUR,
        )


def beside_free(walls: np.ndarray) -> np.ndarray:
    """`[rows, columns]` bool: the wall cells with a free cell beside them; a corner that others cover is none."""
    free = np.pad(~walls, 1)
    beside = free[:-2, 1:-1] | free[2:, 1:-1] | free[1:-1, :-2] | free[1:-1, 2:]
    return walls & beside


def rectangles(walls: np.ndarray) -> list[tuple[int, int, int, int]]:
    """Rectangles (top, left, bottom, right), ends included, that cover each wall cell once; the largest first."""
    left_over = walls.copy()
    found = []
    while left_over.any():
        found.append(max(_inside(left_over), key=lambda box: (box[2] - box[0] + 1) * (box[3] - box[1] + 1)))
        top, left, bottom, right = found[-1]
        left_over[top : bottom + 1, left : right + 1] = False
    return found


def _inside(walls: np.ndarray) -> list[tuple[int, int, int, int]]:
    """Every rectangle of wall cells."""
    rows, columns = walls.shape
    spans = itertools.product(
        itertools.combinations_with_replacement(range(rows), 2),
        itertools.combinations_with_replacement(range(columns), 2),
    )
    return [(t, l, b, r) for (t, b), (l, r) in spans if walls[t : b + 1, l : r + 1].all()]  # noqa: E741
