"""State of a learner, in one immutable structure, and the optimisers that change it."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from shared.config import AlgorithmConfig
from shared.envs.base import EnvSpec
from shared.networks import CriticParams, NetworkParams, Networks, init_params
from shared.types import Array, Params


class Optimisers(NamedTuple):
    actor: optax.GradientTransformation
    critic: optax.GradientTransformation
    alpha: optax.GradientTransformation


class OptimiserStates(NamedTuple):
    actor: optax.OptState
    critic: optax.OptState
    alpha: optax.OptState


class LearnerState(NamedTuple):
    """`log_alpha` `[]`: log of the entropy coefficient. `updates` `[]` int32: the policy's version.

    Every update splits `key`, and no key is used twice.
    """

    actor: Params
    critic: CriticParams
    log_alpha: Array
    optimisers: OptimiserStates
    key: Array
    updates: Array


def make_optimisers(algorithm: AlgorithmConfig) -> Optimisers:
    """Returns Adam for each; `max_gradient_norm`, where set, clips the gradients of actor and critic before Adam."""
    actor, critic = optax.adam(algorithm.actor_learning_rate), optax.adam(algorithm.critic_learning_rate)
    if algorithm.max_gradient_norm is not None:
        clip = optax.clip_by_global_norm(algorithm.max_gradient_norm)
        actor, critic = optax.chain(clip, actor), optax.chain(clip, critic)
    return Optimisers(actor, critic, optax.adam(algorithm.alpha_learning_rate))


def init_state(networks: Networks, optimisers: Optimisers, spec: EnvSpec, key: Array) -> LearnerState:
    """Returns the state of a learner before its first update. `key` is consumed."""
    params_key, key = jax.random.split(key)
    params: NetworkParams = init_params(networks, spec, params_key)
    log_alpha = jnp.zeros(())
    trained = (*params, log_alpha)
    states = OptimiserStates(*(optimiser.init(each) for optimiser, each in zip(optimisers, trained, strict=True)))
    return LearnerState(*trained, optimisers=states, key=key, updates=jnp.zeros((), jnp.int32))
