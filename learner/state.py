"""Everything a learner is, in one immutable structure."""

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
    """`log_alpha` `[]`: log of the entropy coefficient. `updates` `[]` int32, the policy's version.

    `key` is split by every update and never used twice.
    """

    actor: Params
    critic: CriticParams
    log_alpha: Array
    optimisers: OptimiserStates
    key: Array
    updates: Array


def make_optimisers(algorithm: AlgorithmConfig) -> Optimisers:
    """Adam for each; before it, actor's and critic's gradients are clipped where `max_gradient_norm` is set."""
    return Optimisers(
        _clipped_adam(algorithm.actor_learning_rate, algorithm.max_gradient_norm),
        _clipped_adam(algorithm.critic_learning_rate, algorithm.max_gradient_norm),
        optax.adam(algorithm.alpha_learning_rate),
    )


def _clipped_adam(learning_rate: float, max_norm: float | None) -> optax.GradientTransformation:
    adam = optax.adam(learning_rate)
    return adam if max_norm is None else optax.chain(optax.clip_by_global_norm(max_norm), adam)


def init_state(networks: Networks, optimisers: Optimisers, spec: EnvSpec, key: Array) -> LearnerState:
    """A learner before its first update. `key` is consumed.

    One jitted call: made one by one, Adam's moments of a deep network take longer than its parameters.
    """

    @jax.jit
    def init(key: Array) -> LearnerState:
        params_key, key = jax.random.split(key)
        params: NetworkParams = init_params(networks, spec, params_key)
        log_alpha = jnp.zeros(())
        return LearnerState(
            actor=params.actor,
            critic=params.critic,
            log_alpha=log_alpha,
            optimisers=OptimiserStates(
                optimisers.actor.init(params.actor),
                optimisers.critic.init(params.critic),
                optimisers.alpha.init(log_alpha),
            ),
            key=key,
            updates=jnp.zeros((), jnp.int32),
        )

    return init(key)
