"""The textbook update, written for reading: the reference for speed and for numbers.

A Python loop over flax's own layers, three separate networks one after the other, float32, and every pair's
difference `[B, B, E]`. Depth costs trace and compile time here. What comes before a gradient step (windows,
relabelled and shuffled) is the learner's own.
"""

from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from learner.relabel import Transitions
from learner.update import make_steps
from shared.config import BLOCK_DEPTH, AlgorithmConfig, NetworkConfig
from shared.envs.base import EnvSpec
from shared.networks import NetworkParams
from shared.plan import Plan
from shared.replay.codec import Columns
from shared.types import Array, Metrics, Params

_kernel_init = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")
_EPSILON = 1e-12  # where two representations meet, the root has no gradient


class _Trunk(nn.Module):
    depth: int
    width: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = nn.swish(nn.LayerNorm()(nn.Dense(self.width, kernel_init=_kernel_init)(x)))
        for _ in range(self.depth // BLOCK_DEPTH):
            y = x
            for _ in range(BLOCK_DEPTH):
                y = nn.swish(nn.LayerNorm()(nn.Dense(self.width, kernel_init=_kernel_init)(y)))
            x = x + y
        return x


class UnrolledEncoder(nn.Module):
    """`[B, *]` to `[B, E]`."""

    depth: int
    width: int
    representation_size: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = _Trunk(self.depth, self.width)(x)
        return nn.Dense(self.representation_size, kernel_init=_kernel_init)(x)


class UnrolledActor(nn.Module):
    """`[B, S + G]` to mean and log std `[B, A]`."""

    depth: int
    width: int
    action_size: int

    @nn.compact
    def __call__(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        x = _Trunk(self.depth, self.width)(x)
        mean = nn.Dense(self.action_size, kernel_init=_kernel_init)(x)
        log_std = nn.tanh(nn.Dense(self.action_size, kernel_init=_kernel_init)(x))
        return mean, -5 + 3.5 * (log_std + 1)


class UnrolledParams(NamedTuple):
    actor: Params
    state_action: Params
    goal: Params
    log_alpha: Array


class UnrolledState(NamedTuple):
    """`optimisers`: Adam's state, of the actor, of both encoders, and of `log_alpha`."""

    params: UnrolledParams
    optimisers: tuple[optax.OptState, optax.OptState, optax.OptState]
    key: Array


class Unrolled:
    """The textbook learner of one network's sizes; its defaults are the algorithm's only choices here."""

    def __init__(self, config: NetworkConfig, algorithm: AlgorithmConfig, spec: EnvSpec) -> None:
        self.actor = UnrolledActor(config.depth, config.width, spec.action_size)
        self.encoder = UnrolledEncoder(config.depth, config.width, config.representation_size)
        self._algorithm, self._spec = algorithm, spec
        self._target_entropy = algorithm.target_entropy_per_action * spec.action_size
        self._actor_adam = optax.adam(algorithm.actor_learning_rate)
        self._critic_adam = optax.adam(algorithm.critic_learning_rate)
        self._alpha_adam = optax.adam(algorithm.alpha_learning_rate)

    def init(self, key: Array) -> UnrolledState:
        """As a program would that calls `init` of each module. `key` is consumed."""
        actor_key, state_action_key, goal_key, key = jax.random.split(key, 4)
        spec = self._spec
        params = UnrolledParams(
            jax.jit(self.actor.init)(actor_key, jnp.zeros((1, spec.state_size + spec.goal_size))),
            jax.jit(self.encoder.init)(state_action_key, jnp.zeros((1, spec.state_size + spec.action_size))),
            jax.jit(self.encoder.init)(goal_key, jnp.zeros((1, spec.goal_size))),
            jnp.zeros(()),
        )
        return self.start(params, key)

    def start(self, params: UnrolledParams, key: Array) -> UnrolledState:
        """Before the first update, from these parameters."""
        critic = (params.state_action, params.goal)
        adams = self._actor_adam.init(params.actor), self._critic_adam.init(critic)
        return UnrolledState(params, (*adams, self._alpha_adam.init(params.log_alpha)), key)

    def actor_loss(
        self, actor: Params, params: UnrolledParams, minibatch: Transitions, key: Array
    ) -> tuple[jax.Array, jax.Array]:
        """The loss and log probabilities `[B]`. `key` is consumed."""
        mean, log_std = self.actor.apply(actor, jnp.concatenate([minibatch.state, minibatch.goal], axis=-1))
        noise = jax.random.normal(key, mean.shape)
        action = jnp.tanh(mean + jnp.exp(log_std) * noise)
        log_prob = -0.5 * (noise**2 + jnp.log(2 * jnp.pi)) - log_std - jnp.log(1 - action**2 + 1e-6)
        log_prob = jnp.sum(log_prob, axis=-1)
        phi = self.encoder.apply(params.state_action, jnp.concatenate([minibatch.state, action], axis=-1))
        psi = self.encoder.apply(params.goal, minibatch.goal)
        energy = -jnp.sqrt(jnp.sum((phi - psi) ** 2, axis=-1) + _EPSILON)
        return jnp.mean(jnp.exp(params.log_alpha) * log_prob - energy), log_prob

    def alpha_loss(self, log_alpha: Array, log_prob: Array) -> jax.Array:
        return jnp.exp(log_alpha) * jnp.mean(-log_prob - self._target_entropy)

    def critic_loss(self, critic: tuple[Params, Params], minibatch: Transitions) -> tuple[jax.Array, jax.Array]:
        """The loss and the share of rows whose own goal has the highest energy."""
        phi = self.encoder.apply(critic[0], jnp.concatenate([minibatch.state, minibatch.action], axis=-1))
        psi = self.encoder.apply(critic[1], minibatch.goal)
        energy = -jnp.sqrt(jnp.sum((phi[:, None, :] - psi[None, :, :]) ** 2, axis=-1) + _EPSILON)
        log_partition = jax.nn.logsumexp(energy, axis=1)
        infonce = -jnp.mean(jnp.diagonal(energy) - log_partition)
        accuracy = jnp.mean(jnp.argmax(energy, axis=1) == jnp.arange(len(energy)))
        return infonce + self._algorithm.logsumexp_penalty * jnp.mean(log_partition**2), accuracy

    def gradients(self, params: UnrolledParams, minibatch: Transitions, key: Array) -> tuple[UnrolledParams, Metrics]:
        """Of every parameter, with the critic as it stands. `key` is consumed."""
        critic = (params.state_action, params.goal)
        (actor_loss, log_prob), actor_grads = jax.value_and_grad(self.actor_loss, has_aux=True)(
            params.actor, params, minibatch, key
        )
        alpha_loss, alpha_grad = jax.value_and_grad(self.alpha_loss)(params.log_alpha, log_prob)
        (critic_loss, accuracy), critic_grads = jax.value_and_grad(self.critic_loss, has_aux=True)(critic, minibatch)
        metrics = {"actor/loss": actor_loss, "alpha/loss": alpha_loss, "critic/loss": critic_loss}
        metrics |= {"critic/accuracy": accuracy}
        return UnrolledParams(actor_grads, critic_grads[0], critic_grads[1], alpha_grad), metrics

    def gradient_step(self, state: UnrolledState, minibatch: Transitions, key: Array) -> tuple[UnrolledState, Metrics]:
        """`key` is consumed."""
        params, (actor_opt, critic_opt, alpha_opt) = state.params, state.optimisers
        grads, metrics = self.gradients(params, minibatch, key)
        critic = (params.state_action, params.goal)
        actor_updates, actor_opt = self._actor_adam.update(grads.actor, actor_opt)
        critic_updates, critic_opt = self._critic_adam.update((grads.state_action, grads.goal), critic_opt)
        alpha_updates, alpha_opt = self._alpha_adam.update(grads.log_alpha, alpha_opt)
        state_action, goal = optax.apply_updates(critic, critic_updates)
        params = UnrolledParams(
            optax.apply_updates(params.actor, actor_updates),
            state_action,
            goal,
            optax.apply_updates(params.log_alpha, alpha_updates),
        )
        return state._replace(params=params, optimisers=(actor_opt, critic_opt, alpha_opt)), metrics

    def update_step(self, state: UnrolledState, windows: Columns, plan: Plan) -> tuple[UnrolledState, Metrics]:
        """One update, as `learner.update` makes it: the same windows and key give the same minibatches."""
        steps = make_steps(windows, plan, self._spec, self._algorithm.discount, state.key)

        def one_step(state: UnrolledState, step: tuple[Array, Array]) -> tuple[UnrolledState, Metrics]:
            indices, key = step
            return self.gradient_step(state, steps.minibatch(indices), key)

        state, metrics = jax.lax.scan(one_step, state, (steps.order, steps.keys))
        return state._replace(key=steps.key), jax.tree.map(jnp.mean, metrics)


def unroll_params(params: NetworkParams, log_alpha: Array) -> UnrolledParams:
    """A learner's parameters, or its gradients, in the textbook's layout."""
    critic = params.critic
    return UnrolledParams(
        _unroll(params.actor, ("mean", "log_std")),
        _unroll(critic.state_action, ("head",)),
        _unroll(critic.goal, ("head",)),
        log_alpha,
    )


def _unroll(params: Params, heads: tuple[str, ...]) -> Params:
    trunk = params["params"]["trunk"]
    blocks = len(trunk["blocks"]["_Layer_0"]["Dense_0"]["bias"])
    layers = [trunk["stem"]]
    for block in range(blocks):
        layers += [jax.tree.map(lambda x: x[block], trunk["blocks"][f"_Layer_{i}"]) for i in range(BLOCK_DEPTH)]  # noqa: B023
    named = {f"{kind}_{i}": layer[f"{kind}_0"] for i, layer in enumerate(layers) for kind in ("Dense", "LayerNorm")}
    return {"params": {"_Trunk_0": named} | {f"Dense_{i}": params["params"][name] for i, name in enumerate(heads)}}
