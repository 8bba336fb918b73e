"""Policies of an actor: stochastic to collect and to learn, deterministic to evaluate, the best of several samples for
either, random to show environments.
"""

from collections.abc import Callable
from functools import lru_cache
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from shared.networks import Actor
from shared.types import Array, Params

PolicyFunction = Callable[[Params, Array, Array, Array], jax.Array]  # (params, state, goal, key) -> actions
Score = Callable[[Any, Array, Array, Array], jax.Array]  # (critic, state, actions, goal) -> the larger, the better


class ActorCritic(NamedTuple):
    """Parameters of a policy that samples from its actor and chooses by its critic."""

    actor: Params
    critic: Any


def sample_action(actor: Actor, params: Params, state: Array, goal: Array, key: Array) -> tuple[jax.Array, jax.Array]:
    """Returns actions `[..., A]` in [-1, 1] and their log probabilities `[...]`. `key` is consumed."""
    mean, log_std = actor.apply(params, state, goal)
    return tanh_gaussian(mean, log_std, key)


def tanh_gaussian(mean: Array, log_std: Array, key: Array) -> tuple[jax.Array, jax.Array]:
    """Samples a tanh-squashed Gaussian with an actor's outputs `[..., A]`; results as of `sample_action`.

    Haarnoja et al. (2018), appendix C. `key` is consumed.
    """
    noise = jax.random.normal(key, mean.shape)
    action = jnp.tanh(mean + jnp.exp(log_std) * noise)
    gaussian = -0.5 * (noise**2 + jnp.log(2 * jnp.pi)) - log_std
    return action, jnp.sum(gaussian - jnp.log(1 - action**2 + 1e-6), axis=-1)


@lru_cache  # so that what is compiled for a policy is compiled once for all equal actors
def stochastic_policy(actor: Actor) -> PolicyFunction:
    """Returns `policy(params, state [N, S], goal [N, G], key) -> actions [N, H * A]`, for collecting."""
    return lambda params, state, goal, key: sample_action(actor, params, state, goal, key)[0]


@lru_cache
def deterministic_policy(actor: Actor) -> PolicyFunction:
    """Returns a policy of the same signature, for evaluation: tanh of the mean. It does not use the key."""
    return lambda params, state, goal, key: jnp.tanh(actor.apply(params, state, goal)[0])


def best_policy(actor: Actor, score: Score, samples: int) -> PolicyFunction:
    """Returns a policy of the same signature with parameters `ActorCritic`: the best by `score` of several samples."""

    def policy(params: ActorCritic, state: Array, goal: Array, key: Array) -> jax.Array:
        mean, log_std = actor.apply(params.actor, state, goal)
        keys = jax.random.split(key, samples)
        actions, _ = jax.vmap(tanh_gaussian, in_axes=(None, None, 0))(mean, log_std, keys)
        # By sample alone, so that a critic computes what depends on the goal alone once.
        scores = jax.vmap(score, in_axes=(None, None, 0, None))(params.critic, state, actions, goal)
        best = jnp.argmax(scores, axis=0)
        return jnp.take_along_axis(actions, best[None, :, None], axis=0)[0]

    return policy


def random_policy(action_size: int) -> PolicyFunction:
    """Returns a policy of the same signature, uniform in [-1, 1] and independent of parameters and state."""
    return lambda params, state, goal, key: jax.random.uniform(key, (*state.shape[:-1], action_size), minval=-1)
