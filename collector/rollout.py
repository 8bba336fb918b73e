"""The one rollout: collecting and evaluating differ by the policy passed in."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from shared.envs.base import EnvState, GoalEnv, goal_distance
from shared.policy import PolicyFunction
from shared.types import Array, Params, Rows


class RolloutState(NamedTuple):
    """N environments between two unrolls.

    `env`: EnvState `[N, ...]`. `episode` `[N]` int32: each environment's current episode. `episode_step`
    `[N]` int32: steps into it. `step` `[]` int32: steps each environment has made in the whole run.
    """

    env: EnvState
    episode: Array
    episode_step: Array
    step: Array


class Unroll(NamedTuple):
    """T steps of N environments.

    `rows`: Rows `[T, N, ...]`. `distance` `[T, N]` to the commanded goal after each step, in the goal's
    units. `done` `[T, N]` bool: the episode ended with this step.
    """

    rows: Rows
    distance: Array
    done: Array


UnrollFunction = Callable[[Params, Array, RolloutState, Array], tuple[RolloutState, Unroll]]


def make_start(env: GoalEnv, environments: int) -> Callable[[Array], RolloutState]:
    """`start(key) -> RolloutState` of fresh episodes. `key` is consumed."""

    def start(key: Array) -> RolloutState:
        zeros = jnp.zeros(environments, jnp.int32)
        fresh = jax.vmap(env.reset)(jax.random.split(key, environments))
        return RolloutState(fresh, zeros, zeros, jnp.zeros((), jnp.int32))

    return start


def make_unroll(env: GoalEnv, policy: PolicyFunction, length: int) -> UnrollFunction:
    """`unroll(params, version, state, key) -> (state, Unroll)` of `length` steps; jit is the caller's.

    An episode ends when the environment terminates or after `episode_length` steps (truncation); the next
    one has a new start and a new goal. `key` is consumed.
    """
    spec = env.spec

    def unroll(params: Params, version: Array, state: RolloutState, key: Array) -> tuple[RolloutState, Unroll]:
        environments = state.episode.shape[0]

        def step(state: RolloutState, key: Array) -> tuple[RolloutState, Unroll]:
            action_key, reset_key = jax.random.split(key)
            action = policy(params, state.env.state, state.env.goal, action_key)
            after = jax.vmap(env.step)(state.env, action)
            done = after.terminated | (state.episode_step + 1 >= spec.episode_length)
            fresh = jax.vmap(env.reset)(jax.random.split(reset_key, environments))
            rows = Rows(
                state=state.env.state,
                action=action,
                episode=state.episode,
                step=jnp.broadcast_to(state.step, done.shape),
                version=jnp.broadcast_to(version, done.shape),
            )
            seen = Unroll(rows, goal_distance(spec, after.state, state.env.goal), done)
            state = RolloutState(
                env=jax.tree.map(lambda new, old: _where(done, new, old), fresh, after),
                episode=state.episode + done,
                episode_step=jnp.where(done, 0, state.episode_step + 1),
                step=state.step + 1,
            )
            return state, seen

        return jax.lax.scan(step, state, jax.random.split(key, length))

    return unroll


def _where(done: Array, new: Array, old: Array) -> jax.Array:
    """`new` where `done` `[N]`, else `old`, both `[N, ...]`."""
    return jnp.where(done.reshape(done.shape + (1,) * (old.ndim - 1)), new, old)
