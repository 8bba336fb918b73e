"""What an actor does: stochastic to collect and to learn with, deterministic to evaluate, random to have a look."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from shared.networks import Actor
from shared.types import Array, Params

PolicyFunction = Callable[[Params, Array, Array, Array], jax.Array]  # (params, state, goal, key) -> action


def sample_action(actor: Actor, params: Params, state: Array, goal: Array, key: Array) -> tuple[jax.Array, jax.Array]:
    """Actions `[..., A]` in [-1, 1] and their log probabilities `[...]`. `key` is consumed.

    A tanh-squashed Gaussian (Haarnoja et al., 2018, appendix C).
    """
    mean, log_std = actor.apply(params, state, goal)
    return tanh_gaussian(mean, log_std, key)


def tanh_gaussian(mean: Array, log_std: Array, key: Array) -> tuple[jax.Array, jax.Array]:
    """The same of an actor's outputs `[..., A]`. `key` is consumed."""
    noise = jax.random.normal(key, mean.shape)
    action = jnp.tanh(mean + jnp.exp(log_std) * noise)
    gaussian = -0.5 * (noise**2 + jnp.log(2 * jnp.pi)) - log_std
    return action, jnp.sum(gaussian - jnp.log(1 - action**2 + 1e-6), axis=-1)


def stochastic_policy(actor: Actor) -> PolicyFunction:
    """`policy(params, state [N, S], goal [N, G], key) -> action [N, A]`, for collecting."""

    def policy(params: Params, state: Array, goal: Array, key: Array) -> jax.Array:
        return sample_action(actor, params, state, goal, key)[0]

    return policy


def deterministic_policy(actor: Actor) -> PolicyFunction:
    """The same signature, for evaluation: tanh of the mean; the key is not used."""

    def policy(params: Params, state: Array, goal: Array, key: Array) -> jax.Array:
        return jnp.tanh(actor.apply(params, state, goal)[0])

    return policy


def random_policy(action_size: int) -> PolicyFunction:
    """The same signature, for a look at an environment: uniform in [-1, 1], whatever the parameters and the state."""

    def policy(params: Params, state: Array, goal: Array, key: Array) -> jax.Array:
        return jax.random.uniform(key, (*state.shape[:-1], action_size), minval=-1, maxval=1)

    return policy
