import numpy as np
import pytest

from shared.envs.labyrinth import LARGEST, SMALLEST, carve, labyrinth
from shared.envs.space import Maze

IDS = ("point_labyrinth_5_s0", "point_labyrinth_13_s3", "point_labyrinth_31_s7", "point_labyrinth_13_s3_any_start")


@pytest.mark.parametrize("env_id", IDS)
def test_each_pair_of_cells_has_one_path(env_id: str) -> None:
    free = ~Maze(labyrinth(env_id)).walls
    rooms = (np.array(free.shape) // 2).prod()
    assert free[1::2, 1::2].all()
    assert free.sum() == 2 * rooms - 1  # each room but the first adds one passage, so there is no loop if all connect
    passages = (free[1:] & free[:-1]).sum() + (free[:, 1:] & free[:, :-1]).sum()
    assert passages == free.sum() - 1
    reached = np.zeros_like(free)
    reached[1, 1] = True
    for _ in range(free.sum()):
        spread = reached.copy()
        for axis in (0, 1):
            spread |= np.roll(reached, 1, axis) | np.roll(reached, -1, axis)
        reached = spread & free
    np.testing.assert_array_equal(reached, free)


def test_starts_and_goals() -> None:
    corner, anywhere = Maze(labyrinth("point_labyrinth_9_s4")), Maze(labyrinth("point_labyrinth_9_s4_any_start"))
    np.testing.assert_array_equal(corner.walls, anywhere.walls)
    np.testing.assert_array_equal(corner.starts, [[1, 1]])
    free = np.argwhere(~corner.walls)
    np.testing.assert_array_equal(corner.goals, free[1:])
    np.testing.assert_array_equal(anywhere.starts, free)
    np.testing.assert_array_equal(anywhere.goals, free)


def test_a_seed_always_makes_the_same_maze_and_other_seeds_others() -> None:
    mazes = {carve(13, seed).tobytes() for seed in range(50)}
    assert len(mazes) == 50
    assert {carve(13, seed).tobytes() for seed in range(50)} == mazes
    # The published maze of seed 0: runs of different machines and versions walk in the same one.
    assert labyrinth("point_labyrinth_7_s0") == "#######/#RGGGG#/#####G#/#G#GGG#/#G#G###/#GGGGG#/#######"


def test_all_small_mazes_occur() -> None:
    # Four rooms in a square have four perfect mazes; the search from a corner makes only the two that go around.
    assert len({carve(5, seed).tobytes() for seed in range(50)}) == 2


@pytest.mark.parametrize("size", [0, 1, SMALLEST - 2, 12, LARGEST + 2, 10**6])
def test_bad_sizes_are_refused(size: int) -> None:
    with pytest.raises(ValueError, match=f"^point_labyrinth_{size}_s1: a labyrinth cannot be of size {size}; choose"):
        labyrinth(f"point_labyrinth_{size}_s1")


@pytest.mark.parametrize("env_id", ["point_labyrinth_13", "point_labyrinth_013_s0", "point_labyrinth_13_s-1"])
def test_other_ids_are_no_labyrinths(env_id: str) -> None:
    with pytest.raises(ValueError, match="not the id of a labyrinth"):
        labyrinth(env_id)
