"""The textbook update, written to be read: the reference for speed and for numbers.

It consists of a Python loop over flax's own layers, three separate networks one after the other, float32, and the
difference of every pair `[B, B, E]`. Depth costs trace and compile time here. The work before a gradient step
(relabelling and shuffling windows) is the learner's own.
"""

from functools import partial
from operator import itemgetter
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from learner.objectives.base import Objective, Trained
from learner.relabel import Transitions
from learner.update import make_steps
from shared.network_config import BLOCK_DEPTH, PLAIN_DEPTHS
from shared.plan import Plan
from shared.replay.codec import Columns
from shared.types import Array, Metrics, Params

_kernel_init = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")
_EPSILON = 1e-12  # the root has no gradient at 0, where two representations are equal


class UnrolledNetwork(nn.Module):
    """Network from `[B, *]` to an array `[B, size]` for each size in `heads`."""

    depth: int
    width: int
    heads: tuple[int, ...]

    @nn.compact
    def __call__(self, x: jax.Array) -> list[jax.Array]:
        x = self._layer(x)
        if self.depth in PLAIN_DEPTHS:
            for _ in range(1, self.depth):
                x = self._layer(x)
        for _ in range(self.depth // BLOCK_DEPTH):
            y = x
            for _ in range(BLOCK_DEPTH):
                y = self._layer(y)
            x = x + y
        return [nn.Dense(size, kernel_init=_kernel_init)(x) for size in self.heads]

    def _layer(self, x: jax.Array) -> jax.Array:
        return nn.swish(nn.LayerNorm()(nn.Dense(self.width, kernel_init=_kernel_init)(x)))


class UnrolledParams(NamedTuple):
    """Parameters, or their gradients or learning rates."""

    actor: Params
    state_action: Params
    goal: Params
    log_alpha: Any


class UnrolledState(NamedTuple):
    """Everything that an update changes."""

    params: UnrolledParams
    optimiser: optax.OptState
    key: Array


class Unrolled:
    """Textbook learner of the contrastive objective."""

    def __init__(self, objective: Objective) -> None:
        config, algorithm, spec = objective.network, objective.algorithm, objective.spec
        self._objective = objective
        self.actor = UnrolledNetwork(config.depth, config.width, heads=(spec.action_size, spec.action_size))
        self.encoder = UnrolledNetwork(config.depth, config.width, heads=(config.representation_size,))
        self._algorithm, self._spec = algorithm, spec
        self._target_entropy = algorithm.target_entropy_per_action * spec.action_size
        critic_rate = algorithm.critic_learning_rate
        rates = UnrolledParams(algorithm.actor_learning_rate, critic_rate, critic_rate, algorithm.alpha_learning_rate)
        self._adam = optax.partition({rate: optax.adam(rate) for rate in rates}, rates)  # rates serve as labels

    @partial(jax.jit, static_argnums=0)
    def init(self, key: Array) -> UnrolledState:
        """Returns the state before the first update. `key` is consumed."""
        actor_key, state_action_key, goal_key, key = jax.random.split(key, 4)
        spec = self._spec
        params = UnrolledParams(
            self.actor.init(actor_key, jnp.zeros((1, spec.state_size + spec.goal_size))),
            self.encoder.init(state_action_key, jnp.zeros((1, spec.state_size + spec.action_size))),
            self.encoder.init(goal_key, jnp.zeros((1, spec.goal_size))),
            jnp.zeros(()),
        )
        return UnrolledState(params, self._adam.init(params), key)

    def actor_loss(
        self, actor: Params, params: UnrolledParams, minibatch: Transitions, key: Array
    ) -> tuple[jax.Array, jax.Array]:
        """Returns the loss and log probabilities `[B]`. `key` is consumed."""
        mean, log_std = self.actor.apply(actor, jnp.concatenate([minibatch.state, minibatch.goal], axis=-1))
        log_std = -5 + 3.5 * (jnp.tanh(log_std) + 1)
        noise = jax.random.normal(key, mean.shape)
        action = jnp.tanh(mean + jnp.exp(log_std) * noise)
        log_prob = -0.5 * (noise**2 + jnp.log(2 * jnp.pi)) - log_std - jnp.log(1 - action**2 + 1e-6)
        log_prob = jnp.sum(log_prob, axis=-1)
        (phi,) = self.encoder.apply(params.state_action, jnp.concatenate([minibatch.state, action], axis=-1))
        (psi,) = self.encoder.apply(params.goal, minibatch.goal)
        energy = -jnp.sqrt(jnp.sum((phi - psi) ** 2, axis=-1) + _EPSILON)
        return jnp.mean(jnp.exp(params.log_alpha) * log_prob - energy), log_prob

    def alpha_loss(self, log_alpha: Array, log_prob: Array) -> jax.Array:
        return jnp.exp(log_alpha) * jnp.mean(-log_prob - self._target_entropy)

    def critic_loss(self, critic: tuple[Params, Params], minibatch: Transitions) -> tuple[jax.Array, jax.Array]:
        """Returns the loss and the share of rows whose own goal has the highest energy."""
        (phi,) = self.encoder.apply(critic[0], jnp.concatenate([minibatch.state, minibatch.action], axis=-1))
        (psi,) = self.encoder.apply(critic[1], minibatch.goal)
        energy = -jnp.sqrt(jnp.sum((phi[:, None, :] - psi[None, :, :]) ** 2, axis=-1) + _EPSILON)
        log_partition = jax.nn.logsumexp(energy, axis=1)
        infonce = -jnp.mean(jnp.diagonal(energy) - log_partition)
        accuracy = jnp.mean(jnp.argmax(energy, axis=1) == jnp.arange(len(energy)))
        return infonce + self._algorithm.logsumexp_penalty * jnp.mean(log_partition**2), accuracy

    def gradients(self, params: UnrolledParams, minibatch: Transitions, key: Array) -> tuple[UnrolledParams, Metrics]:
        """Returns the gradients of every parameter, with the critic as it stands. `key` is consumed."""
        (actor_loss, log_prob), d_actor = jax.value_and_grad(self.actor_loss, has_aux=True)(
            params.actor, params, minibatch, key
        )
        alpha_loss, d_log_alpha = jax.value_and_grad(self.alpha_loss)(params.log_alpha, log_prob)
        (critic_loss, accuracy), (d_state_action, d_goal) = jax.value_and_grad(self.critic_loss, has_aux=True)(
            (params.state_action, params.goal), minibatch
        )
        metrics = {"actor/loss": actor_loss, "alpha/loss": alpha_loss, "critic/loss": critic_loss}
        metrics["critic/accuracy"] = accuracy
        return UnrolledParams(d_actor, d_state_action, d_goal, d_log_alpha), metrics

    def gradient_step(self, state: UnrolledState, minibatch: Transitions, key: Array) -> tuple[UnrolledState, Metrics]:
        """Returns the state after one gradient step. `key` is consumed."""
        gradients, metrics = self.gradients(state.params, minibatch, key)
        changes, optimiser = self._adam.update(gradients, state.optimiser)
        return UnrolledState(optax.apply_updates(state.params, changes), optimiser, state.key), metrics

    def update_step(self, state: UnrolledState, windows: Columns, plan: Plan) -> tuple[UnrolledState, Metrics]:
        """Returns the state after one update. Windows and key give the same minibatches as in `learner.update`."""
        steps = make_steps(self._objective, windows, plan, state.key)

        def one_step(state: UnrolledState, step: tuple[Array, Array]) -> tuple[UnrolledState, Metrics]:
            indices, key = step
            return self.gradient_step(state, steps.minibatch(indices), key)

        state, metrics = jax.lax.scan(one_step, state, (steps.order, steps.keys))
        return state._replace(key=steps.key), jax.tree.map(jnp.mean, metrics)


def unroll_params(trained: Trained) -> UnrolledParams:
    """Returns a learner's parameters, or its gradients, in the textbook's layout."""
    actor, critic, log_alpha = trained
    return UnrolledParams(
        _unroll(actor, ("mean", "log_std")),
        _unroll(critic.state_action, ("head",)),
        _unroll(critic.goal, ("head",)),
        log_alpha,
    )


def _unroll(params: Params, heads: tuple[str, ...]) -> Params:
    trunk = dict(params["params"]["trunk"])
    stacked = trunk.pop("blocks", None)
    layers = [trunk.pop("stem"), *trunk.values()]
    for block in range(len(stacked["_Layer_0"]["Dense_0"]["bias"]) if stacked else 0):
        this_block = jax.tree.map(itemgetter(block), stacked)
        layers += [this_block[f"_Layer_{i}"] for i in range(BLOCK_DEPTH)]
    named = {f"{kind}_{i}": layer[f"{kind}_0"] for i, layer in enumerate(layers) for kind in ("Dense", "LayerNorm")}
    return {"params": named | {f"Dense_{len(layers) + i}": params["params"][name] for i, name in enumerate(heads)}}
