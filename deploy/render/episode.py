"""One episode, step by step: a picture needs what the rollout's rows leave out."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from collector.rollout import make_start, make_unroll
from shared.envs.base import EnvState, GoalEnv
from shared.policy import PolicyFunction
from shared.types import Array, Params


class Episode(NamedTuple):
    """T moments of one episode, each just before its step.

    `states` `[T, S]`. `goals` `[T, G]`. `distances` `[T]`, in the goal's units. `physics`: T of what the
    environment keeps between steps, `[1, ...]` each.
    """

    states: np.ndarray
    goals: np.ndarray
    distances: np.ndarray
    physics: list[Any]


def make_recorder(env: GoalEnv, policy: PolicyFunction, steps: int | None) -> Callable[[Params, Array], Episode]:
    """`record(params, key)` plays one fresh episode to its end, or at most `steps` of it. `key` is consumed."""
    start = jax.jit(make_start(env, 1))
    unroll = jax.jit(make_unroll(env, policy, length=1))
    most = min(steps or env.spec.episode_length, env.spec.episode_length)

    def record(params: Params, key: Array) -> Episode:
        start_key, key = jax.random.split(key)
        rollout, done = start(start_key), False
        moments: list[EnvState] = []
        while len(moments) < most and not done:
            moments.append(rollout.env)  # after the last step the rollout holds the next episode's start
            rollout, seen = unroll(params, jnp.zeros((), jnp.int32), rollout, jax.random.fold_in(key, len(moments)))
            done = bool(seen.done[0, 0])
        return _episode(env, moments)

    return record


def _episode(env: GoalEnv, moments: list[EnvState]) -> Episode:
    states = np.concatenate([moment.state for moment in moments])
    goals = np.concatenate([moment.goal for moment in moments])
    return Episode(states, goals, np.asarray(env.distance(states, goals)), [moment.physics for moment in moments])
