"""Policies of an actor: stochastic to collect and to learn, deterministic to evaluate, the best of several samples for
either, random to show environments.
"""

from collections.abc import Callable
from dataclasses import dataclass
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


@dataclass(frozen=True)
class StochasticPolicy:
    """For collecting: `policy(params, state [N, S], goal [N, G], key) -> actions [N, H * A]`, samples of `actor`."""

    actor: Actor

    def __call__(self, params: Params, state: Array, goal: Array, key: Array) -> jax.Array:
        return sample_action(self.actor, params, state, goal, key)[0]


@dataclass(frozen=True)
class DeterministicPolicy:
    """For evaluation, with the same signature: tanh of the mean. It does not use the key."""

    actor: Actor

    def __call__(self, params: Params, state: Array, goal: Array, key: Array) -> jax.Array:
        return jnp.tanh(self.actor.apply(params, state, goal)[0])


@dataclass(frozen=True)
class BestPolicy:
    """The same signature, with parameters `ActorCritic`: the best by `score` of a number of samples of `actor`."""

    actor: Actor
    score: Score
    samples: int

    def __call__(self, params: ActorCritic, state: Array, goal: Array, key: Array) -> jax.Array:
        mean, log_std = self.actor.apply(params.actor, state, goal)
        keys = jax.random.split(key, self.samples)
        actions, _ = jax.vmap(tanh_gaussian, in_axes=(None, None, 0))(mean, log_std, keys)
        # By sample alone, so that a critic computes what depends on the goal alone once.
        scores = jax.vmap(self.score, in_axes=(None, None, 0, None))(params.critic, state, actions, goal)
        best = jnp.argmax(scores, axis=0)
        return jnp.take_along_axis(actions, best[None, :, None], axis=0)[0]


def random_policy(action_size: int) -> PolicyFunction:
    """Returns a policy of the same signature, uniform in [-1, 1] and independent of parameters and state."""
    return lambda params, state, goal, key: jax.random.uniform(key, (*state.shape[:-1], action_size), minval=-1)
