"""Update of a learner: windows in, hundreds of gradient steps, new state out, all in one jitted call."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import NamedSharding

from learner import losses
from learner.relabel import Transitions, crop, relabel
from learner.state import LearnerState, Optimisers, OptimiserStates
from shared.config import AlgorithmConfig
from shared.envs.base import EnvSpec
from shared.networks import CriticParams, Networks, Pass, side_by_side
from shared.plan import Plan
from shared.policy import tanh_gaussian
from shared.replay.codec import Columns, unpack
from shared.types import Array, Metrics, Params

UpdateStep = Callable[[LearnerState, Columns], tuple[LearnerState, Metrics]]
UpdateSteps = Callable[
    [tuple[LearnerState, ...], tuple[Columns, ...]], tuple[tuple[LearnerState, ...], tuple[Metrics, ...]]
]
GradientStep = Callable[[LearnerState, Transitions, Array], tuple[LearnerState, Metrics]]

# A gradient step is skipped unless all of these are finite. A norm is finite only if all of its gradient is.
WATCHED = ("actor/loss", "critic/loss", "alpha/loss", "actor/gradient_norm", "critic/gradient_norm", "alpha/gradient")


class _Trained(NamedTuple):
    """Everything that a gradient step changes, or the gradient of it. `alpha` `[]`: the coefficient's log."""

    actor: Params
    critic: CriticParams
    alpha: Array


def make_gradients(
    networks: Networks, algorithm: AlgorithmConfig, spec: EnvSpec
) -> Callable[[LearnerState, Transitions, Array], tuple[_Trained, Metrics]]:
    """Returns `gradients(state, minibatch [B, ...], key)`: all of them for the critic as it is. `key` is consumed."""
    pair_energy = losses.PAIR_ENERGIES[algorithm.energy]
    contrastive = losses.CONTRASTIVE_LOSSES[algorithm.contrastive_loss]
    target_entropy = algorithm.target_entropy_per_action * spec.action_size

    def objective(trained: _Trained, minibatch: Transitions, key: Array) -> tuple[jax.Array, Metrics]:
        """Returns the sum of the three losses, each with a gradient for its own parameters alone."""
        actor, critic, log_alpha = trained
        state, action, goal = minibatch
        (mean, log_std), psi = side_by_side(
            Pass(networks.actor, actor, (state, goal)), Pass(networks.goal, critic.goal, (goal,))
        )
        own_action, log_prob = tanh_gaussian(mean, log_std, key)
        fixed = jax.lax.stop_gradient(critic.state_action)
        phi, own_phi = side_by_side(
            Pass(networks.state_action, critic.state_action, (state, action)),
            Pass(networks.state_action, fixed, (state, own_action)),
        )
        own_energy = pair_energy(own_phi, jax.lax.stop_gradient(psi))
        actor_loss, actor_metrics = losses.actor_loss(log_prob, own_energy, jax.lax.stop_gradient(log_alpha))
        energy = losses.energy_matrix(algorithm.energy, phi, psi)
        critic_loss, critic_metrics = losses.critic_loss(energy, contrastive, algorithm.logsumexp_penalty)
        alpha_loss = losses.alpha_loss(log_alpha, log_prob, target_entropy)
        metrics = actor_metrics | critic_metrics | {"alpha/loss": alpha_loss, "alpha/log_alpha": log_alpha}
        return actor_loss + critic_loss + alpha_loss, metrics

    def gradients(state: LearnerState, minibatch: Transitions, key: Array) -> tuple[_Trained, Metrics]:
        trained = _Trained(state.actor, state.critic, state.log_alpha)
        d_trained, metrics = jax.grad(objective, has_aux=True)(trained, minibatch, key)
        return d_trained, metrics | {
            "actor/gradient_norm": optax.tree.norm(d_trained.actor),
            "critic/gradient_norm": optax.tree.norm(d_trained.critic),
        }

    return gradients


def make_gradient_step(
    networks: Networks, optimisers: Optimisers, algorithm: AlgorithmConfig, spec: EnvSpec
) -> GradientStep:
    """Returns `gradient_step(state, minibatch [B, ...], key) -> (state, metrics)`. `key` is consumed.

    The metric `guard/watched` `[len(WATCHED)]` holds the values of `WATCHED`; unless all are finite, the step leaves
    the state unchanged.
    """
    gradients = make_gradients(networks, algorithm, spec)

    def gradient_step(state: LearnerState, minibatch: Transitions, key: Array) -> tuple[LearnerState, Metrics]:
        d_trained, metrics = gradients(state, minibatch, key)
        watched = jnp.stack([*(metrics[name] for name in WATCHED[:-1]), d_trained.alpha])
        # A branch, not a select: a select over all parameters makes a step up to 1.14 times as long on a CPU.
        state = jax.lax.cond(jnp.isfinite(watched).all(), descend, lambda state, _: state, state, d_trained)
        return state, metrics | {"guard/watched": watched}

    def descend(state: LearnerState, d_trained: _Trained) -> LearnerState:
        each = zip(optimisers, d_trained, state.optimisers, strict=True)
        updates, states = zip(*(optimiser.update(d_x, opt) for optimiser, d_x, opt in each), strict=True)
        actor, critic, log_alpha = optax.apply_updates((state.actor, state.critic, state.log_alpha), updates)
        return state._replace(actor=actor, critic=critic, log_alpha=log_alpha, optimisers=OptimiserStates(*states))

    return gradient_step


def make_transitions(columns: Columns, plan: Plan, spec: EnvSpec, discount: float, key: Array) -> Transitions:
    """Returns sampled windows `[B, K * T, ...]` as relabelled rows `[B * (W - 1), ...]`. `key` is consumed."""
    crop_key, goal_key = jax.random.split(key)
    rows = crop(unpack(columns, spec.state_size), plan.window_length, max_offset=plan.unroll_length - 1, key=crop_key)
    transitions = relabel(rows, spec.goal_indices, discount, goal_key)
    return jax.tree.map(lambda x: x.reshape(-1, x.shape[-1]), transitions)


class Steps(NamedTuple):
    """Inputs of the M gradient steps of one update, made before the first of them.

    `transitions` `[R, ...]`: all rows. `order` `[M, B]`: indices of the rows that each step trains on. `keys` `[M]`:
    one for each step. `key` `[]`: the learner's key after the update.
    """

    transitions: Transitions
    order: Array
    keys: Array
    key: Array

    def minibatch(self, indices: Array) -> Transitions:
        """Returns the rows `[B, ...]` at `indices` `[B]`, which are one entry of `order`."""
        return jax.tree.map(lambda x: x[indices], self.transitions)


def make_steps(windows: Columns, plan: Plan, spec: EnvSpec, discount: float, key: Array) -> Steps:
    """Relabels and shuffles all rows of an update's windows. `key`, the learner's before the update, is consumed."""
    key, rows_key, shuffle_key, steps_key = jax.random.split(key, 4)
    transitions = make_transitions(windows, plan, spec, discount, rows_key)
    num_rows = plan.minibatches_per_update * plan.batch_size
    order = jax.random.permutation(shuffle_key, transitions.state.shape[0])[:num_rows]
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
    """Returns `update_step(state, windows) -> (state, metrics)`; the caller applies jit and donation.

    `windows`: Columns `[windows_per_update, K * T, ...]`. An update relabels and shuffles all rows, makes
    `minibatches_per_update` gradient steps on distinct rows, and skips each step that is not finite; metrics are means
    over the other steps (see `over_steps`). `split`: sharding of each minibatch's rows over devices; every row's
    negatives still come from the whole minibatch.
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
        _, step, version = jnp.moveaxis(windows.ints, -1, 0)
        metrics = over_steps(metrics) | {
            "data/last_step": jnp.mean(step[:, -1].astype(jnp.float32)),
            "data/version": jnp.mean(version.astype(jnp.float32)),
        }
        return state._replace(key=steps.key, updates=state.updates + 1), metrics

    return update_step


def make_update_steps(update_step: UpdateStep) -> UpdateSteps:
    """Returns `update_steps(states, windows) -> (states, metrics)`: `update_step` of several learners, vmapped.

    Each argument and result is a tuple with one entry for each learner. The learners' networks have equal sizes.
    """

    def update_steps(
        states: tuple[LearnerState, ...], windows: tuple[Columns, ...]
    ) -> tuple[tuple[LearnerState, ...], tuple[Metrics, ...]]:
        stacked = (jax.tree.map(lambda *each: jnp.stack(each), *trees) for trees in (states, windows))
        results = jax.vmap(update_step)(*stacked)
        each = [jax.tree.map(lambda x, index=index: x[index], results) for index in range(len(states))]
        return tuple(state for state, _ in each), tuple(metrics for _, metrics in each)

    return update_steps


def over_steps(metrics: Metrics) -> Metrics:
    """Returns the metrics of an update, given the metrics `[M, ...]` of its M gradient steps.

    Means over the finite steps; NaN if no step is finite, since nothing was measured (the learner ends then).
    `guard/skipped`: number of steps that are not finite. `guard/first`: index of the first such step, or -1.
    `guard/watched` `[len(WATCHED)]`: values at that step, or at step 0.
    """
    watched = metrics["guard/watched"]
    finite = jnp.isfinite(watched).all(axis=1)
    first = jnp.argmin(finite)
    # Not `jnp.mean(..., where)`: with a count that is no constant, the mean of all M steps rounds differently.
    scale = len(finite) / jnp.sum(finite)
    scalars = {name: values for name, values in metrics.items() if name != "guard/watched"}
    return {name: jnp.mean(jnp.where(finite, values, 0)) * scale for name, values in scalars.items()} | {
        "guard/skipped": jnp.sum(~finite),
        "guard/first": jnp.where(finite[first], -1, first),
        "guard/watched": watched[first],
    }
