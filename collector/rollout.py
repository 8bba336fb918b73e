"""The one rollout: collecting and evaluating differ by the policy passed in."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from shared.envs.base import EnvState, GoalEnv
from shared.policy import PolicyFunction
from shared.types import Array, Params, Rows


class RolloutState(NamedTuple):
    """N environments between two unrolls.

    `env`: EnvState `[N, ...]`. `episode` `[N]` int32: each environment's current episode. `episode_step`
    `[N]` int32: steps into it. `step` `[]` int32: steps each environment has made in the whole run.
    `start_keys` `[N]`: what the first starts and goals were drawn from.
    """

    env: EnvState
    episode: Array
    episode_step: Array
    step: Array
    start_keys: Array


class Unroll(NamedTuple):
    """T steps of N environments.

    `rows`: Rows `[T, N, ...]`. `distance` `[T, N]` to the commanded goal after each step (before it, where the
    step broke), in the goal's units. `done` `[T, N]` bool: the episode ended with this step. `broken` `[T, N]`
    bool: because of something that is not finite, in the action, the state after it, or its distance.
    """

    rows: Rows
    distance: Array
    done: Array
    broken: Array


UnrollFunction = Callable[[Params, Array, RolloutState, Array], tuple[RolloutState, Unroll]]


def make_start(env: GoalEnv, environments: int) -> Callable[[Array], RolloutState]:
    """`start(key) -> RolloutState` of fresh episodes. `key` is consumed."""

    def start(key: Array) -> RolloutState:
        zeros = jnp.zeros(environments, jnp.int32)
        keys = jax.random.split(key, environments)
        return RolloutState(jax.vmap(env.reset)(keys), zeros, zeros, jnp.zeros((), jnp.int32), keys)

    return start


def make_unroll(env: GoalEnv, policy: PolicyFunction, length: int, fixed_goals: bool = False) -> UnrollFunction:
    """`unroll(params, version, state, key) -> (state, Unroll)` of `length` steps; jit is the caller's.

    An episode ends when the environment terminates, when it breaks (see `Unroll`), or after `episode_length`
    steps (truncation); the next one has a new start and a new goal, or with `fixed_goals` the environment's
    very first ones. `key` is consumed.
    """
    spec = env.spec

    def unroll(params: Params, version: Array, state: RolloutState, key: Array) -> tuple[RolloutState, Unroll]:
        environments = state.episode.shape[0]
        pool_key, key = jax.random.split(key)
        # Starts are drawn once for the whole unroll: in a simulator a start costs as much as some of its steps.
        # No environment meets one twice, since none can end more often than it steps.
        keys = state.start_keys if fixed_goals else jax.random.split(pool_key, max(environments, length))
        pool = jax.vmap(env.reset)(keys)
        first_episode, first_entry = state.episode, jnp.arange(environments)

        def step(state: RolloutState, key: Array) -> tuple[RolloutState, Unroll]:
            action = policy(params, state.env.state, state.env.goal, key)
            after = jax.vmap(env.step)(state.env, action)
            distance = env.distance(after.state, after.goal)
            broken = ~(_finite(action) & _finite(after.state) & jnp.isfinite(distance))
            done = after.terminated | broken | (state.episode_step + 1 >= spec.episode_length)
            entry = first_entry if fixed_goals else (first_entry + state.episode - first_episode) % len(keys)
            rows = Rows(
                state=state.env.state,
                action=action,
                episode=state.episode,
                step=jnp.broadcast_to(state.step, done.shape),
                version=jnp.broadcast_to(version, done.shape),
            )
            last_distance = env.distance(state.env.state, state.env.goal)
            seen = Unroll(rows, jnp.where(broken, last_distance, distance), done, broken)
            state = RolloutState(
                env=jax.tree.map(lambda new, old: _where(done, new[entry], old), pool, after),
                episode=state.episode + done,
                episode_step=jnp.where(done, 0, state.episode_step + 1),
                step=state.step + 1,
                start_keys=state.start_keys,
            )
            return state, seen

        return jax.lax.scan(step, state, jax.random.split(key, length))

    return unroll


def _finite(x: Array) -> jax.Array:
    """`[N]` bool for `x` `[N, ...]`: all of it is finite."""
    return jnp.isfinite(x).all(axis=tuple(range(1, x.ndim)))


def _where(done: Array, new: Array, old: Array) -> jax.Array:
    """`new` where `done` `[N]`, else `old`, both `[N, ...]`."""
    return jnp.where(done.reshape(done.shape + (1,) * (old.ndim - 1)), new, old)
