"""Episodes, step by step: pictures need more than the rows of a rollout hold."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from collector.rollout import make_start_at, make_unroll
from shared.envs.base import EnvState, GoalEnv
from shared.policy import PolicyFunction
from shared.types import Array, Params


class Episode(NamedTuple):
    """T moments of one episode, each just before its step.

    `states` `[T, S]`. `goals` `[T, G]`. `distances` `[T]`, in units of the goal. `positions` `[T, Q]`: positions of a
    body's joints; Q is 0 where an environment's physics has none.
    """

    states: np.ndarray
    goals: np.ndarray
    distances: np.ndarray
    positions: np.ndarray


class Recorder:
    """Plays episodes of one environment, whose step is compiled once; each size of a network is compiled once, too."""

    def __init__(self, env: GoalEnv) -> None:
        self.env = env
        self._start = jax.jit(make_start_at(env), static_argnums=1)
        self._step = jax.jit(make_unroll(env, _decided, length=1))

    def play(
        self,
        policy: PolicyFunction,
        params: Params,
        starts: Array,
        key: Array,
        steps: int | None = None,
        chunk: int = 1,
    ) -> list[Episode]:
        """Returns one episode for each of the keys `starts` `[N]`, to its end, or at most `steps` of it.

        `policy` decides `chunk` actions at once. `key` is consumed, and so are `starts`.
        """
        act = jax.jit(policy)  # compiled functions are kept by the policy's identity
        rollout = self._start(starts, chunk)
        moments, lasts = [], np.zeros(len(starts), int)
        over = np.zeros(len(starts), bool)
        for step in range(min(steps or self.env.spec.episode_length, self.env.spec.episode_length)):
            moments.append(_moment(rollout.env))  # after the last step the rollout holds the start of the next episode
            lasts[~over] = step
            act_key, step_key = jax.random.split(jax.random.fold_in(key, step))
            actions = act(params, rollout.env.state, rollout.env.goal, act_key)
            rollout, made = self._step(actions, jnp.zeros((), jnp.int32), rollout, step_key)
            over |= np.asarray(made.done[0])
            if over.all():
                break
        states, goals, positions = map(np.stack, zip(*jax.device_get(moments), strict=True))
        distances = np.asarray(self.env.distance(states, goals))
        return [
            Episode(*(column[: last + 1, index] for column in (states, goals, distances, positions)))
            for index, last in enumerate(lasts)
        ]


def _decided(actions: Any, state: Array, goal: Array, key: Array) -> jax.Array:
    """Policy whose parameters are the actions: a step need not be compiled again for another network."""
    return actions


def _moment(env_state: EnvState) -> tuple[Array, Array, Array]:
    """Returns states `[N, S]`, goals `[N, G]` and positions `[N, Q]`."""
    positions = getattr(env_state.physics, "q", jnp.zeros((len(env_state.state), 0)))
    return env_state.state, env_state.goal, positions
