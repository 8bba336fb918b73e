"""Tests that compile and step each environment. They take too long for `make test`; `make test-envs` runs them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from collector.rollout import RolloutState, Unroll, make_start, make_unroll
from shared.config import EnvOptions
from shared.envs.base import GoalEnv
from shared.envs.registry import env_entries, make_env
from shared.policy import random_policy

pytestmark = pytest.mark.envs
IDS = tuple(entry.env_id for entry in env_entries())
ONE_PER_FAMILY = ("point_big_maze", "ant_u4_maze", "ant_push", "humanoid")
ONE_PER_FAMILY += ("reacher", "pusher_hard", "cheetah", "arm_push_easy")
ONE_GOAL = ("cheetah", *(env_id for env_id in IDS if "single" in env_id))
ONE_START = ("humanoid", "arm_reach")
ENVIRONMENTS, EPISODE = 3, 2


def rolled(env: GoalEnv, steps: int) -> tuple[RolloutState, RolloutState, Unroll]:
    """Returns start, end and rows of one unroll with random actions, in one jitted call."""

    def roll(key: jax.Array) -> tuple[RolloutState, RolloutState, Unroll]:
        start = make_start(env, ENVIRONMENTS)(key)
        unroll = make_unroll(env, random_policy(env.spec.action_size), steps)
        return start, *unroll({}, jnp.int32(0), start, jax.random.fold_in(key, 1))

    return jax.jit(roll)(jax.random.key(0))


@pytest.mark.parametrize("env_id", IDS)
def test_consecutive_short_episodes_are_valid(env_id: str) -> None:
    env = make_env(env_id, EnvOptions(episode_length=EPISODE))
    start, end, unroll = rolled(env, steps=2 * EPISODE)
    states = np.asarray(unroll.rows.state)
    assert np.isfinite(states).all()
    assert np.isfinite(unroll.distance).all()
    assert bool(unroll.done[EPISODE - 1].all())
    assert np.array_equal(states[0], states[EPISODE]) == env_id.startswith(ONE_START)
    goals = np.concatenate([start.env.goal, end.env.goal])
    cells = env.cell(goals)
    assert bool(((cells >= 0) & (cells < env.spec.num_cells)).all())
    assert (len(np.unique(goals, axis=0)) > 1) == (env_id not in ONE_GOAL)
    for state, goal in zip(states[0], start.env.goal, strict=True):
        windows = np.lib.stride_tricks.sliding_window_view(state, len(goal))
        assert not (windows == goal).all(axis=-1).any()


@pytest.mark.timeout(1200)
@pytest.mark.parametrize("env_id", ONE_PER_FAMILY)
def test_random_episode_is_finite(env_id: str) -> None:
    env = make_env(env_id)
    _, end, unroll = rolled(env, steps=env.spec.episode_length)
    assert np.isfinite(unroll.rows.state).all()
    assert np.isfinite(unroll.distance).all()
    assert (end.episode >= 1).all()
