from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from collector.breaks import explain, find_first
from collector.rollout import RolloutState, Unroll, make_start, make_unroll
from shared.envs.base import goal_distance
from shared.types import CONTINUES, TERMINATED, TRUNCATED, Array

N, T = 16, 20


class EchoParams(NamedTuple):
    """Parameters of `echo`. `fails_at`: number of steps in the episode after which its action is not finite."""

    factor: float = 0.1
    fails_at: float = -1.0


def echo(params: EchoParams, state: Array, goal: Array, key: Array) -> jax.Array:
    """Returns actions that repeat the inputs: the goal's tag, and the steps in the episode times a factor."""
    action = jnp.stack([goal[:, 1], state[:, 0] * params.factor], axis=-1)
    return jnp.where(state[:, :1] == params.fails_at, jnp.nan, action)


def roll_out(
    env: Any, num_unrolls: int, length: int = T, environments: int = N, fixed_goals: bool = False
) -> tuple[RolloutState, list[Unroll]]:
    state = jax.jit(make_start(env, environments))(jax.random.key(0))
    make = jax.jit(make_unroll(env, echo, length, fixed_goals))
    unrolls = []
    for index in range(num_unrolls):
        state, unroll = make(EchoParams(), index + 5, state, jax.random.key(index + 1))
        unrolls.append(jax.tree.map(np.asarray, unroll))
    return state, unrolls


@pytest.fixture(scope="module")
def three_unrolls(counting: Any) -> tuple[RolloutState, Unroll]:
    """Three unrolls in a row, joined along time: `[3 T, N, ...]`."""
    state, unrolls = roll_out(counting(), num_unrolls=3)
    return state, jax.tree.map(lambda *parts: np.concatenate(parts), *unrolls)


def test_shapes(three_unrolls: tuple[RolloutState, Unroll]) -> None:
    _, unroll = three_unrolls
    assert unroll.rows.state.shape == (3 * T, N, 3)
    assert unroll.rows.action.shape == (3 * T, N, 2)
    flat = (unroll.rows.episode, unroll.rows.step, unroll.rows.version, unroll.distance, unroll.done, unroll.broken)
    assert {x.shape for x in (*flat, unroll.entry, unroll.episode_step)} == {(3 * T, N)}
    assert unroll.goal.shape == (3 * T, N, 2)
    np.testing.assert_array_equal(unroll.episode_step, unroll.rows.state[..., 0])
    assert (unroll.entry == 2 + 3 + 1).all()
    assert not unroll.broken.any()
    assert {x.dtype for x in (unroll.rows.episode, unroll.rows.step, unroll.rows.version)} == {np.dtype(np.int32)}


def test_an_environment_is_traced_once_in_a_process(counting: Any) -> None:
    traced: list[str] = []

    class Traced(counting):
        __hash__ = object.__hash__

        def reset(self, key: Array) -> Any:
            traced.append("reset")
            return super().reset(key)

        def step(self, env_state: Any, action: Array) -> Any:
            traced.append("step")
            return super().step(env_state, action)

    env = Traced()
    for environments in (2, 3):  # as collectors and evaluators do
        state = jax.eval_shape(make_start(env, environments), jax.random.key(0))
        jax.eval_shape(make_unroll(env, echo, T), EchoParams(), 0, state, jax.random.key(0))
    assert sorted(traced) == ["reset", "step"]


def test_rows_hold_the_state_before_the_action(three_unrolls: tuple[RolloutState, Unroll]) -> None:
    _, unroll = three_unrolls
    count = unroll.rows.state[..., 0]
    assert (count[0] == 0).all()
    np.testing.assert_array_equal(count[1:], np.where(unroll.done[:-1], 0, count[:-1] + 1))
    np.testing.assert_allclose(unroll.rows.action[..., 1], 0.1 * count, rtol=1e-6)  # acted on this state
    np.testing.assert_array_equal(unroll.rows.action[..., 0], unroll.rows.state[..., 2])  # and on this goal


def test_episodes_end_by_termination_and_by_truncation(three_unrolls: tuple[RolloutState, Unroll]) -> None:
    _, unroll = three_unrolls
    assert set(unroll.rows.state[..., 0][unroll.done]) == {2, 6}  # last states of 3 steps (limit) and 7 steps (length)
    assert unroll.rows.state[..., 0].max() == 6
    assert (unroll.done.sum(axis=0) >= 60 // 7).all()


def test_the_last_row_of_an_episode_says_how_and_where_it_ended(three_unrolls: tuple[RolloutState, Unroll]) -> None:
    _, unroll = three_unrolls
    count, goal_tag = unroll.rows.state[..., 0], unroll.rows.state[..., 2]
    ends = np.select([unroll.done & (count == 2), unroll.done & (count == 6)], [TERMINATED, TRUNCATED], CONTINUES)
    np.testing.assert_array_equal(unroll.rows.end, ends)
    assert {*np.unique(ends)} == {CONTINUES, TERMINATED, TRUNCATED}
    last = np.stack([count + 1, goal_tag], axis=-1)  # of the state after the step, before the reset
    np.testing.assert_array_equal(unroll.rows.final, np.where(unroll.done[..., None], last, 0))
    assert unroll.done[[T - 1, 2 * T - 1]].any(axis=1).all()  # also where an unroll ends
    assert {x.dtype for x in (unroll.rows.end, unroll.rows.final)} == {np.dtype(np.int32), np.dtype(np.float32)}


def test_termination_with_the_last_step_that_an_episode_may_have_is_no_truncation(counting: Any) -> None:
    """Episodes of 4 steps, cut into unrolls of 3; those with limit 4 terminate by themselves."""
    env = counting(goals=(2.0, 5.0), limits=(4, 5), episode_length=4)
    _, unrolls = roll_out(env, num_unrolls=4, length=3)
    rows = jax.tree.map(lambda *parts: np.concatenate(parts), *(unroll.rows for unroll in unrolls))
    last = rows.state[..., 0] == 3
    distance = np.concatenate([unroll.distance for unroll in unrolls])[last]
    assert set(distance) == {1, 2}  # from state 4 to goal 5, or to goal 2
    np.testing.assert_array_equal(rows.end[last], np.where(distance == 2, TERMINATED, TRUNCATED))
    assert (rows.end[~last] == CONTINUES).all()
    np.testing.assert_array_equal(rows.final[..., 0], np.where(last, 4, 0))


def test_episodes_are_counted_over_unrolls(three_unrolls: tuple[RolloutState, Unroll]) -> None:
    state, unroll = three_unrolls
    before = np.cumsum(unroll.done, axis=0) - unroll.done
    np.testing.assert_array_equal(unroll.rows.episode, before)
    np.testing.assert_array_equal(state.episode, unroll.done.sum(axis=0))


def test_every_reset_draws_a_new_start_and_a_new_goal(three_unrolls: tuple[RolloutState, Unroll]) -> None:
    _, unroll = three_unrolls
    for tag in (1, 2):
        by_episode = {
            (environment, int(unroll.rows.episode[step, environment])): float(unroll.rows.state[step, environment, tag])
            for step in range(3 * T)
            for environment in range(N)
        }
        assert len(by_episode) > 3 * N
        for environment in range(N):
            own = [value for (owner, _), value in by_episode.items() if owner == environment]
            assert len(set(own)) == len(own)
        tags = np.array([[by_episode[n, int(e)] for n, e in enumerate(row)] for row in unroll.rows.episode], np.float32)
        np.testing.assert_array_equal(unroll.rows.state[..., tag], tags)  # constant within an episode


def test_no_start_repeats_in_a_long_unroll_of_few_environments(counting: Any) -> None:
    env = counting(limits=(1, 1))

    def make_unrolls(key: Array) -> list[Unroll]:
        return [make_unroll(env, echo, 12)(EchoParams(), 0, make_start(env, few)(key), key)[1] for few in (1, 3)]

    for unroll, environments in zip(jax.device_get(jax.jit(make_unrolls)(jax.random.key(0))), (1, 3), strict=True):
        for tags in (unroll.rows.state[..., 1], unroll.rows.state[..., 2]):
            assert [len(set(column)) for column in tags.T] == [12] * environments


def test_fixed_goals_keep_the_first_start_and_goal_of_each_environment(counting: Any) -> None:
    state, unrolls = roll_out(counting(), num_unrolls=3, fixed_goals=True)
    tags = np.concatenate([unroll.rows.state[..., 1:] for unroll in unrolls])
    np.testing.assert_array_equal(tags, np.broadcast_to(tags[0], tags.shape))
    assert len(np.unique(tags[0, :, 1])) == N
    assert (state.episode > 3).all()


def test_steps_and_versions_continue_over_unrolls(three_unrolls: tuple[RolloutState, Unroll]) -> None:
    state, unroll = three_unrolls
    np.testing.assert_array_equal(unroll.rows.step, np.arange(3 * T)[:, None] + np.zeros((1, N)))
    np.testing.assert_array_equal(unroll.rows.version, np.repeat([5, 6, 7], T)[:, None] + np.zeros((1, N)))
    assert int(state.step) == 3 * T
    np.testing.assert_array_equal(state.episode_step, state.env.state[:, 0])


def test_distance_is_to_the_commanded_goal_after_the_step(three_unrolls: tuple[RolloutState, Unroll]) -> None:
    _, unroll = three_unrolls
    after = unroll.rows.state[..., 0] + 1
    limited = np.zeros(after.shape, bool)  # episodes that end after 3 steps have goal 2, all others goal 5
    for environment in range(N):
        for episode in range(unroll.rows.episode[:, environment].max() + 1):
            rows = unroll.rows.episode[:, environment] == episode
            limited[rows, environment] = (unroll.done[:, environment] & rows & (after[:, environment] == 3)).any()
    whole = unroll.rows.episode < unroll.rows.episode.max(axis=0)  # the end of the last episode is not recorded
    expected = np.abs(after - np.where(limited, 2, 5))
    np.testing.assert_array_equal(np.asarray(unroll.distance)[whole], expected[whole])


def test_goal_distance_by_hand(counting: Any) -> None:
    state = np.array([[1.0, 9.0, 2.0], [4.0, 9.0, 6.0]])
    distance = jax.jit(partial(goal_distance, counting().spec))(state, np.array([[1.0, 2.0], [1.0, 2.0]]))
    np.testing.assert_allclose(distance, [0, 5])


def test_two_short_unrolls_equal_one_long_unroll(counting: Any) -> None:
    env = counting(limits=(100, 100), episode_length=100)  # no reset, so no random start
    end, (long,) = roll_out(env, num_unrolls=1, length=12, environments=3)
    short_end, parts = roll_out(env, num_unrolls=2, length=6, environments=3)
    joined = jax.tree.map(lambda *x: np.concatenate(x), *parts)
    for name in ("state", "action", "episode", "step", "end", "final"):
        np.testing.assert_array_equal(getattr(long.rows, name), getattr(joined.rows, name))
    np.testing.assert_array_equal(long.distance, joined.distance)
    without_keys = [state._replace(start_keys=()) for state in (end, short_end)]
    jax.tree.map(np.testing.assert_array_equal, *without_keys)


BREAKS: dict[str, dict[str, Any]] = {
    "all of the state": {},
    "one coordinate": {"coordinates": (False, True, False)},
    "infinity": {"coordinates": (True, False, False), "value": float("inf")},
    "the goal": {"coordinates": (False, False, False), "goal_breaks": True},
    "the distance": {"coordinates": (False, False, False), "distance_breaks": True},
    "the action": {"share": 0.0, "fails_at": 5.0},
    "the reset": {"share": 0.0, "nan_share": 0.5},
    "the reset's goal": {"share": 0.0, "nan_goal_share": 0.5},
}
DEFAULTS: dict[str, Any] = {
    "coordinates": (True, True, True),
    "goal_breaks": False,
    "distance_breaks": False,
    "value": float("nan"),
    "share": 0.5,
    "nan_share": 0.0,
    "nan_goal_share": 0.0,
    "fails_at": -1.0,
}
NAMES = {
    "all of the state": "state[0] is not finite after step 4 of an episode",
    "one coordinate": "state[1] is not finite after step 4 of an episode",
    "infinity": "state[0] is not finite after step 4 of an episode",
    "the goal": "distance is not finite after step 4 of an episode",
    "the distance": "distance is not finite after step 4 of an episode",
    "the action": "action[0] is not finite at step 6 of an episode",
    "the reset": "state[0] is not finite after a reset",
    "the reset's goal": "goal[1] is not finite after a reset",
}


@pytest.fixture(scope="module")
def broken(traced_breaking: Any) -> dict[str, tuple[RolloutState, Unroll]]:
    """An unroll of each case of `BREAKS`, and the state after it; compiled at once."""

    def make(settings: dict[str, Any]) -> tuple[RolloutState, Unroll]:
        params = EchoParams(fails_at=settings.pop("fails_at"))
        env = traced_breaking(**settings)
        state, unroll = make_unroll(env, echo, T)(params, 5, make_start(env, N)(jax.random.key(0)), jax.random.key(1))
        return state._replace(start_keys=()), unroll

    cases = [DEFAULTS | case for case in BREAKS.values()]
    settings = {name: np.array([case[name] for case in cases]) for name in DEFAULTS}
    made = jax.device_get(jax.jit(jax.vmap(make))(settings))
    return {name: jax.tree.map(lambda x, row=row: x[row], made) for row, name in enumerate(BREAKS)}


@pytest.mark.parametrize("case", [case for case, name in NAMES.items() if "step 4" in name])
def test_a_broken_step_ends_its_episode_and_leaves_all_values_finite(broken: Any, case: str) -> None:
    state, unroll = broken[case]
    count, tag = unroll.rows.state[..., 0], unroll.rows.state[..., 1]
    expected = (count == 3) & (tag < 0.5)  # the state before step 4 of an episode that breaks
    np.testing.assert_array_equal(unroll.broken, expected)
    assert 0.1 < expected[3].mean() < 0.9
    np.testing.assert_array_equal(unroll.done, expected | (count == 6))
    np.testing.assert_array_equal(count[1:], np.where(unroll.done[:-1], 0, count[:-1] + 1))
    np.testing.assert_array_equal(unroll.rows.episode, np.cumsum(unroll.done, axis=0) - unroll.done)
    np.testing.assert_array_equal(unroll.rows.end, np.where(unroll.done, TRUNCATED, CONTINUES))
    np.testing.assert_array_equal(unroll.rows.final[..., 0], np.where(count == 6, 7, 0))  # none after a broken step
    assert (tag[1:][unroll.done[:-1]] != tag[:-1][unroll.done[:-1]]).all()
    assert all(np.isfinite(x).all() for x in (*jax.tree.leaves(unroll), *jax.tree.leaves(state.env)))
    goal = np.where(expected, unroll.distance + count, 0)[expected]  # distance before the step
    assert set(np.abs(goal - 3)) == {1.0, 2.0}  # from state 3 to goal 2 or 5


def test_an_action_that_is_not_finite_breaks_the_step(broken: Any) -> None:
    state, unroll = broken["the action"]
    np.testing.assert_array_equal(unroll.broken, unroll.rows.state[..., 0] == 5)
    assert unroll.rows.state[..., 0].max() == 5
    assert np.isfinite(state.env.state).all()


@pytest.mark.parametrize("case", ["the reset", "the reset's goal"])
def test_an_episode_whose_start_is_not_finite_ends_with_its_first_step(broken: Any, case: str) -> None:
    _, unroll = broken[case]
    starts = np.argwhere(unroll.broken)
    assert len(starts) > N
    assert (unroll.episode_step[unroll.broken] == 0).all()
    assert unroll.done[unroll.broken].all()
    finite = np.isfinite(unroll.rows.state).all(axis=-1) & np.isfinite(unroll.rows.action).all(axis=-1)
    np.testing.assert_array_equal(finite, ~unroll.broken)


@pytest.mark.parametrize("case", BREAKS)
def test_the_first_broken_step_is_named(broken: Any, case: str, breaking: Any) -> None:
    _, unroll = broken[case]
    found = find_first(unroll, unroll.broken)
    environment = int(np.argmax(unroll.broken[np.argmax(unroll.broken.any(axis=1))]))
    line = explain("env: lab:Slope", breaking().spec, found, "collector-0", "")
    assert line.startswith(f"env: lab:Slope: {NAMES[case]} (environment {environment} of collector-0); ")
