from itertools import pairwise
from typing import NamedTuple

import jax
import numpy as np
import pytest
from scipy.stats import chisquare

from learner.objectives.reach import Future, Points, by_blocks, first_reach, look_ahead, mixed_goals, occupancy
from shared.algorithm_config import GoalMix
from shared.types import CONTINUES, TERMINATED, TRUNCATED, Array, Rows
from tests.learner.objectives.cases import random_rows

GOAL_INDICES = (2, 0)
EDGES = (1, 2, 4, 7, 13)
WINDOWS, LENGTH, RADIUS = 140, 14, 1.0  # more windows than a block has


class Labels(NamedTuple):
    first: np.ndarray
    future: Future
    shares: np.ndarray
    observed: np.ndarray


@jax.jit
def label(rows: Rows, goal: jax.Array) -> Labels:
    return by_blocks(label_block, rows, goal, GOAL_INDICES)


def label_block(points: Points, goal: Array) -> Labels:
    future, distance_after = look_ahead(points, goal)
    first = first_reach(distance_after, future, RADIUS)
    return Labels(first, future, *occupancy(distance_after, future, EDGES, RADIUS))


def coarse_rows() -> Rows:
    """Returns windows of random episodes whose points lie on a coarse grid, so many are near others."""
    rows = random_rows(0, WINDOWS, LENGTH)
    return rows._replace(state=np.round(2 * rows.state) / 2, final=np.round(2 * rows.final) / 2)


@pytest.fixture(scope="module")
def case() -> tuple[Rows, np.ndarray, Labels]:
    rows = coarse_rows()
    goal = (np.random.default_rng(1).integers(0, 5, (WINDOWS, LENGTH, 2)) / 2).astype(np.float32)
    return rows, goal, jax.tree.map(np.asarray, label(rows, goal))


def test_labels_equal_those_of_a_loop_over_rows(case: tuple[Rows, np.ndarray, Labels]) -> None:
    rows, goal, labels = case
    ends = set()
    for window, row in np.ndindex(WINDOWS, LENGTH):
        later = [i for i in range(row, LENGTH) if rows.episode[window, i] == rows.episode[window, row]]
        points = [rows.state[window, i, list(GOAL_INDICES)] for i in later]
        end = int(rows.end[window, later[-1]])
        if end != CONTINUES:
            points.append(rows.final[window, later[-1]])
        distance = [float(np.linalg.norm(point - goal[window, row])) for point in points]
        reached = [offset for offset, each in enumerate(distance) if each <= RADIUS]
        assert labels.first[window, row] == (reached[0] if reached else -1)
        assert labels.future.points[window, row] == len(points) - 1
        assert labels.future.terminates[window, row] == (end == TERMINATED)
        for k, (start, stop) in enumerate(pairwise(EDGES)):
            shares = [np.mean([d <= RADIUS, d <= RADIUS / 2, d <= RADIUS / 4]) for d in distance[start:stop]]
            if end == TERMINATED:
                shares += [0] * (stop - start - len(shares))
            assert labels.observed[window, row, k] == bool(shares)
            assert labels.shares[window, row, k] == pytest.approx(np.mean(shares) if shares else 0, abs=1e-6)
        ends.add((end, bool(reached), reached[:1] == [len(points) - 1]))
    assert len(ends) == 9  # every end, with and without the goal, and with the goal at the last point


def test_a_goal_in_the_final_point_alone_is_reached_after_the_last_row() -> None:
    rows = coarse_rows()
    episode, end = 0 * rows.episode, 0 * rows.end
    end[:, 9] = [TERMINATED, TRUNCATED] * (WINDOWS // 2)
    episode[:, 10:] = 1
    final = np.where(np.arange(LENGTH)[:, None] == 9, 50, rows.final).astype(np.float32)
    goal = np.full((WINDOWS, LENGTH, 2), 50, np.float32)
    first = np.asarray(label(rows._replace(episode=episode, end=end, final=final), goal).first)
    np.testing.assert_array_equal(first, np.tile([*range(10, 0, -1), -1, -1, -1, -1], (WINDOWS, 1)))
    without = np.asarray(label(rows._replace(episode=episode, end=0 * end, final=final), goal).first)
    assert (without == -1).all()


def test_labels_need_no_square_matrix_of_a_window() -> None:
    length = 1024
    zeros = np.zeros((1, length), np.int32)
    rows = Rows(np.zeros((1, length, 3), np.float32), zeros[..., None], *(zeros,) * 4, np.zeros((1, length, 2)))
    memory = label.lower(rows, np.zeros((1, length, 2), np.float32)).compile().memory_analysis()
    assert memory.temp_size_in_bytes < length * length / 4


def counting_rows(windows: int) -> Rows:
    """Returns windows of two episodes of 5 and 7 rows; a state's coordinate 0 is its row, coordinate 2 its window."""
    window, row = np.indices((windows, 12)).astype(np.int32)
    state = np.stack([row, 0 * row, window], axis=-1).astype(np.float32)
    end = np.where(row == 4, TERMINATED, CONTINUES).astype(np.int32)
    final = np.where(row[..., None] == 4, [window[0, 0] - 1, 99], 0).astype(np.float32)
    return Rows(state, state[..., :2], (row > 4).astype(np.int32), row, 0 * row, end, final)


def draw(mix: GoalMix, discount: float = 0.7, final_goals: bool = False, windows: int = 4000) -> np.ndarray:
    """Returns the row `[windows, 12]` that each goal comes from; 99 is the first episode's final point."""
    rows = counting_rows(windows)
    goal = np.asarray(mixed_goals(rows, GOAL_INDICES, mix, discount, jax.random.key(0), final_goals))
    assert ((goal[..., 0] == np.arange(windows)[:, None]) | (goal[..., 1] == 99)).all()  # of its own window
    return goal[..., 1].astype(int)


def test_each_kind_of_goal_comes_from_its_rows() -> None:
    row = np.arange(12)
    future = draw(GoalMix(future=1, current=0, random=0))
    assert ((future > row) | (row == 4) | (row == 11)).mean() > 0.999
    assert (future <= np.where(row < 5, 4, 11)).all()
    assert (draw(GoalMix(future=0, current=1, random=0)) == row).all()
    other = draw(GoalMix(future=0, current=0, random=1))
    for each in row:
        assert chisquare(np.bincount(other[:, each], minlength=12)).pvalue > 1e-4


def test_the_mix_has_its_shares() -> None:
    goal = draw(GoalMix(future=2, current=1, random=1))
    later, same, earlier = (goal > 0)[:, 0].sum(), (goal == 0)[:, 0].sum(), (goal[:, 11] < 11).sum()
    assert same == pytest.approx(4000 * (1 / 4 + 1 / 48), rel=0.1)
    assert later == pytest.approx(4000 * (2 / 4 + 11 / 48), rel=0.1)
    assert earlier == pytest.approx(4000 * 11 / 48, rel=0.1)


def test_discount_and_final_goals_change_future_goals() -> None:
    future = GoalMix(future=1, current=0, random=0)
    near, far = (draw(future, discount)[:, 5].mean() for discount in (0.3, 0.95))
    assert near + 1 < far
    assert not (draw(future) == 99).any()
    final = draw(future, final_goals=True)
    assert (final[:, 4] == 99).mean() > 0.99
    assert (final[:, :4] == 99).any(axis=0).all()
    assert not (final[:, 5:] == 99).any()
