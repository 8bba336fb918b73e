"""Update of a learner: windows in, hundreds of gradient steps, new state out, all in one jitted call."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import NamedSharding

from learner.objectives.base import Objective, Trained
from learner.optimisers import OptimiserStates
from learner.relabel import crop
from learner.state import LearnerState
from shared.hyperspherical import project_kernels
from shared.plan import Plan
from shared.replay.codec import Columns, unpack
from shared.types import Array, Metrics

UpdateStep = Callable[[LearnerState, Columns], tuple[LearnerState, Metrics]]
UpdateSteps = Callable[
    [tuple[LearnerState, ...], tuple[Columns, ...]], tuple[tuple[LearnerState, ...], tuple[Metrics, ...]]
]
GradientStep = Callable[[LearnerState, Any, Array], tuple[LearnerState, Metrics]]


def make_gradients(objective: Objective) -> Callable[[LearnerState, Any, Array], tuple[Trained, Metrics]]:
    """Returns `gradients(state, minibatch [B, ...], key)`: all of them for the critic as it is. `key` is consumed."""
    networks = [part for part in objective.PARTS if part != "alpha"]

    def gradients(state: LearnerState, minibatch: Any, key: Array) -> tuple[Trained, Metrics]:
        loss = jax.grad(objective.loss, has_aux=True)
        d_trained, metrics = loss(state.trained, state.targets, minibatch, key)
        norms = {f"{part}/gradient_norm": optax.tree.norm(getattr(d_trained, part)) for part in networks}
        return d_trained, metrics | norms

    return gradients


def make_gradient_step(objective: Objective) -> GradientStep:
    """Returns `gradient_step(state, minibatch [B, ...], key) -> (state, metrics)`. `key` is consumed.

    The metric `guard/watched` holds the values of `Objective.watched`; unless all are finite, the step leaves the state
    unchanged.
    """
    gradients, optimisers = make_gradients(objective), objective.optimisers

    def gradient_step(state: LearnerState, minibatch: Any, key: Array) -> tuple[LearnerState, Metrics]:
        d_trained, metrics = gradients(state, minibatch, key)
        watched = jnp.stack([*(metrics[name] for name in objective.watched[:-1]), d_trained.log_alpha])
        # A branch, not a select: a select over all parameters makes a step up to 1.14 times as long on a CPU.
        state = jax.lax.cond(jnp.isfinite(watched).all(), descend, lambda state, _: state, state, d_trained)
        return state, metrics | {"guard/watched": watched}

    def descend(state: LearnerState, d_trained: Trained) -> LearnerState:
        each = zip(optimisers, d_trained, state.optimisers, strict=True)
        steps = [optimiser.update(d_x, opt) for optimiser, d_x, opt in each]
        updates, states = zip(*steps, strict=True)
        trained = Trained(*project_kernels(optax.apply_updates(tuple(state.trained), updates)))
        return state._replace(
            **trained._asdict(),
            targets=objective.next_targets(state.targets, trained.critic),
            optimisers=OptimiserStates(*states),
        )

    return gradient_step


def label_windows(objective: Objective, columns: Columns, plan: Plan, key: Array) -> Any:
    """Returns sampled windows `[B, K * T, ...]` as labelled rows `[B * R, ...]` (see `label`). `key` is consumed."""
    crop_key, label_key = jax.random.split(key)
    rows = unpack(columns, objective.spec.state_size, objective.spec.action_size)
    rows = crop(rows, plan.window_length, max_offset=plan.unroll_length - 1, key=crop_key)
    return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), objective.label(rows, label_key))


class Steps(NamedTuple):
    """Inputs of the M gradient steps of one update, made before the first of them.

    `labelled` `[R, ...]`: all rows. `order` `[M, B]`: indices of the rows that each step trains on. `keys` `[M]`:
    one for each step. `key` `[]`: the learner's key after the update.
    """

    labelled: Any
    order: Array
    keys: Array
    key: Array

    def minibatch(self, indices: Array) -> Any:
        """Returns the rows `[B, ...]` at `indices` `[B]`, which are one entry of `order`."""
        return jax.tree.map(lambda x: x[indices], self.labelled)


def make_steps(objective: Objective, windows: Columns, plan: Plan, key: Array) -> Steps:
    """Labels and shuffles all rows of an update's windows. `key`, the learner's before the update, is consumed."""
    key, rows_key, shuffle_key, steps_key = jax.random.split(key, 4)
    labelled = label_windows(objective, windows, plan, rows_key)
    num_rows = plan.minibatches_per_update * plan.batch_size
    order = jax.random.permutation(shuffle_key, len(jax.tree.leaves(labelled)[0]))[:num_rows]
    order = order.reshape(plan.minibatches_per_update, plan.batch_size)
    return Steps(labelled, order, jax.random.split(steps_key, plan.minibatches_per_update), key)


def make_update_step(objective: Objective, plan: Plan, split: NamedSharding | None = None) -> UpdateStep:
    """Returns `update_step(state, windows) -> (state, metrics)`; the caller applies jit and donation.

    `windows`: Columns `[windows_per_update, K * T, ...]`. An update labels and shuffles all rows, makes
    `minibatches_per_update` gradient steps on distinct rows, and skips each step that is not finite; metrics are means
    over the other steps (see `over_steps`). `split`: sharding of each minibatch's rows over devices; every row's
    negatives still come from the whole minibatch.
    """
    gradient_step = make_gradient_step(objective)

    def update_step(state: LearnerState, windows: Columns) -> tuple[LearnerState, Metrics]:
        steps = make_steps(objective, windows, plan, state.key)

        def one_step(state: LearnerState, step: tuple[Array, Array]) -> tuple[LearnerState, Metrics]:
            indices, key = step
            minibatch = steps.minibatch(indices)
            if split is not None:
                minibatch = jax.lax.with_sharding_constraint(minibatch, split)
            return gradient_step(state, minibatch, key)

        state, metrics = jax.lax.scan(one_step, state, (steps.order, steps.keys))
        _, step, version, _ = jnp.moveaxis(windows.ints, -1, 0)
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
    `guard/watched`: values at that step, or at step 0.
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
