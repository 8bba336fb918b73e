"""Residual trunk, and the three networks of a learner that are built on it.

Source: Wang et al., "1000 Layer Networks for Self-Supervised RL" (2025), section 3. A residual block has four layers of
[Dense, LayerNorm, swish]; residual path and layer norm together make depth trainable.
"""

from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from shared.config import BLOCK_DEPTH, NetworkConfig
from shared.envs.base import EnvSpec
from shared.types import Array, Params

ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {"swish": nn.swish, "relu": nn.relu}
LOG_STD_MIN, LOG_STD_MAX = -5.0, 2.0
_NORM_EPSILON = 1e-6  # flax's

_kernel_init = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def norm_activation(activation: str, x: jax.Array, scale: Array, bias: Array) -> jax.Array:
    """Normalises `x` `[..., width]` over its last axis, scales and shifts it by `[width]`, applies the activation.

    The gradient is written out: the gradient that JAX derives from mean and variance reads each row twice as often.
    """
    normal, _ = _normalise(x)
    return ACTIVATIONS[activation](normal * scale + bias).astype(x.dtype)


def _normalise(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns rows of mean 0 and variance 1, and the factor that gave them variance 1; in float32, as flax does."""
    x = x.astype(jnp.float32)
    mean = jnp.mean(x, axis=-1, keepdims=True)
    variance = jnp.maximum(jnp.mean(x * x, axis=-1, keepdims=True) - mean * mean, 0)
    reciprocal = jax.lax.rsqrt(variance + _NORM_EPSILON)
    return (x - mean) * reciprocal, reciprocal


def _norm_activation_backwards(
    activation: str, residuals: tuple[jax.Array, Array, Array], d_output: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    x, scale, bias = residuals
    normal, reciprocal = _normalise(x)
    output, activation_vjp = jax.vjp(ACTIVATIONS[activation], normal * scale + bias)
    (d_shifted,) = activation_vjp(d_output.astype(output.dtype))
    d_normal = d_shifted * scale
    projection = jnp.mean(d_normal * normal, axis=-1, keepdims=True)
    d_x = reciprocal * (d_normal - jnp.mean(d_normal, axis=-1, keepdims=True) - normal * projection)
    rows = tuple(range(x.ndim - 1))
    return d_x.astype(x.dtype), jnp.sum(d_shifted * normal, axis=rows), jnp.sum(d_shifted, axis=rows)


norm_activation.defvjp(
    lambda activation, *inputs: (norm_activation(activation, *inputs), inputs), _norm_activation_backwards
)


class _NormActivation(nn.Module):
    """`norm_activation` with its parameters, named as flax's `LayerNorm` names them."""

    activation: str

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        scale = self.param("scale", nn.initializers.ones, x.shape[-1:])
        bias = self.param("bias", nn.initializers.zeros, x.shape[-1:])
        return norm_activation(self.activation, x, scale, bias)


class _Layer(nn.Module):
    """`[..., *]` to `[..., width]`: Dense, LayerNorm, activation; computed in `precision`, parameters in float32."""

    width: int
    layer_norm: bool
    activation: str
    precision: str

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = nn.Dense(self.width, kernel_init=_kernel_init, dtype=self.precision)(x)
        if self.layer_norm:
            return _NormActivation(self.activation, name="LayerNorm_0")(x)
        return ACTIVATIONS[self.activation](x)


class _Block(nn.Module):
    """`[..., width]` to the same: four layers and a residual path, which is float32 at any precision."""

    layer: Callable[[], _Layer]
    residual: bool

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        y = x
        for _ in range(BLOCK_DEPTH):
            y = self.layer()(y)
        return x + y if self.residual else y.astype(x.dtype)


class Trunk(nn.Module):
    """`[..., *]` to `[..., width]`: a stem layer, then `depth / 4` blocks, whose parameters are stacked."""

    depth: int
    width: int
    layer_norm: bool
    residual: bool
    activation: str
    precision: str = "float32"

    def setup(self) -> None:
        self._stem = self._layer(name="stem")
        self.blocks = self.param("blocks", self._init_blocks)

    def __call__(self, x: jax.Array) -> jax.Array:
        return run_blocks([self.block], [self.blocks], [self.stem(x)])[0]

    def stem(self, x: jax.Array) -> jax.Array:
        return self._stem(x).astype(jnp.float32)

    @property
    def _layer(self) -> Callable[..., _Layer]:
        return partial(_Layer, self.width, self.layer_norm, self.activation, self.precision)

    @property
    def block(self) -> _Block:
        return _Block(self._layer, self.residual, parent=None)

    def _init_blocks(self, key: Array) -> Params:
        keys = jax.random.split(key, self.depth // BLOCK_DEPTH)
        return jax.vmap(lambda key: self.block.init(key, jnp.zeros(self.width))["params"])(keys)


def run_blocks(blocks: Sequence[_Block], stacked: Sequence[Params], xs: Sequence[jax.Array]) -> list[jax.Array]:
    """Runs each of `xs` `[..., width]` through its own blocks, whose parameters are `stacked` `[depth / 4, ...]`.

    One scan runs all of them: tracing and compiling cost the same at any depth, and one network computes on the cores
    that another one leaves idle. For the gradient, only the results of matrix products are stored. Everything else is
    computed again, which costs less than moving it through memory.
    """
    lengths = [len(jax.tree.leaves(params)[0]) for params in stacked]
    shortest = min(lengths)

    def body(xs: list[jax.Array], params: list[Params]) -> tuple[list[jax.Array], None]:
        return [block.apply({"params": each}, x) for block, each, x in zip(blocks, params, xs, strict=True)], None

    body = jax.checkpoint(body, policy=jax.checkpoint_policies.dots_saveable, prevent_cse=False)
    outputs, _ = jax.lax.scan(body, list(xs), [jax.tree.map(lambda x: x[:shortest], params) for params in stacked])
    deeper = [i for i, length in enumerate(lengths) if length > shortest]
    if deeper:
        rest = [jax.tree.map(lambda x: x[shortest:], stacked[i]) for i in deeper]
        final = run_blocks([blocks[i] for i in deeper], rest, [outputs[i] for i in deeper])
        for i, x in zip(deeper, final, strict=True):
            outputs[i] = x
    return outputs


class _Network(nn.Module):
    """Trunk on all inputs side by side, then the heads of a subclass; its parts are callable by themselves."""

    trunk: Trunk

    def __call__(self, *inputs: Array) -> Any:
        return self.after_blocks(self.trunk(jnp.concatenate(inputs, axis=-1)))

    def before_blocks(self, *inputs: Array) -> jax.Array:
        return self.trunk.stem(jnp.concatenate(inputs, axis=-1))


class Encoder(_Network):
    """Inputs `[..., *]` to a representation `[..., E]`."""

    representation_size: int

    def setup(self) -> None:
        self.head = nn.Dense(self.representation_size, kernel_init=_kernel_init)

    def after_blocks(self, x: jax.Array) -> jax.Array:
        return self.head(x)


class Actor(_Network):
    """State `[..., S]` and goal `[..., G]` to mean and log std `[..., A]` of the action before its tanh."""

    action_size: int

    def setup(self) -> None:
        self.mean = nn.Dense(self.action_size, kernel_init=_kernel_init)
        self.log_std = nn.Dense(self.action_size, kernel_init=_kernel_init)

    def after_blocks(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        return self.mean(x), LOG_STD_MIN + 0.5 * (LOG_STD_MAX - LOG_STD_MIN) * (nn.tanh(self.log_std(x)) + 1)


class Pass(NamedTuple):
    """Arguments of one forward pass, `network.apply(params, *inputs)`."""

    network: Actor | Encoder
    params: Params
    inputs: tuple[Array, ...]


def side_by_side(*passes: Pass) -> list[Any]:
    """Returns the output of each pass, all computed in one scan over their blocks; equal to one after the other."""
    xs = [each.network.apply(each.params, *each.inputs, method="before_blocks") for each in passes]
    blocks = [each.network.trunk.block for each in passes]
    xs = run_blocks(blocks, [each.params["params"]["trunk"]["blocks"] for each in passes], xs)
    return [each.network.apply(each.params, x, method="after_blocks") for each, x in zip(passes, xs, strict=True)]


class Networks(NamedTuple):
    """Actor, state-action encoder phi (inputs `[..., S]` and `[..., A]`) and goal encoder psi (input `[..., G]`)."""

    actor: Actor
    state_action: Encoder
    goal: Encoder


class CriticParams(NamedTuple):
    state_action: Params
    goal: Params


class NetworkParams(NamedTuple):
    """Parameters of `Networks`; the critic is both encoders, since they train together."""

    actor: Params
    critic: CriticParams


def make_networks(config: NetworkConfig, spec: EnvSpec) -> Networks:
    """Returns the three networks of one learner, in the sizes of `config` and of an environment's `spec`."""
    switches = config.layer_norm, config.residual, config.activation, config.precision
    actor = Trunk(config.actor_depth or config.depth, config.actor_width or config.width, *switches)
    critic = Trunk(config.critic_depth or config.depth, config.critic_width or config.width, *switches)
    encoder = Encoder(critic, config.representation_size)
    return Networks(Actor(actor, spec.action_size), encoder, encoder)


@partial(jax.jit, static_argnums=(0, 1))  # op by op, initialisation takes more than twice as long
def init_params(networks: Networks, spec: EnvSpec, key: Array) -> NetworkParams:
    """Returns initial parameters. `key` is consumed."""
    actor_key, state_action_key, goal_key = jax.random.split(key, 3)
    state, action, goal = (jnp.zeros(size) for size in (spec.state_size, spec.action_size, spec.goal_size))
    state_action = networks.state_action.init(state_action_key, state, action)
    critic = CriticParams(state_action, networks.goal.init(goal_key, goal))
    return NetworkParams(networks.actor.init(actor_key, state, goal), critic)


def param_shapes(networks: Networks, spec: EnvSpec) -> NetworkParams:
    """Returns the parameters' shapes without creating the parameters."""
    return jax.eval_shape(partial(init_params, networks, spec), jax.random.key(0))


@lru_cache  # the console, the run directory and the summary ask for the same sizes
def network_size(networks: Networks, spec: EnvSpec) -> int:
    """Returns the number of parameters of actor and critic together."""
    return parameter_count(param_shapes(networks, spec))


def parameter_count(params: Params) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(params))
