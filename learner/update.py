"""One update of a learner: windows in, hundreds of gradient steps, new state out. One jitted call."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import NamedSharding

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
from shared.networks import CriticParams, NetworkParams, Networks, Pass, side_by_side
from shared.plan import Plan
from shared.policy import tanh_gaussian
from shared.replay.codec import Columns, unpack
from shared.types import Array, Metrics, Params

UpdateStep = Callable[[LearnerState, Columns], tuple[LearnerState, Metrics]]
UpdateSteps = Callable[
    [tuple[LearnerState, ...], tuple[Columns, ...]], tuple[tuple[LearnerState, ...], tuple[Metrics, ...]]
]
GradientStep = Callable[[LearnerState, Transitions, Array], tuple[LearnerState, Metrics]]


# What a gradient step must not lack; a norm is finite only where every gradient is.
WATCHED = (
    *("actor/loss", "critic/loss", "alpha/loss"),
    *("actor/gradient_norm", "critic/gradient_norm", "alpha/gradient"),
)


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

    def objective(
        trained: NetworkParams, log_alpha: Array, minibatch: Transitions, key: Array
    ) -> tuple[jax.Array, tuple[Array, Metrics]]:
        """Both losses at once, each without a gradient for the other's networks."""
        actor, critic = trained
        state, action, goal = minibatch
        (mean, log_std), psi = side_by_side(
            Pass(networks.actor, actor, (state, goal)), Pass(networks.goal, critic.goal, (goal,))
        )
        own_action, log_prob = tanh_gaussian(mean, log_std, key)
        fixed = jax.lax.stop_gradient(critic.state_action)
        phi, own_phi = side_by_side(
            Pass(networks.state_action, critic.state_action, (jnp.concatenate([state, action], axis=-1),)),
            Pass(networks.state_action, fixed, (jnp.concatenate([state, own_action], axis=-1),)),
        )
        of_actor, actor_metrics = actor_loss(log_prob, pair_energy(own_phi, jax.lax.stop_gradient(psi)), log_alpha)
        energy = energy_matrix(algorithm.energy, phi, psi)
        of_critic, critic_metrics = critic_loss(energy, contrastive, algorithm.logsumexp_penalty)
        return of_actor + of_critic, (log_prob, actor_metrics | critic_metrics)

    def gradients(state: LearnerState, minibatch: Transitions, key: Array) -> tuple[_Gradients, Metrics]:
        (actor_grads, critic_grads), (log_prob, metrics) = jax.grad(objective, has_aux=True)(
            NetworkParams(state.actor, state.critic), state.log_alpha, minibatch, key
        )
        alpha_value, alpha_grad = jax.value_and_grad(alpha_loss)(state.log_alpha, log_prob, target_entropy)
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
    """`gradient_step(state, minibatch [B, ...], key) -> (state, metrics)`. `key` is consumed.

    `guard/watched` `[len(WATCHED)]` of the metrics: unless all of it is finite, the state stays as it was.
    """
    gradients = make_gradients(networks, algorithm, spec)

    def gradient_step(state: LearnerState, minibatch: Transitions, key: Array) -> tuple[LearnerState, Metrics]:
        grads, metrics = gradients(state, minibatch, key)
        watched = jnp.stack([*(metrics[name] for name in WATCHED[:-1]), grads.alpha])
        # A branch, not a select: a select over all parameters takes a third of the step's time on a CPU.
        state = jax.lax.cond(jnp.isfinite(watched).all(), descend, lambda state, grads: state, state, grads)
        return state, metrics | {"guard/watched": watched}

    def descend(state: LearnerState, grads: _Gradients) -> LearnerState:
        actor_updates, actor_opt = optimisers.actor.update(grads.actor, state.optimisers.actor)
        critic_updates, critic_opt = optimisers.critic.update(grads.critic, state.optimisers.critic)
        alpha_updates, alpha_opt = optimisers.alpha.update(grads.alpha, state.optimisers.alpha)
        return state._replace(
            actor=optax.apply_updates(state.actor, actor_updates),
            critic=optax.apply_updates(state.critic, critic_updates),
            log_alpha=optax.apply_updates(state.log_alpha, alpha_updates),
            optimisers=OptimiserStates(actor_opt, critic_opt, alpha_opt),
        )

    return gradient_step


def make_transitions(columns: Columns, plan: Plan, spec: EnvSpec, discount: float, key: Array) -> Transitions:
    """Sampled windows `[B, K * T, ...]` as relabelled rows `[B * (W - 1), ...]`. `key` is consumed."""
    crop_key, goal_key = jax.random.split(key)
    rows = crop(unpack(columns, spec.state_size), plan.window_length, max_offset=plan.unroll_length - 1, key=crop_key)
    transitions = relabel(rows, spec.goal_indices, discount, goal_key)
    return jax.tree.map(lambda x: x.reshape(-1, x.shape[-1]), transitions)


class Steps(NamedTuple):
    """What the M gradient steps of an update are made of, before the first of them.

    `transitions` `[R, ...]`: all rows. `order` `[M, B]`: which of them each step trains on. `keys` `[M]`: one
    for each step. `key` `[]`: the learner's after the update.
    """

    transitions: Transitions
    order: Array
    keys: Array
    key: Array

    def minibatch(self, indices: Array) -> Transitions:
        """The rows `[B, ...]` that `indices` `[B]`, one entry of `order`, stand for."""
        return jax.tree.map(lambda x: x[indices], self.transitions)


def make_steps(windows: Columns, plan: Plan, spec: EnvSpec, discount: float, key: Array) -> Steps:
    """Relabels and shuffles all rows of an update's windows. `key`, the learner's before it, is consumed."""
    key, rows_key, shuffle_key, steps_key = jax.random.split(key, 4)
    transitions = make_transitions(windows, plan, spec, discount, rows_key)
    used = plan.minibatches_per_update * plan.batch_size
    order = jax.random.permutation(shuffle_key, transitions.state.shape[0])[:used]
    order = order.reshape(plan.minibatches_per_update, plan.batch_size)
    return Steps(transitions, order, jax.random.split(steps_key, plan.minibatches_per_update), key)


def make_update_step(
    networks: Networks,
    optimisers: Optimisers,
    algorithm: AlgorithmConfig,
    plan: Plan,
    spec: EnvSpec,
    split: NamedSharding | None = None,
) -> UpdateStep:
    """`update_step(state, windows) -> (state, metrics)`; jit and donation are the caller's.

    `windows`: Columns `[windows_per_update, K * T, ...]`. Relabels, shuffles all rows and makes
    `minibatches_per_update` gradient steps on distinct rows, leaving out those that are not finite; metrics
    are means over the others (see `over_steps`). `split`: how a minibatch's rows are shared out among devices;
    every row's negatives are those of the whole minibatch all the same.
    """
    gradient_step = make_gradient_step(networks, optimisers, algorithm, spec)

    def update_step(state: LearnerState, windows: Columns) -> tuple[LearnerState, Metrics]:
        steps = make_steps(windows, plan, spec, algorithm.discount, state.key)

        def one_step(state: LearnerState, step: tuple[Array, Array]) -> tuple[LearnerState, Metrics]:
            indices, key = step
            minibatch = steps.minibatch(indices)
            if split is not None:
                minibatch = jax.lax.with_sharding_constraint(minibatch, split)
            return gradient_step(state, minibatch, key)

        state, metrics = jax.lax.scan(one_step, state, (steps.order, steps.keys))
        metrics = over_steps(metrics)
        _, step, version = jnp.moveaxis(windows.ints, -1, 0)
        metrics |= {
            "data/last_step": jnp.mean(step[:, -1].astype(jnp.float32)),
            "data/version": jnp.mean(version.astype(jnp.float32)),
        }
        return state._replace(key=steps.key, updates=state.updates + 1), metrics

    return update_step


def make_update_steps(update_step: UpdateStep) -> UpdateSteps:
    """`update_steps(states, windows) -> (states, metrics)`: `update_step` of several learners, vmapped.

    Each argument and result is a tuple with an entry for each learner; their networks are of equal sizes.
    """

    def update_steps(
        states: tuple[LearnerState, ...], windows: tuple[Columns, ...]
    ) -> tuple[tuple[LearnerState, ...], tuple[Metrics, ...]]:
        stacked = (jax.tree.map(lambda *each: jnp.stack(each), *trees) for trees in (states, windows))
        made = jax.vmap(update_step)(*stacked)
        each = [jax.tree.map(lambda x, index=index: x[index], made) for index in range(len(states))]
        return tuple(state for state, _ in each), tuple(metrics for _, metrics in each)

    return update_steps


def over_steps(metrics: Metrics) -> Metrics:
    """The metrics `[M, ...]` of M gradient steps as those of their update.

    Means over the finite steps; NaN where there is none, for nothing was measured (the learner ends there).
    `guard/skipped`: the other steps. `guard/first`: the index of the first of them, -1 where there is none.
    `guard/watched` `[len(WATCHED)]`: that step's, or step 0's.
    """
    watched = metrics["guard/watched"]
    finite = jnp.isfinite(watched).all(axis=1)
    first = jnp.argmin(finite)
    # Not `jnp.mean(..., where)`: over a count that is not a constant, the mean of all M steps rounds differently.
    scale = len(finite) / jnp.sum(finite)
    scalars = {name: values for name, values in metrics.items() if name != "guard/watched"}
    return {name: jnp.mean(jnp.where(finite, values, 0)) * scale for name, values in scalars.items()} | {
        "guard/skipped": jnp.sum(~finite),
        "guard/first": jnp.where(finite[first], -1, first),
        "guard/watched": watched[first],
    }
