from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from collector.rollout import RolloutState, Unroll, make_start, make_unroll
from shared.envs.base import goal_distance
from shared.types import Array

N, T = 16, 20


class Knobs(NamedTuple):
    """Parameters of `echo`: a factor, and the number of steps after which its action is not finite."""

    factor: float = 0.1
    fails_at: float = -1.0


def echo(params: Knobs, state: Array, goal: Array, key: Array) -> jax.Array:
    """Policy whose action repeats its inputs: the goal's tag, and the steps made in the episode times a factor."""
    action = jnp.stack([goal[:, 1], state[:, 0] * params.factor], axis=-1)
    return jnp.where(state[:, :1] == params.fails_at, jnp.nan, action)


def rolled(
    env: Any, unrolls: int, length: int = T, environments: int = N, fixed_goals: bool = False
) -> tuple[RolloutState, list[Unroll]]:
    state = jax.jit(make_start(env, environments))(jax.random.key(0))
    unroll = jax.jit(make_unroll(env, echo, length, fixed_goals))
    seen = []
    for index in range(unrolls):
        state, one = unroll(Knobs(), index + 5, state, jax.random.key(index + 1))
        seen.append(jax.tree.map(np.asarray, one))
    return state, seen


@pytest.fixture(scope="module")
def three(counting: Any) -> tuple[RolloutState, Unroll]:
    """Three unrolls in a row, joined along time: `[3 T, N, ...]`."""
    state, seen = rolled(counting(), unrolls=3)
    return state, jax.tree.map(lambda *parts: np.concatenate(parts), *seen)


def test_shapes(three: tuple[RolloutState, Unroll]) -> None:
    _, seen = three
    assert seen.rows.state.shape == (3 * T, N, 3)
    assert seen.rows.action.shape == (3 * T, N, 2)
    flat = (seen.rows.episode, seen.rows.step, seen.rows.version, seen.distance, seen.done, seen.broken)
    assert {x.shape for x in flat} == {(3 * T, N)}
    assert not seen.broken.any()
    assert {x.dtype for x in (seen.rows.episode, seen.rows.step, seen.rows.version)} == {np.dtype(np.int32)}


def test_rows_hold_the_state_before_the_action(three: tuple[RolloutState, Unroll]) -> None:
    _, seen = three
    count = seen.rows.state[..., 0]
    assert (count[0] == 0).all()
    np.testing.assert_array_equal(count[1:], np.where(seen.done[:-1], 0, count[:-1] + 1))
    np.testing.assert_allclose(seen.rows.action[..., 1], 0.1 * count, rtol=1e-6)  # the policy saw this very state
    np.testing.assert_array_equal(seen.rows.action[..., 0], seen.rows.state[..., 2])  # and this episode's goal


def test_episodes_end_by_termination_and_by_truncation(three: tuple[RolloutState, Unroll]) -> None:
    _, seen = three
    assert set(seen.rows.state[..., 0][seen.done]) == {2, 6}  # last states of 3 steps (limit) and 7 steps (length)
    assert seen.rows.state[..., 0].max() == 6
    assert (seen.done.sum(axis=0) >= 60 // 7).all()


def test_episodes_are_counted_over_unrolls(three: tuple[RolloutState, Unroll]) -> None:
    state, seen = three
    before = np.cumsum(seen.done, axis=0) - seen.done
    np.testing.assert_array_equal(seen.rows.episode, before)
    np.testing.assert_array_equal(state.episode, seen.done.sum(axis=0))


def test_every_reset_draws_a_new_start_and_a_new_goal(three: tuple[RolloutState, Unroll]) -> None:
    _, seen = three
    for tag in (1, 2):
        by_episode = {
            (environment, int(seen.rows.episode[step, environment])): float(seen.rows.state[step, environment, tag])
            for step in range(3 * T)
            for environment in range(N)
        }
        assert len(by_episode) > 3 * N
        for environment in range(N):
            own = [value for (owner, _), value in by_episode.items() if owner == environment]
            assert len(set(own)) == len(own)
        tags = np.array([[by_episode[n, int(e)] for n, e in enumerate(row)] for row in seen.rows.episode], np.float32)
        np.testing.assert_array_equal(seen.rows.state[..., tag], tags)  # and keeps both until the episode ends


def test_few_environments_in_a_long_unroll_never_get_a_start_twice(counting: Any) -> None:
    env = counting(limits=(1, 1))

    def unroll(key: Array) -> list[Unroll]:
        return [make_unroll(env, echo, 12)(Knobs(), 0, make_start(env, few)(key), key)[1] for few in (1, 3)]

    for seen, environments in zip(jax.device_get(jax.jit(unroll)(jax.random.key(0))), (1, 3), strict=True):
        for tags in (seen.rows.state[..., 1], seen.rows.state[..., 2]):
            assert [len(set(column)) for column in tags.T] == [12] * environments


def test_fixed_goals_keep_the_first_start_and_goal_of_each_environment(counting: Any) -> None:
    state, seen = rolled(counting(), unrolls=3, fixed_goals=True)
    tags = np.concatenate([one.rows.state[..., 1:] for one in seen])
    np.testing.assert_array_equal(tags, np.broadcast_to(tags[0], tags.shape))
    assert len(np.unique(tags[0, :, 1])) == N
    assert (state.episode > 3).all()


def test_steps_and_versions_continue_over_unrolls(three: tuple[RolloutState, Unroll]) -> None:
    state, seen = three
    np.testing.assert_array_equal(seen.rows.step, np.arange(3 * T)[:, None] + np.zeros((1, N)))
    np.testing.assert_array_equal(seen.rows.version, np.repeat([5, 6, 7], T)[:, None] + np.zeros((1, N)))
    assert int(state.step) == 3 * T
    np.testing.assert_array_equal(state.episode_step, state.env.state[:, 0])


def test_distance_is_to_the_commanded_goal_after_the_step(three: tuple[RolloutState, Unroll]) -> None:
    _, seen = three
    after = seen.rows.state[..., 0] + 1
    limited = np.zeros(after.shape, bool)  # episodes that end after 3 steps have goal 2, others 5
    for environment in range(N):
        for episode in range(seen.rows.episode[:, environment].max() + 1):
            rows = seen.rows.episode[:, environment] == episode
            limited[rows, environment] = (seen.done[:, environment] & rows & (after[:, environment] == 3)).any()
    whole = seen.rows.episode < seen.rows.episode.max(axis=0)  # the end of the last episode is not recorded
    expected = np.abs(after - np.where(limited, 2, 5))
    np.testing.assert_array_equal(np.asarray(seen.distance)[whole], expected[whole])


def test_goal_distance_by_hand(counting: Any) -> None:
    state = np.array([[1.0, 9.0, 2.0], [4.0, 9.0, 6.0]])
    distance = jax.jit(partial(goal_distance, counting().spec))(state, np.array([[1.0, 2.0], [1.0, 2.0]]))
    np.testing.assert_allclose(distance, [0, 5])


def test_two_short_unrolls_equal_one_long_unroll(counting: Any) -> None:
    env = counting(limits=(100, 100), episode_length=100)  # no reset, so nothing is drawn
    end, (long,) = rolled(env, unrolls=1, length=12, environments=3)
    short_end, parts = rolled(env, unrolls=2, length=6, environments=3)
    joined = jax.tree.map(lambda *x: np.concatenate(x), *parts)
    for name in ("state", "action", "episode", "step"):
        np.testing.assert_array_equal(getattr(long.rows, name), getattr(joined.rows, name))
    np.testing.assert_array_equal(long.distance, joined.distance)
    without_keys = [state._replace(start_keys=()) for state in (end, short_end)]
    jax.tree.map(np.testing.assert_array_equal, *without_keys)


BREAKS: dict[str, dict[str, Any]] = {
    "all of the state": {},
    "one coordinate": {"struck": (False, True, False)},
    "infinity": {"struck": (True, False, False), "value": float("inf")},
    "the action": {"share": 0.0, "limits": (100, 100), "fails_at": 5.0},
}
USUAL: dict[str, Any] = {"struck": (True, True, True), "value": float("nan"), "share": 0.5, "limits": (100, 100)}
USUAL |= {"fails_at": -1.0}


@pytest.fixture(scope="module")
def broken(breaking: Any) -> dict[str, tuple[RolloutState, Unroll]]:
    """State after an unroll, and the unroll, for each way to break; compiled at once."""

    def unroll(settings: dict[str, Any]) -> tuple[RolloutState, Unroll]:
        knobs = Knobs(fails_at=settings.pop("fails_at"))
        env = breaking(**settings)
        state, seen = make_unroll(env, echo, T)(knobs, 5, make_start(env, N)(jax.random.key(0)), jax.random.key(1))
        return state._replace(start_keys=()), seen

    ways = [USUAL | way for way in BREAKS.values()]
    settings = {name: np.array([way[name] for way in ways]) for name in USUAL}
    made = jax.device_get(jax.jit(jax.vmap(unroll))(settings))
    return {name: jax.tree.map(lambda x, row=row: x[row], made) for row, name in enumerate(BREAKS)}


@pytest.mark.parametrize("how", [how for how in BREAKS if how != "the action"])
def test_a_broken_step_ends_its_episode_and_leaves_no_trace(broken: Any, how: str) -> None:
    state, seen = broken[how]
    count, tag = seen.rows.state[..., 0], seen.rows.state[..., 1]
    expected = (count == 3) & (tag < 0.5)  # the state before step 4 of an episode that breaks
    np.testing.assert_array_equal(seen.broken, expected)
    assert 0.1 < expected[3].mean() < 0.9
    np.testing.assert_array_equal(seen.done, expected | (count == 6))
    np.testing.assert_array_equal(count[1:], np.where(seen.done[:-1], 0, count[:-1] + 1))
    np.testing.assert_array_equal(seen.rows.episode, np.cumsum(seen.done, axis=0) - seen.done)
    assert (tag[1:][seen.done[:-1]] != tag[:-1][seen.done[:-1]]).all()
    assert all(np.isfinite(x).all() for x in (*jax.tree.leaves(seen), *jax.tree.leaves(state.env)))
    goal = np.where(expected, seen.distance + count, 0)[expected]  # distance before the step: goal 2 or 5, less 3
    assert set(np.abs(goal - 3)) == {1.0, 2.0}


def test_an_action_that_is_not_finite_breaks_the_step(broken: Any) -> None:
    state, seen = broken["the action"]
    np.testing.assert_array_equal(seen.broken, seen.rows.state[..., 0] == 5)
    assert seen.rows.state[..., 0].max() == 5
    assert np.isfinite(state.env.state).all()
