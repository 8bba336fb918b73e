"""The one trunk, and the three networks made of it.

Wang et al., "1000 Layer Networks for Self-Supervised RL" (2025), section 3: residual blocks of four
[Dense, LayerNorm, swish], which together make depth trainable.
"""

from collections.abc import Callable
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from shared.config import BLOCK_DEPTH, NetworkConfig
from shared.envs.base import EnvSpec
from shared.types import Array, Params

ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {"swish": nn.swish, "relu": nn.relu}
LOG_STD_MIN, LOG_STD_MAX = -5.0, 2.0

_kernel_init = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")


class _Layer(nn.Module):
    """`[..., *]` to `[..., width]`: Dense, LayerNorm, activation."""

    width: int
    layer_norm: bool
    activation: str

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = nn.Dense(self.width, kernel_init=_kernel_init)(x)
        x = nn.LayerNorm()(x) if self.layer_norm else x
        return ACTIVATIONS[self.activation](x)


class _Block(nn.Module):
    """`[..., width]` to the same: four layers and the way around them. The body of a scan."""

    width: int
    layer_norm: bool
    residual: bool
    activation: str

    @nn.compact
    def __call__(self, x: jax.Array, _: None) -> tuple[jax.Array, None]:
        y = x
        for _layer in range(BLOCK_DEPTH):
            y = _Layer(self.width, self.layer_norm, self.activation)(y)
        return (x + y if self.residual else y), None


class Trunk(nn.Module):
    """`[..., *]` to `[..., width]`: a stem layer, then `depth / 4` blocks.

    The blocks' parameters are stacked and run by a scan, so that tracing and compiling cost the same at
    any depth.
    """

    depth: int
    width: int
    layer_norm: bool
    residual: bool
    activation: str

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = _Layer(self.width, self.layer_norm, self.activation, name="stem")(x)
        blocks = nn.scan(
            _Block,
            variable_axes={"params": 0},
            split_rngs={"params": True},
            length=self.depth // BLOCK_DEPTH,
        )(self.width, self.layer_norm, self.residual, self.activation, name="blocks")
        return blocks(x, None)[0]


class Encoder(nn.Module):
    """`[..., *]` to a representation `[..., E]`."""

    trunk: Trunk
    representation_size: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        return nn.Dense(self.representation_size, kernel_init=_kernel_init, name="head")(self.trunk(x))


class Actor(nn.Module):
    """State `[..., S]` and goal `[..., G]` to mean and log std `[..., A]` of the action before its tanh."""

    trunk: Trunk
    action_size: int

    @nn.compact
    def __call__(self, state: Array, goal: Array) -> tuple[jax.Array, jax.Array]:
        x = self.trunk(jnp.concatenate([state, goal], axis=-1))
        mean = nn.Dense(self.action_size, kernel_init=_kernel_init, name="mean")(x)
        log_std = nn.tanh(nn.Dense(self.action_size, kernel_init=_kernel_init, name="log_std")(x))
        return mean, LOG_STD_MIN + 0.5 * (LOG_STD_MAX - LOG_STD_MIN) * (log_std + 1)


class Networks(NamedTuple):
    """The actor, the state-action encoder phi `[..., S + A]` and the goal encoder psi `[..., G]`."""

    actor: Actor
    state_action: Encoder
    goal: Encoder


class NetworkParams(NamedTuple):
    """Parameters of `Networks`, the critic's two encoders under one name since they train together."""

    actor: Params
    critic: "CriticParams"


class CriticParams(NamedTuple):
    state_action: Params
    goal: Params


def make_networks(config: NetworkConfig, spec: EnvSpec) -> Networks:
    """The three networks of one learner, sized by `config`, for an environment's `spec`."""

    def trunk(depth: int | None, width: int | None) -> Trunk:
        return Trunk(
            depth or config.depth,
            width or config.width,
            config.layer_norm,
            config.residual,
            config.activation,
        )

    critic = trunk(config.critic_depth, config.critic_width)
    return Networks(
        actor=Actor(trunk(config.actor_depth, config.actor_width), spec.action_size),
        state_action=Encoder(critic, config.representation_size),
        goal=Encoder(critic, config.representation_size),
    )


def init_params(networks: Networks, spec: EnvSpec, key: Array) -> NetworkParams:
    """Fresh parameters. `key` is consumed. Jitted, so that depth costs no tracing here either."""

    @jax.jit
    def init(key: Array) -> NetworkParams:
        actor_key, state_action_key, goal_key = jax.random.split(key, 3)
        state, action, goal = (jnp.zeros(n) for n in (spec.state_size, spec.action_size, spec.goal_size))
        return NetworkParams(
            actor=networks.actor.init(actor_key, state, goal),
            critic=CriticParams(
                state_action=networks.state_action.init(state_action_key, jnp.concatenate([state, action])),
                goal=networks.goal.init(goal_key, goal),
            ),
        )

    return init(key)


def param_shapes(networks: Networks, spec: EnvSpec) -> NetworkParams:
    """The parameters' shapes, without making them."""
    return jax.eval_shape(lambda key: init_params(networks, spec, key), jax.random.key(0))


def network_size(networks: Networks, spec: EnvSpec) -> int:
    """Parameters of actor and critic together."""
    return parameter_count(param_shapes(networks, spec))


def parameter_count(params: Params) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(params))
