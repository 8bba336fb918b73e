"""The contrastive update is equal to the bit to the update from before objectives, which is written out here."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from learner import losses
from learner.objectives.registry import make_objective
from learner.optimisers import OptimiserStates
from learner.state import LearnerState, init_state
from learner.update import make_update_step, over_steps
from shared.config import ACTIVE, Experiment
from shared.envs.base import EnvSpec
from shared.networks import Actor, Encoder, Pass, make_trunk, side_by_side
from shared.plan import Plan, make_plan
from shared.policy import tanh_gaussian
from shared.replay.codec import Columns
from shared.types import Array, Metrics
from tests.learner.old_relabel import old_goal_offsets
from tests.trees import assert_equal

WATCHED = ("actor/loss", "critic/loss", "alpha/loss", "actor/gradient_norm", "critic/gradient_norm", "alpha/gradient")


def forward_infonce(energy: Array) -> jax.Array:
    return jnp.mean(jax.nn.logsumexp(energy, axis=1) - jnp.diagonal(energy))


def symmetric_infonce(energy: Array) -> jax.Array:
    return 0.5 * (forward_infonce(energy) + forward_infonce(energy.T))


class FrozenUpdate:
    """Update of a contrastive learner as it was, with clipping, written out from losses and networks."""

    def __init__(self, experiment: Experiment, plan: Plan, spec: EnvSpec) -> None:
        config = experiment.collector
        self._actor = Actor(make_trunk(config, config.actor_trunk), spec.action_size)
        self._encoder = Encoder(make_trunk(config, config.critic_trunk), config.representation_size)
        self._plan, self._spec = plan, spec
        clipped = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(3e-4))
        self._optimisers = (clipped, clipped, optax.adam(3e-4))

    def transitions(self, windows: Columns, key: Array) -> tuple[jax.Array, ...]:
        """Returns cropped and relabelled rows `[B * (W - 1), ...]`: state, action and goal."""
        length = self._plan.window_length
        crop_key, goal_key = jax.random.split(key)
        offsets = jax.random.randint(crop_key, (windows.ints.shape[0],), 0, self._plan.unroll_length)
        state_size, action_size = self._spec.state_size, self._spec.action_size
        state, action, _ = jnp.split(windows.floats, [state_size, state_size + action_size], axis=-1)
        columns = (state, action, windows.ints[..., 0])
        crop = jax.vmap(lambda columns, at: [jax.lax.dynamic_slice_in_dim(x, at, length) for x in columns])
        state, action, episode = crop(columns, offsets)
        index = jnp.arange(length) + old_goal_offsets(episode, 0.99, goal_key)
        achieved = state[..., jnp.array(self._spec.goal_indices)]
        goal = jnp.take_along_axis(achieved, index[..., None], axis=1)
        return tuple(x[:, :-1].reshape(-1, x.shape[-1]) for x in (state, action, goal))

    def losses(self, trained: tuple, minibatch: tuple[jax.Array, ...], key: Array) -> tuple[jax.Array, Metrics]:
        actor, critic, log_alpha = trained
        state, action, goal = minibatch
        (mean, log_std), psi = side_by_side(
            Pass(self._actor, actor, (state, goal)), Pass(self._encoder, critic.goal, (goal,))
        )
        own_action, log_prob = tanh_gaussian(mean, log_std, key)
        phi, own_phi = side_by_side(
            Pass(self._encoder, critic.state_action, (state, action)),
            Pass(self._encoder, jax.lax.stop_gradient(critic.state_action), (state, own_action)),
        )
        own_energy = losses.PAIR_ENERGIES["norm"](own_phi, jax.lax.stop_gradient(psi))
        actor_loss = jnp.mean(jax.lax.stop_gradient(jnp.exp(log_alpha)) * log_prob - own_energy)
        energy = losses.energy_matrix("norm", phi, psi)
        batch, partition = energy.shape[0], jax.nn.logsumexp(energy, axis=1)
        critic_loss = symmetric_infonce(energy) + 0.1 * jnp.mean(partition**2)
        target = -0.5 * self._spec.action_size
        alpha_loss = jnp.exp(log_alpha) * jnp.mean(jax.lax.stop_gradient(-log_prob - target))
        positives = jnp.diagonal(energy)
        return actor_loss + critic_loss + alpha_loss, {
            "actor/loss": actor_loss,
            "actor/entropy": -jnp.mean(log_prob),
            "actor/energy": jnp.mean(own_energy),
            "critic/loss": critic_loss,
            "critic/accuracy": jnp.mean(jnp.argmax(energy, axis=1) == jnp.arange(batch)),
            "critic/positive": jnp.mean(positives),
            "critic/negative": (jnp.sum(energy) - jnp.sum(positives)) / (batch * (batch - 1)),
            "critic/logsumexp": jnp.mean(partition),
            "alpha/loss": alpha_loss,
            "alpha/log_alpha": log_alpha,
        }

    def gradient_step(
        self, state: LearnerState, minibatch: tuple[jax.Array, ...], key: Array
    ) -> tuple[LearnerState, Metrics]:
        trained = (state.actor, state.critic, state.log_alpha)
        d_trained, metrics = jax.grad(self.losses, has_aux=True)(trained, minibatch, key)
        metrics["actor/gradient_norm"] = optax.tree.norm(d_trained[0])
        metrics["critic/gradient_norm"] = optax.tree.norm(d_trained[1])
        watched = jnp.stack([*(metrics[name] for name in WATCHED[:-1]), d_trained[2]])

        def descend(state: LearnerState, d_trained: tuple) -> LearnerState:
            each = zip(self._optimisers, d_trained, state.optimisers, strict=True)
            updates, states = zip(*(optimiser.update(d_x, opt) for optimiser, d_x, opt in each), strict=True)
            actor, critic, log_alpha = optax.apply_updates((state.actor, state.critic, state.log_alpha), updates)
            optimisers = OptimiserStates(*states)
            return state._replace(actor=actor, critic=critic, log_alpha=log_alpha, optimisers=optimisers)

        state = jax.lax.cond(jnp.isfinite(watched).all(), descend, lambda state, _: state, state, d_trained)
        return state, metrics | {"guard/watched": watched}

    def update_step(self, state: LearnerState, windows: Columns) -> tuple[LearnerState, Metrics]:
        steps, batch = self._plan.minibatches_per_update, self._plan.batch_size
        key, rows_key, shuffle_key, steps_key = jax.random.split(state.key, 4)
        transitions = self.transitions(windows, rows_key)
        order = jax.random.permutation(shuffle_key, transitions[0].shape[0])[: steps * batch].reshape(steps, batch)

        def one_step(state: LearnerState, step: tuple[Array, Array]) -> tuple[LearnerState, Metrics]:
            indices, key = step
            return self.gradient_step(state, tuple(x[indices] for x in transitions), key)

        state, metrics = jax.lax.scan(one_step, state, (order, jax.random.split(steps_key, steps)))
        return state._replace(key=key, updates=state.updates + 1), over_steps(metrics)


def test_the_contrastive_update_is_what_it_was_before_objectives(line: Any) -> None:
    algorithm = {"contrastive_loss": "symmetric_infonce", "max_gradient_norm": 1.0}
    sizes = {"batch_size": 16, "windows_per_update": 8, "minibatches_per_update": 3}
    experiment = line.experiment(
        collector={"depth": 4, "width": 8, "environments": 8, "unroll_length": 4}, algorithm=sizes | algorithm
    )
    plan = make_plan(experiment, line.spec)
    objective = make_objective(experiment, ACTIVE, line.spec)
    update = jax.jit(make_update_step(objective, plan))
    frozen = jax.jit(FrozenUpdate(experiment, plan, line.spec).update_step)
    state = expected = jax.jit(init_state, static_argnums=0)(objective, jax.random.key(0))
    for seed in range(2):
        windows = line.windows(seed, windows=8, rows=plan.window_rows)
        state, metrics = update(state, windows)
        expected, metrics_before = frozen(expected, windows)
        for name, value in metrics_before.items():
            np.testing.assert_array_equal(metrics[name], value, err_msg=name)
        assert metrics["guard/skipped"] == 0
        assert_equal(state, expected)
    assert state.targets == ()
