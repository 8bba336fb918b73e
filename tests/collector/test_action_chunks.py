"""Action chunks in a rollout, compared with environments that are stepped by hand."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from collector.rollout import ActionChunk, RolloutState, Unroll, make_start, make_unroll
from shared.types import Array

N, T, H = 8, 5, 4


def plan(factor: Array, state: Array, goal: Array, key: Array) -> Array:
    """Returns H actions at once, `[N, H * 2]`: the goal's tag and position, then a factor of the steps made so far."""
    position = jnp.arange(H, dtype=jnp.float32)
    actions = [goal[:, 1:] + position, factor * state[:, :1] + position]
    return jnp.stack(actions, axis=-1).reshape(len(state), -1)


class Chunked(NamedTuple):
    """Unrolls in a row, joined along time; unroll i acts with version i + 5, whose factor is i + 1."""

    states: list[RolloutState]
    unroll: Unroll


@pytest.fixture(scope="module")
def chunked(counting: Any) -> Chunked:
    """Twelve unrolls; episodes have 3 steps (they terminate) or 7, so environments lose step with each other."""
    env = counting()
    state = jax.jit(make_start(env, N, H))(jax.random.key(0))
    make = jax.jit(make_unroll(env, plan, T))
    states, unrolls = [state], []
    for index in range(12):
        state, unroll = make(index + 1.0, index + 5, state, jax.random.key(index))
        states.append(state)
        unrolls.append(unroll)
    return Chunked(states, jax.tree.map(lambda *parts: np.concatenate(parts), *unrolls))


def step_by_hand(unroll: Unroll, environment: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns the actions and versions that open-loop chunks give for the states and goals of one environment."""
    actions, versions, chunk = [], [], []
    for step in range(len(unroll.done)):
        if not chunk:
            count, tag = unroll.rows.state[step, environment, 0], unroll.goal[step, environment, 1]
            unrolls = step // T
            chunk = [(tag + position, (unrolls + 1) * count + position, unrolls + 5) for position in range(H)]
        *action, version = chunk.pop(0)
        actions.append(action)
        versions.append(version)
        if unroll.done[step, environment]:
            chunk = []
    return np.array(actions), np.array(versions)


def test_chunks_are_executed_open_loop_until_they_are_used_up_or_their_episode_ends(chunked: Chunked) -> None:
    rows = chunked.unroll.rows
    for environment in range(N):
        actions, versions = step_by_hand(chunked.unroll, environment)
        np.testing.assert_allclose(rows.action[:, environment], actions, rtol=1e-6)
        np.testing.assert_array_equal(rows.version[:, environment], versions)
    positions = np.stack([state.chunk.next for state in chunked.states[1:]])
    assert {*np.unique(positions)} == {0, 1, 2, 3}  # chunks span unrolls,
    assert (positions != positions[:, :1]).any()  # and environments are at different positions
    before = np.arange(12 * T)[:, None] // T + 5
    assert (rows.version < before).any()  # decided by the policy before


def test_environments_continue_as_with_single_actions(chunked: Chunked) -> None:
    count, done = chunked.unroll.rows.state[..., 0], chunked.unroll.done
    np.testing.assert_array_equal(count[1:], np.where(done[:-1], 0, count[:-1] + 1))
    assert {*count[done]} == {2, 6}


def test_the_policy_is_computed_only_where_a_chunk_is_due(counting: Any) -> None:
    env, computed = counting(limits=(100, 100), episode_length=100), []

    def counted(factor: Array, state: Array, goal: Array, key: Array) -> Array:
        jax.debug.callback(lambda count: computed.append(int(count)), state[0, 0])
        return plan(factor, state, goal, key)

    start = jax.jit(make_start(env, 2, H))(jax.random.key(0))
    unroll = jax.jit(make_unroll(env, counted, 6))
    for seed in range(2):
        start, _ = unroll(1.0, 0, start, jax.random.key(seed))
    jax.effects_barrier()
    assert computed == [0, 4, 8]


@pytest.mark.parametrize(
    ("chunk", "error", "message"),
    [
        (1, AssertionError, r"the policy decides actions \(8, 8\)"),
        (2, TypeError, r"cannot reshape array of shape \(8, 8\) .* into shape \(8, 2, 2\)"),
    ],
)
def test_a_policy_of_another_chunk_length_is_refused(
    counting: Any, chunk: int, error: type[Exception], message: str
) -> None:
    env = counting()
    start = jax.eval_shape(make_start(env, N, chunk), jax.random.key(0))
    assert isinstance(start.chunk, ActionChunk) if chunk > 1 else start.chunk == ()
    with pytest.raises(error, match=message):
        jax.eval_shape(make_unroll(env, plan, T), 1.0, 0, start, jax.random.key(0))
