import jax
import numpy as np
import pytest
from scipy.stats import chisquare

from learner.relabel import SELF_WEIGHT, Transitions, crop, goal_offsets, later_rows, relabel
from shared.types import Rows

# One window of 12 rows: the end of an episode, a whole episode, an episode of one row, the start of a fourth.
EPISODES = np.array([3] * 4 + [4] * 5 + [5] + [6] * 2, np.int32)
LATER = np.array([3, 2, 1, 0, 4, 3, 2, 1, 0, 0, 1, 0])
NUM_WINDOWS = 20_000
GOAL_INDICES = ((1, 3), (3, 1, 2), (2,))
draw = jax.jit(goal_offsets)
count_later = jax.jit(later_rows)


@jax.jit
def relabel_each(rows: Rows, discount: float, key: jax.Array) -> list[Transitions]:
    """Returns `relabel` for each of `GOAL_INDICES`, compiled at once."""
    return [relabel(rows, goal_indices, discount, key) for goal_indices in GOAL_INDICES]


def counting_rows(episode: np.ndarray) -> Rows:
    """Returns rows of `episode` `[B, W]` whose state names window and row: `[window, row, -row, 1000 + row]`."""
    windows, length = episode.shape
    window, row = np.indices((windows, length)).astype(np.float32)
    state = np.stack([window, row, -row, 1000 + row], axis=-1)
    action = np.stack([row / length, window / windows], axis=-1)
    step = np.broadcast_to(np.arange(length, dtype=np.int32), episode.shape)
    return Rows(state, action, episode, step, np.zeros_like(step))


def offset_probabilities(later: int, discount: float) -> np.ndarray:
    """Returns the probabilities of the offsets 0..`later`."""
    weights = np.concatenate([[SELF_WEIGHT], discount ** np.arange(1, later + 1)])
    return weights / weights.sum()


def assert_follows(offsets: np.ndarray, probabilities: np.ndarray) -> None:
    """Chi-square test; offsets expected fewer than 10 times are counted together."""
    counts = np.bincount(offsets, minlength=len(probabilities))
    assert len(counts) == len(probabilities)
    expected = probabilities * len(offsets)
    rare = expected < 10
    counts = np.append(counts[~rare], counts[rare].sum())
    expected = np.append(expected[~rare], expected[rare].sum())
    kept = expected > 1
    assert counts[~kept].sum() <= 10
    assert len(expected[kept]) > 1
    counts, expected = counts[kept], expected[kept]
    assert chisquare(counts, expected * counts.sum() / expected.sum()).pvalue > 1e-3


def test_later_rows_by_hand() -> None:
    later = count_later(np.stack([EPISODES, EPISODES * 0]))
    np.testing.assert_array_equal(later, [LATER, np.arange(11, -1, -1)])


@pytest.mark.parametrize("discount", [0.5, 0.9, 0.99])
def test_goals_are_later_rows_of_the_same_episode(discount: float) -> None:
    episode = np.tile(EPISODES, (NUM_WINDOWS, 1))
    offsets = np.asarray(draw(episode, discount, jax.random.key(0)))
    goal_rows = np.arange(12) + offsets
    np.testing.assert_array_equal(EPISODES[goal_rows], episode)
    np.testing.assert_array_equal(offsets.max(axis=0), LATER)  # every later row can be drawn
    assert (offsets[:, LATER > 0] > 0).mean() > 0.9998  # the fallback is rare
    assert (offsets[:, LATER == 0] == 0).all()


@pytest.mark.parametrize("discount", [0.5, 0.9, 0.99])
def test_offsets_follow_the_truncated_geometric_distribution(discount: float) -> None:
    episode = np.repeat([7, 8, 9], [120, 60, 20])
    offsets = np.asarray(draw(np.tile(episode, (6000, 1)), discount, jax.random.key(1)))
    for row, later in [(0, 119), (60, 59), (114, 5), (120, 59), (177, 2), (180, 19), (197, 2)]:
        assert_follows(offsets[:, row], offset_probabilities(later, discount))


def test_a_row_is_its_own_goal_with_the_weight_of_the_fallback() -> None:
    # A discount as small as the fallback's weight makes the fallback frequent: 1e-5 against 1e-4 + 1e-8 + ...
    offsets = np.asarray(draw(np.tile(EPISODES, (NUM_WINDOWS, 1)), 1e-4, jax.random.key(2)))
    assert 0.09 < offset_probabilities(3, 1e-4)[0] < 0.092
    for row in np.flatnonzero(LATER):
        own = (offsets[:, row] == 0).sum()
        share = offset_probabilities(LATER[row], 1e-4)[0]
        assert chisquare([own, NUM_WINDOWS - own], [share * NUM_WINDOWS, (1 - share) * NUM_WINDOWS]).pvalue > 1e-3


def test_offsets_depend_on_the_key_and_differ_between_windows() -> None:
    episode = np.tile(EPISODES, (NUM_WINDOWS, 1))
    first, again, other = (np.asarray(draw(episode, 0.9, jax.random.key(seed))) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()
    assert len(np.unique(first, axis=0)) > 100  # windows are drawn independently


def test_every_offset_of_a_crop_occurs_equally_often() -> None:
    unroll, length, windows = 5, 11, 5000
    rows = counting_rows(np.zeros((windows, 3 * unroll), np.int32))
    cropped = jax.jit(crop, static_argnums=(1, 2))(rows, length, unroll - 1, jax.random.key(0))
    cropped = jax.tree.map(np.asarray, cropped)
    starts = cropped.step[:, 0]
    assert chisquare(np.bincount(starts, minlength=unroll)).pvalue > 1e-3
    assert len(np.bincount(starts)) == unroll
    np.testing.assert_array_equal(cropped.step, starts[:, None] + np.arange(length))  # consecutive
    assert cropped.state.shape == (windows, length, 4)
    np.testing.assert_array_equal(cropped.state[..., 1], cropped.step)  # all columns have the same crop
    np.testing.assert_array_equal(cropped.action[..., 0] * 15, cropped.step)
    np.testing.assert_array_equal(cropped.state[:, 0, 0], np.arange(windows))  # each crop is of its own window


@pytest.mark.parametrize("goal_indices", GOAL_INDICES)
def test_goals_are_the_goal_coordinates_of_the_chosen_row(goal_indices: tuple[int, ...]) -> None:
    episode = np.stack([EPISODES, EPISODES[::-1], np.zeros_like(EPISODES)] * 200)
    rows = counting_rows(episode)
    relabelled = relabel_each(rows, 0.9, jax.random.key(0))[GOAL_INDICES.index(goal_indices)]
    relabelled = jax.tree.map(np.asarray, relabelled)
    assert relabelled.goal.shape == (600, 11, len(goal_indices))
    np.testing.assert_array_equal(relabelled.state, rows.state[:, :-1])  # the last row is dropped
    np.testing.assert_array_equal(relabelled.action, rows.action[:, :-1])
    chosen = abs(relabelled.goal[..., -1]).astype(int) % 1000
    row = np.arange(11)
    assert (chosen >= row).all()
    assert ((chosen > row) | (episode[:, 1:] != episode[:, :-1])).all()
    assert (chosen == 11).any()  # the last row is still a goal
    window = np.arange(600)[:, None]
    np.testing.assert_array_equal(episode[window, chosen], episode[:, :-1])
    np.testing.assert_array_equal(relabelled.goal, rows.state[window, chosen][..., list(goal_indices)])
