"""Every environment compiled and stepped: minutes, so not part of `make test` but of `make test-envs`."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from collector.rollout import make_start, make_unroll
from shared.config import EnvOptions
from shared.envs.registry import env_entries, make_env
from shared.policy import random_policy

pytestmark = pytest.mark.envs
IDS = tuple(entry.env_id for entry in env_entries())
ONE_OF_EACH = ("point_big_maze", "ant_u4_maze", "ant_push", "humanoid")
ONE_OF_EACH += ("reacher", "pusher_hard", "cheetah", "arm_push_easy")
ENVIRONMENTS, EPISODE = 3, 2


@pytest.mark.parametrize("env_id", IDS)
def test_two_short_episodes(env_id: str) -> None:
    env = make_env(env_id, EnvOptions(episode_length=EPISODE))
    traces = 0

    def unroll(*arguments):  # type: ignore[no-untyped-def]
        nonlocal traces
        traces += 1
        return make_unroll(env, random_policy(env.spec.action_size), EPISODE)(*arguments)

    compiled = jax.jit(unroll)
    state = jax.jit(make_start(env, ENVIRONMENTS))(jax.random.key(0))
    states, goals = [], [state.env.goal]
    for number in range(2):
        state, seen = compiled({}, jnp.int32(0), state, jax.random.key(number))
        states.append(np.asarray(seen.rows.state))
        goals.append(state.env.goal)
        assert bool(seen.done[-1].all())
        assert np.isfinite(seen.distance).all()
    assert traces == 1
    assert np.isfinite(states).all()
    goals = np.asarray(goals)
    assert ((env.cell(goals) >= 0) & (env.cell(goals) < env.spec.num_cells)).all()
    if env_id not in ("cheetah", *(name for name in IDS if "single" in name)):  # which have one goal only
        assert len(np.unique(goals.reshape(-1, env.spec.goal_size), axis=0)) > 1
    for goal in goals.reshape(-1, env.spec.goal_size):
        windows = np.lib.stride_tricks.sliding_window_view(np.asarray(states), len(goal), axis=-1)
        assert not (windows == goal).all(axis=-1).any()


@pytest.mark.timeout(1200)
@pytest.mark.parametrize("env_id", ONE_OF_EACH)
def test_a_random_episode_is_finite(env_id: str) -> None:
    env = make_env(env_id)
    unroll = jax.jit(make_unroll(env, random_policy(env.spec.action_size), env.spec.episode_length))
    state = jax.jit(make_start(env, ENVIRONMENTS))(jax.random.key(0))
    state, seen = unroll({}, jnp.int32(0), state, jax.random.key(1))
    assert np.isfinite(seen.rows.state).all()
    assert np.isfinite(seen.distance).all()
    assert (state.episode >= 1).all()
