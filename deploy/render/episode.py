"""A single episode, step by step: pictures need more than the rows of a rollout hold."""

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

    `states` `[T, S]`. `goals` `[T, G]`. `distances` `[T]`, in units of the goal. `physics`: T times `[1, ...]`.
    """

    states: np.ndarray
    goals: np.ndarray
    distances: np.ndarray
    physics: list[Any]


def make_recorder(
    env: GoalEnv, policy: PolicyFunction, steps: int | None, chunk: int = 1
) -> Callable[[Params, Array], Episode]:
    """Returns `record(params, key)`, which plays an episode to its end, or at most `steps` of it. `key` is consumed.

    `policy` decides `chunk` actions at once.
    """
    start = jax.jit(make_start(env, 1, chunk))
    unroll = jax.jit(make_unroll(env, policy, length=1))
    max_steps = min(steps or env.spec.episode_length, env.spec.episode_length)

    def record(params: Params, key: Array) -> Episode:
        start_key, key = jax.random.split(key)
        rollout, done = start(start_key), False
        moments: list[EnvState] = []
        while len(moments) < max_steps and not done:
            moments.append(rollout.env)  # after the last step the rollout holds the start of the next episode
            step_key = jax.random.fold_in(key, len(moments))
            rollout, step = unroll(params, jnp.zeros((), jnp.int32), rollout, step_key)
            done = bool(step.done[0, 0])
        states = np.concatenate([moment.state for moment in moments])
        goals = np.concatenate([moment.goal for moment in moments])
        distances = np.asarray(env.distance(states, goals))
        return Episode(states, goals, distances, [moment.physics for moment in moments])

    return record
