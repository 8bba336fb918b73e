"""Rollout of a policy: the same for collecting and for evaluating, which differ by the policy alone."""

from collections.abc import Callable
from functools import lru_cache, partial, wraps
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp

from shared.envs.base import EnvState, GoalEnv, step_measures
from shared.policy import PolicyFunction
from shared.types import CONTINUES, TERMINATED, TRUNCATED, Array, Params, Rows


class ActionChunk(NamedTuple):
    """H actions of each of N environments, which the policy decided at once and which are executed open loop.

    `actions` `[N, H, A]`. `next` `[N]` int32: index of the action to execute; at 0 a new chunk is decided first.
    `version` `[N]` int32: version of the policy that decided.
    """

    actions: Array
    next: Array
    version: Array


class RolloutState(NamedTuple):
    """State of N environments between two unrolls.

    `env`: EnvState `[N, ...]`. `episode` `[N]` int32: number of each environment's current episode. `episode_step`
    `[N]` int32: steps made in that episode. `step` `[]` int32: steps that each environment made in the whole run.
    `start_keys` `[N]`: keys that the first starts and goals were drawn from. `chunk`: the action chunks that are being
    executed; `()` for a policy that decides single actions.
    """

    env: EnvState
    episode: Array
    episode_step: Array
    step: Array
    start_keys: Array
    chunk: ActionChunk | tuple[()] = ()


class Unroll(NamedTuple):
    """T steps of N environments.

    `rows`: Rows `[T, N, ...]`. `goal` `[T, N, G]`: commanded goal, before each step. `distance` `[T, N]`: distance to
    the commanded goal, in the goal's units, after each step, or before a step that broke. `done` `[T, N]` bool: the
    episode ended with this step. `episode_step` `[T, N]` int32: steps of the episode before this one. `broken` `[T, N]`
    bool: the step's action, the state after it or its distance is not finite, which ended the episode. `entry` `[T, N]`
    int32: the first of these A + S + 1 numbers that is not finite; A + S + 1 if the step is not broken. `measures`: the
    environment's measures `[T, N]` after each step, by name; empty unless they were asked for.
    """

    rows: Rows
    goal: Array
    distance: Array
    done: Array
    episode_step: Array
    broken: Array
    entry: Array
    measures: dict[str, Array]


UnrollFunction = Callable[[Params, Array, RolloutState, Array], tuple[RolloutState, Unroll]]


def first_not_finite(numbers: Array) -> jax.Array:
    """Returns the index `[...]` int32 of the first of `numbers` `[..., E]` that is not finite; E if all are finite."""
    count = numbers.shape[-1]
    return jnp.min(jnp.where(jnp.isfinite(numbers), count, jnp.arange(count)), axis=-1)


T = TypeVar("T")


class _Simulation(NamedTuple):
    """`reset` and `step` of one environment, for `vmap`."""

    reset: Callable[[Array], EnvState]
    step: Callable[[EnvState, Array], EnvState]


@lru_cache
def _simulation(env: GoalEnv) -> _Simulation:
    """Returns functions of `env` that are traced once in a process: a simulator takes a second or more to trace."""
    return _Simulation(jax.jit(in_full(env.reset)), jax.jit(in_full(env.step)))


def in_full(function: Callable[..., T]) -> Callable[..., T]:
    """Returns `function` with its products in float32: physics goes wrong in TF32, which is JAX's default on GPUs."""

    @wraps(function)
    def computed(*arguments: Any, **named: Any) -> T:
        with jax.default_matmul_precision("highest"):
            return function(*arguments, **named)

    return computed


def make_start(env: GoalEnv, environments: int, chunk: int = 1) -> Callable[[Array], RolloutState]:
    """Returns `start(key) -> RolloutState` of new episodes, for a policy that decides `chunk` actions at once.

    `key` is consumed.
    """
    start_at = make_start_at(env)
    return lambda key: start_at(jax.random.split(key, environments), chunk)


def make_start_at(env: GoalEnv) -> Callable[[Array, int], RolloutState]:
    """Returns `start_at(keys, chunk) -> RolloutState` of one new episode for each of `keys` `[N]`; see `make_start`."""

    reset, _ = _simulation(env)  # type: ignore[arg-type]

    def start_at(keys: Array, chunk: int) -> RolloutState:
        environments = len(keys)
        zeros = jnp.zeros(environments, jnp.int32)
        due = ActionChunk(jnp.zeros((environments, chunk, env.spec.action_size)), zeros, zeros) if chunk > 1 else ()
        return RolloutState(jax.vmap(reset)(keys), zeros, zeros, jnp.zeros((), jnp.int32), keys, due)

    return start_at


def _act(
    policy: PolicyFunction, params: Params, version: Array, state: RolloutState, key: Array
) -> tuple[Array, Array, ActionChunk | tuple[()]]:
    """Returns the actions `[N, A]` of one step, the versions `[N]` that decided them, and the chunks after the step.

    The policy is computed only if an environment needs a new chunk, then for all environments.
    """
    held = state.chunk
    if not isinstance(held, ActionChunk):
        action = policy(params, state.env.state, state.env.goal, key)
        return action, jnp.broadcast_to(version, state.episode.shape), ()
    due = held.next == 0

    def decide(held: ActionChunk) -> ActionChunk:
        actions = policy(params, state.env.state, state.env.goal, key).reshape(held.actions.shape)
        actions = jnp.where(due[:, None, None], actions, held.actions)
        return ActionChunk(actions, held.next, jnp.where(due, version, held.version))

    held = jax.lax.cond(due.any(), decide, lambda held: held, held)
    action = jnp.take_along_axis(held.actions, held.next[:, None, None], axis=1)[:, 0]
    return action, held.version, held._replace(next=(held.next + 1) % held.actions.shape[1])


def make_unroll(
    env: GoalEnv, policy: PolicyFunction, length: int, fixed_goals: bool = False, measure: bool = False
) -> UnrollFunction:
    """Returns `unroll(params, version, state, key) -> (state, Unroll)` of `length` steps; the caller applies jit.

    The policy decides as many actions at once as `state` has room for (see `make_start`). A chunk continues in the next
    unroll, and ends with its episode. An episode ends when the environment terminates, when a step breaks (see
    `Unroll`), or after `episode_length` steps (truncation). The next episode has a new start and a new goal, or with
    `fixed_goals` the environment's very first start and goal. `measure`: evaluates the environment's measures after
    each step. `key` is consumed.
    """
    spec = env.spec
    simulation = _simulation(env)  # type: ignore[arg-type]
    goal_indices = jnp.array(spec.goal_indices)

    def unroll(params: Params, version: Array, state: RolloutState, key: Array) -> tuple[RolloutState, Unroll]:
        environments = state.episode.shape[0]
        pool_key, key = jax.random.split(key)
        # Starts are drawn once for the whole unroll: in a simulator, one start costs as much as several steps.
        # The pool is so large that no environment gets a start twice: no environment ends more often than it steps.
        keys = state.start_keys if fixed_goals else jax.random.split(pool_key, max(environments, length))
        pool = jax.vmap(simulation.reset)(keys)
        first_episode, first_start = state.episode, jnp.arange(environments)

        def step(state: RolloutState, key: Array) -> tuple[RolloutState, Unroll]:
            action, decided_by, chunk = _act(policy, params, version, state, key)
            assert action.shape == (environments, spec.action_size), f"the policy decides actions {action.shape}"
            after = jax.vmap(simulation.step)(state.env, action)
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
                version=decided_by,
                end=jnp.where(after.terminated, TERMINATED, jnp.where(done, TRUNCATED, CONTINUES)),
                final=jnp.where((done & ~broken)[:, None], after.state[:, goal_indices], 0),
            )
            last_distance = env.distance(state.env.state, state.env.goal)
            distance = jnp.where(broken, last_distance, distance)
            measures = jax.vmap(partial(step_measures, env))(after) if measure else {}
            made = Unroll(rows, state.env.goal, distance, done, state.episode_step, broken, entry, measures)
            state = RolloutState(
                env=jax.tree.map(lambda new, old: jax.vmap(jnp.where)(done, new[start], old), pool, after),
                episode=state.episode + done,
                episode_step=jnp.where(done, 0, state.episode_step + 1),
                step=state.step + 1,
                start_keys=state.start_keys,
                chunk=chunk._replace(next=jnp.where(done, 0, chunk.next)) if isinstance(chunk, ActionChunk) else (),
            )
            return state, made

        return jax.lax.scan(step, state, jax.random.split(key, length))

    return unroll
