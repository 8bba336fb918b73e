"""One update of a learner: windows in, hundreds of gradient steps, new state out. One jitted call."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from learner.losses import (
    CONTRASTIVE_LOSSES,
    PAIR_ENERGIES,
    actor_loss,
    alpha_loss,
    critic_loss,
    energy_matrix,
)
from learner.relabel import Transitions, crop, relabel
from learner.state import LearnerState, Optimisers, OptimiserStates
from shared.config import AlgorithmConfig
from shared.envs.base import EnvSpec
from shared.networks import CriticParams, Networks
from shared.plan import Plan
from shared.policy import sample_action
from shared.replay.codec import Columns, unpack
from shared.types import Array, Metrics, Params

UpdateStep = Callable[[LearnerState, Columns], tuple[LearnerState, Metrics]]
GradientStep = Callable[[LearnerState, Transitions, Array], tuple[LearnerState, Metrics]]


class _Gradients(NamedTuple):
    actor: Params
    critic: CriticParams
    alpha: Array


def make_gradients(
    networks: Networks, algorithm: AlgorithmConfig, spec: EnvSpec
) -> Callable[[LearnerState, Transitions, Array], tuple[_Gradients, Metrics]]:
    """`gradients(state, minibatch [B, ...], key)`, all three with the critic as it stands. `key` is consumed."""
    pair_energy = PAIR_ENERGIES[algorithm.energy]
    contrastive = CONTRASTIVE_LOSSES[algorithm.contrastive_loss]
    target_entropy = algorithm.target_entropy_per_action * spec.action_size

    def represent(critic: CriticParams, state: Array, action: Array) -> jax.Array:
        return networks.state_action.apply(critic.state_action, jnp.concatenate([state, action], axis=-1))

    def actor_objective(
        actor: Params, state: LearnerState, minibatch: Transitions, key: Array
    ) -> tuple[jax.Array, tuple[Array, Metrics]]:
        action, log_prob = sample_action(networks.actor, actor, minibatch.state, minibatch.goal, key)
        phi = represent(state.critic, minibatch.state, action)
        psi = networks.goal.apply(state.critic.goal, minibatch.goal)
        loss, metrics = actor_loss(log_prob, pair_energy(phi, psi), state.log_alpha)
        return loss, (log_prob, metrics)

    def critic_objective(critic: CriticParams, minibatch: Transitions) -> tuple[jax.Array, Metrics]:
        phi = represent(critic, minibatch.state, minibatch.action)
        psi = networks.goal.apply(critic.goal, minibatch.goal)
        energy = energy_matrix(algorithm.energy, phi, psi)
        return critic_loss(energy, contrastive, algorithm.logsumexp_penalty)

    def gradients(state: LearnerState, minibatch: Transitions, key: Array) -> tuple[_Gradients, Metrics]:
        actor_grads, (log_prob, actor_metrics) = jax.grad(actor_objective, has_aux=True)(
            state.actor, state, minibatch, key
        )
        alpha_value, alpha_grad = jax.value_and_grad(alpha_loss)(state.log_alpha, log_prob, target_entropy)
        critic_grads, critic_metrics = jax.grad(critic_objective, has_aux=True)(state.critic, minibatch)
        metrics = actor_metrics | critic_metrics
        metrics |= {"alpha/loss": alpha_value, "alpha/log_alpha": state.log_alpha}
        metrics |= {
            "actor/gradient_norm": optax.tree.norm(actor_grads),
            "critic/gradient_norm": optax.tree.norm(critic_grads),
        }
        return _Gradients(actor_grads, critic_grads, alpha_grad), metrics

    return gradients


def make_gradient_step(
    networks: Networks, optimisers: Optimisers, algorithm: AlgorithmConfig, spec: EnvSpec
) -> GradientStep:
    """`gradient_step(state, minibatch [B, ...], key) -> (state, metrics)`. `key` is consumed."""
    gradients = make_gradients(networks, algorithm, spec)

    def gradient_step(state: LearnerState, minibatch: Transitions, key: Array) -> tuple[LearnerState, Metrics]:
        grads, metrics = gradients(state, minibatch, key)
        actor_updates, actor_opt = optimisers.actor.update(grads.actor, state.optimisers.actor)
        critic_updates, critic_opt = optimisers.critic.update(grads.critic, state.optimisers.critic)
        alpha_updates, alpha_opt = optimisers.alpha.update(grads.alpha, state.optimisers.alpha)
        state = state._replace(
            actor=optax.apply_updates(state.actor, actor_updates),
            critic=optax.apply_updates(state.critic, critic_updates),
            log_alpha=optax.apply_updates(state.log_alpha, alpha_updates),
            optimisers=OptimiserStates(actor_opt, critic_opt, alpha_opt),
        )
        return state, metrics

    return gradient_step


def make_transitions(columns: Columns, plan: Plan, spec: EnvSpec, discount: float, key: Array) -> Transitions:
    """Sampled windows `[B, K * T, ...]` as relabelled rows `[B * (W - 1), ...]`. `key` is consumed."""
    crop_key, goal_key = jax.random.split(key)
    rows = crop(unpack(columns, spec.state_size), plan.window_length, max_offset=plan.unroll_length - 1, key=crop_key)
    transitions = relabel(rows, spec.goal_indices, discount, goal_key)
    return jax.tree.map(lambda x: x.reshape(-1, x.shape[-1]), transitions)


def make_update_step(
    networks: Networks, optimisers: Optimisers, algorithm: AlgorithmConfig, plan: Plan, spec: EnvSpec
) -> UpdateStep:
    """`update_step(state, windows) -> (state, metrics)`; jit and donation are the caller's.

    `windows`: Columns `[windows_per_update, K * T, ...]`. Relabels, shuffles all rows and makes
    `minibatches_per_update` gradient steps on distinct rows; metrics are means over them.
    """
    gradient_step = make_gradient_step(networks, optimisers, algorithm, spec)
    used = plan.minibatches_per_update * plan.batch_size

    def update_step(state: LearnerState, windows: Columns) -> tuple[LearnerState, Metrics]:
        key, rows_key, shuffle_key, steps_key = jax.random.split(state.key, 4)
        transitions = make_transitions(windows, plan, spec, algorithm.discount, rows_key)
        order = jax.random.permutation(shuffle_key, transitions.state.shape[0])[:used]
        order = order.reshape(plan.minibatches_per_update, plan.batch_size)

        def one_step(state: LearnerState, step: tuple[Array, Array]) -> tuple[LearnerState, Metrics]:
            indices, key = step
            return gradient_step(state, jax.tree.map(lambda x: x[indices], transitions), key)

        keys = jax.random.split(steps_key, plan.minibatches_per_update)
        state, metrics = jax.lax.scan(one_step, state, (order, keys))
        metrics = {name: jnp.mean(values) for name, values in metrics.items()}
        _, step, version = jnp.moveaxis(windows.ints, -1, 0)
        metrics |= {
            "data/last_step": jnp.mean(step[:, -1].astype(jnp.float32)),
            "data/version": jnp.mean(version.astype(jnp.float32)),
        }
        return state._replace(key=key, updates=state.updates + 1), metrics

    return update_step
