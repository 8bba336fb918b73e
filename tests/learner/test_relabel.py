import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import chisquare

from learner.relabel import (
    SELF_WEIGHT,
    Transitions,
    chunk_actions,
    crop,
    future_goals,
    goal_offsets,
    later_rows,
    relabel,
)
from shared.types import CONTINUES, TERMINATED, TRUNCATED, Rows
from tests.learner.old_relabel import old_goal_offsets

# One window of 12 rows: the end of an episode, a whole episode, an episode of one row, the start of a fourth.
EPISODES = np.array([3] * 4 + [4] * 5 + [5] + [6] * 2, np.int32)
LATER = np.array([3, 2, 1, 0, 4, 3, 2, 1, 0, 0, 1, 0])
NUM_WINDOWS = 20_000
GOAL_INDICES = ((1, 3), (3, 1, 2), (2,))
draw = jax.jit(lambda episode, discount, key: goal_offsets(later_rows(episode), discount, key))
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
    zeros = np.zeros_like(step)
    return Rows(state, action, episode, step, zeros, zeros, np.zeros((windows, length, 2), np.float32))


def random_rows(rng: np.random.Generator, windows: int, length: int) -> Rows:
    """Returns windows of episodes of 1 to 6 rows, cut off at both borders: goal `[row]`, or `[1000 + row]` as an end.

    Every second window ends where an episode ends.
    """
    rows = counting_rows(np.zeros((windows, length), np.int32))
    for window in range(windows):
        first = length if window % 2 else length + int(rng.integers(1, 6))  # where the episodes end, backwards
        for number in range(length, 0, -1):
            last, first = first - 1, max(first - int(rng.integers(1, 7)), 0)
            rows.episode[window, first : last + 1] = number
            if last < length:
                rows.end[window, last] = rng.choice([TERMINATED, TRUNCATED])
                rows.final[window, last] = 1000 + last
            if first == 0:
                break
    return rows._replace(final=rows.final[..., :1])


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


def goal_weights(rows: Rows, window: int, row: int, discount: float) -> dict[float, float]:
    """Returns the weight of each goal of a row, by its value, with the end of its episode among the goals."""
    weights, episode = {float(row): SELF_WEIGHT}, rows.episode[window]
    for later in range(row, episode.size):
        if episode[later] != episode[row]:
            break
        if later > row:
            weights[float(later)] = discount ** (later - row)
        if rows.end[window, later] != CONTINUES:
            weights[1000.0 + later] = discount ** (later + 1 - row)
    return weights


def test_final_goals_follow_the_distribution_over_random_episodes() -> None:
    """Covers episodes that terminate, are truncated, or are cut off by the window, and rows at its borders."""
    windows, draws, length, discount = 6, 4000, 9, 0.7
    rows = random_rows(np.random.default_rng(3), windows, length)
    kinds = {(int(end), row == length - 1) for (_, row), end in np.ndenumerate(rows.end)}
    assert {(TERMINATED, False), (TRUNCATED, False), (CONTINUES, True)} < kinds
    assert {(TERMINATED, True), (TRUNCATED, True)} & kinds

    @jax.jit
    def goals(rows: Rows, key: jax.Array) -> jax.Array:
        return jax.vmap(lambda key: future_goals(rows, (1,), discount, key, True))(jax.random.split(key, draws))

    drawn = np.asarray(goals(rows, jax.random.key(0)))[..., 0]
    for window, row in np.ndindex(windows, length):
        weights = goal_weights(rows, window, row, discount)
        found = dict(zip(*np.unique(drawn[:, window, row], return_counts=True), strict=True))
        likely = [goal for goal in weights if weights[goal] > SELF_WEIGHT]
        rare = sum(count for goal, count in found.items() if goal not in likely)
        if not likely:  # neither a later row nor an end: its own goal
            assert found == {row: draws}
            continue
        assert set(found) <= set(weights)
        assert rare <= 10
        expected = np.array([weights[goal] for goal in likely])
        counts = np.array([found.get(goal, 0) for goal in likely])
        if len(likely) > 1:
            assert chisquare(counts, expected / expected.sum() * counts.sum()).pvalue > 1e-4


def test_an_episode_that_terminates_on_success_has_success_among_its_goals_only_as_a_final_goal() -> None:
    rows = counting_rows(np.repeat(np.arange(5, dtype=np.int32), 4)[None])
    rows.end[0, 3::4], rows.final[0, 3::4] = TERMINATED, 77.0  # no state before an action is there
    draw_goals = jax.jit(lambda rows, key: [future_goals(rows, (1, 2), 0.9, key, final) for final in (False, True)])
    for final_goals, goals in enumerate(map(np.asarray, draw_goals(rows, jax.random.key(0)))):
        assert (goals == 77).all(axis=-1)[:, 3::4].all() == final_goals
        assert (goals == 77).any() == final_goals


def test_without_final_goals_ends_change_nothing_and_the_draw_is_equal_to_the_bit_to_the_one_without_ends() -> None:
    def relabel_rows_without_ends(rows: Rows, discount: float, key: jax.Array) -> list[jax.Array]:
        """Relabels as it was before rows had ends."""
        index = jnp.arange(rows.episode.shape[1]) + old_goal_offsets(rows.episode, discount, key)
        goal = jnp.take_along_axis(rows.state[..., jnp.array((3, 1))], index[..., None], axis=1)
        return [rows.state[:, :-1], rows.action[:, :-1], goal[:, :-1]]

    rows, key = random_rows(np.random.default_rng(0), 64, 30), jax.random.key(5)
    expected = jax.jit(relabel_rows_without_ends)(rows, 0.97, key)
    unknown = rows._replace(end=np.zeros_like(rows.end), final=np.zeros_like(rows.final))
    make = jax.jit(lambda rows, final_goals: relabel(rows, (3, 1), 0.97, key, 1, final_goals), static_argnums=1)
    for each in (make(rows, False), make(unknown, False), make(unknown, True)):  # unknown ends are never goals
        assert each.valid is None
        for array, other in zip((each.state, each.action, each.goal), expected, strict=True):
            np.testing.assert_array_equal(array, other)
    assert np.any(make(rows, True).goal != expected[2])


@pytest.mark.parametrize("chunk", [1, 2, 3, 5])
def test_chunks_are_the_actions_of_one_episode_within_the_window(chunk: int) -> None:
    rows = random_rows(np.random.default_rng(chunk), 12, 9)
    action, valid = chunk_actions(rows, chunk)
    assert action.shape == (12, 9, chunk * 2)
    assert (valid is None) == (chunk == 1)
    for window, row in np.ndindex(12, 9):
        same = [later for later in range(row, 9) if rows.episode[window, later] == rows.episode[window, row]]
        if valid is not None:
            assert valid[window, row] == (len(same) >= chunk)
        if len(same) >= chunk:
            expected = [rows.action[window, row + step] for step in range(chunk)]
            np.testing.assert_array_equal(action[window, row], np.concatenate(expected))


@jax.jit
def relabel_in_chunks(rows: Rows, key: jax.Array) -> list[Transitions]:
    return [relabel(rows, (1,), 0.9, key, chunk) for chunk in (3, 1)]


def test_relabelled_chunks_have_one_row_less_than_the_window() -> None:
    rows = random_rows(np.random.default_rng(0), 4, 9)
    chunked, single = relabel_in_chunks(rows, jax.random.key(0))
    action, valid = chunk_actions(rows, 3)
    assert chunked.valid is not None
    assert valid is not None
    np.testing.assert_array_equal(chunked.valid, valid[:, :-1])
    np.testing.assert_array_equal(chunked.action, action[:, :-1])
    for name in ("state", "goal"):  # goals are drawn in the same way, also within a chunk
        np.testing.assert_array_equal(getattr(chunked, name), getattr(single, name))
