"""Generated mazes by size and seed, with one path between any two cells."""

import re

import numpy as np

# Ids: rows and columns with the border, the seed, and whether starts are drawn from all cells.
LABYRINTH = re.compile(r"point_labyrinth_(0|[1-9][0-9]*)_s(0|[1-9][0-9]*)(_any_start)?")

SMALLEST, LARGEST = 5, 31


def labyrinth(env_id: str) -> str:
    """Returns the grid (see `GRIDS`) of an id that fits `LABYRINTH`.

    Episodes start in the corner (1, 1) and goals lie in all other cells; with `_any_start`, both lie anywhere.

    Raises:
        ValueError: The size is even or out of range.
    """
    match = LABYRINTH.fullmatch(env_id)
    if match is None:
        raise ValueError(f"{env_id}: not the id of a labyrinth, such as point_labyrinth_13_s0")
    size, seed = int(match[1]), int(match[2])
    if size % 2 == 0 or not SMALLEST <= size <= LARGEST:
        raise ValueError(
            f"{env_id}: a labyrinth cannot be of size {size}; choose an odd size from {SMALLEST} to {LARGEST}, as in "
            "point_labyrinth_13_s0"
        )
    symbols = np.where(carve(size, seed), "#", "X" if match[3] else "G")
    if not match[3]:
        symbols[1, 1] = "R"
    return "/".join("".join(row) for row in symbols)


def carve(size: int, seed: int) -> np.ndarray:
    """Returns the walls `[size, size]` bool of a perfect maze, by randomised depth-first search from (1, 1).

    Rooms lie at odd rows and columns. Each step of the search draws one of the unvisited rooms beside the current one,
    all with equal probability.
    """
    rng = np.random.default_rng(seed)
    walls = np.ones((size, size), bool)
    walls[1, 1] = False
    path = [(1, 1)]
    while path:
        i, j = path[-1]
        beside = [(i + 2, j), (i - 2, j), (i, j + 2), (i, j - 2)]
        unvisited = [room for room in beside if min(room) > 0 and max(room) < size and walls[room]]
        if not unvisited:
            path.pop()
            continue
        room = unvisited[rng.integers(len(unvisited))]
        walls[room] = walls[(i + room[0]) // 2, (j + room[1]) // 2] = False
        path.append(room)
    return walls
