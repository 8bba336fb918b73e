"""Rollout of a policy: the same for collecting and for evaluating, which differ by the policy alone."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from shared.envs.base import EnvState, GoalEnv
from shared.policy import PolicyFunction
from shared.types import Array, Params, Rows


class RolloutState(NamedTuple):
    """State of N environments between two unrolls.

    `env`: EnvState `[N, ...]`. `episode` `[N]` int32: number of each environment's current episode. `episode_step`
    `[N]` int32: steps made in that episode. `step` `[]` int32: steps that each environment made in the whole run.
    `start_keys` `[N]`: keys that the first starts and goals were drawn from.
    """

    env: EnvState
    episode: Array
    episode_step: Array
    step: Array
    start_keys: Array


class Unroll(NamedTuple):
    """T steps of N environments.

    `rows`: Rows `[T, N, ...]`. `goal` `[T, N, G]`: commanded goal, before each step. `distance` `[T, N]`: distance to
    the commanded goal, in the goal's units, after each step, or before a step that broke. `done` `[T, N]` bool: the
    episode ended with this step. `episode_step` `[T, N]` int32: steps of the episode before this one. `broken` `[T, N]`
    bool: the step's action, the state after it or its distance is not finite, which ended the episode. `entry` `[T, N]`
    int32: the first of these A + S + 1 numbers that is not finite; A + S + 1 if the step is not broken.
    """

    rows: Rows
    goal: Array
    distance: Array
    done: Array
    episode_step: Array
    broken: Array
    entry: Array


UnrollFunction = Callable[[Params, Array, RolloutState, Array], tuple[RolloutState, Unroll]]


def first_not_finite(numbers: Array) -> jax.Array:
    """Returns the index `[...]` int32 of the first of `numbers` `[..., E]` that is not finite; E if all are finite."""
    count = numbers.shape[-1]
    return jnp.min(jnp.where(jnp.isfinite(numbers), count, jnp.arange(count)), axis=-1)


def make_start(env: GoalEnv, environments: int) -> Callable[[Array], RolloutState]:
    """Returns `start(key) -> RolloutState` of new episodes. `key` is consumed."""

    def start(key: Array) -> RolloutState:
        zeros = jnp.zeros(environments, jnp.int32)
        keys = jax.random.split(key, environments)
        return RolloutState(jax.vmap(env.reset)(keys), zeros, zeros, jnp.zeros((), jnp.int32), keys)

    return start


def make_unroll(env: GoalEnv, policy: PolicyFunction, length: int, fixed_goals: bool = False) -> UnrollFunction:
    """Returns `unroll(params, version, state, key) -> (state, Unroll)` of `length` steps; the caller applies jit.

    An episode ends when the environment terminates, when a step breaks (see `Unroll`), or after `episode_length` steps
    (truncation). The next episode has a new start and a new goal, or with `fixed_goals` the environment's very first
    start and goal. `key` is consumed.
    """
    spec = env.spec

    def unroll(params: Params, version: Array, state: RolloutState, key: Array) -> tuple[RolloutState, Unroll]:
        environments = state.episode.shape[0]
        pool_key, key = jax.random.split(key)
        # Starts are drawn once for the whole unroll: in a simulator, one start costs as much as several steps.
        # The pool is so large that no environment gets a start twice: no environment ends more often than it steps.
        keys = state.start_keys if fixed_goals else jax.random.split(pool_key, max(environments, length))
        pool = jax.vmap(env.reset)(keys)
        first_episode, first_start = state.episode, jnp.arange(environments)

        def step(state: RolloutState, key: Array) -> tuple[RolloutState, Unroll]:
            action = policy(params, state.env.state, state.env.goal, key)
            after = jax.vmap(env.step)(state.env, action)
            distance = env.distance(after.state, after.goal)
            numbers = jnp.concatenate([action, after.state, distance[:, None]], axis=-1)
            entry = first_not_finite(numbers)
            broken = entry < numbers.shape[-1]
            done = after.terminated | broken | (state.episode_step + 1 >= spec.episode_length)
            start = first_start if fixed_goals else (first_start + state.episode - first_episode) % len(keys)
            rows = Rows(
                state=state.env.state,
                action=action,
                episode=state.episode,
                step=jnp.broadcast_to(state.step, done.shape),
                version=jnp.broadcast_to(version, done.shape),
            )
            last_distance = env.distance(state.env.state, state.env.goal)
            distance = jnp.where(broken, last_distance, distance)
            made = Unroll(rows, state.env.goal, distance, done, state.episode_step, broken, entry)
            state = RolloutState(
                env=jax.tree.map(lambda new, old: jax.vmap(jnp.where)(done, new[start], old), pool, after),
                episode=state.episode + done,
                episode_step=jnp.where(done, 0, state.episode_step + 1),
                step=state.step + 1,
                start_keys=state.start_keys,
            )
            return state, made

        return jax.lax.scan(step, state, jax.random.split(key, length))

    return unroll
