"""Optimisers of a learner: one for each part that it trains."""

from typing import NamedTuple

import optax

from shared.algorithm_config import AlgorithmConfig


class Optimisers(NamedTuple):
    actor: optax.GradientTransformation
    critic: optax.GradientTransformation
    alpha: optax.GradientTransformation


class OptimiserStates(NamedTuple):
    actor: optax.OptState
    critic: optax.OptState
    alpha: optax.OptState


def make_optimisers(algorithm: AlgorithmConfig) -> Optimisers:
    """Returns Adam for each; `max_gradient_norm`, where set, clips the gradients of actor and critic before Adam."""
    actor, critic = optax.adam(algorithm.actor_learning_rate), optax.adam(algorithm.critic_learning_rate)
    if algorithm.max_gradient_norm is not None:
        clip = optax.clip_by_global_norm(algorithm.max_gradient_norm)
        actor, critic = optax.chain(clip, actor), optax.chain(clip, critic)
    return Optimisers(actor, critic, optax.adam(algorithm.alpha_learning_rate))
