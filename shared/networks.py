"""The one trunk, and the three networks made of it.

Wang et al., "1000 Layer Networks for Self-Supervised RL" (2025), section 3: residual blocks of four
[Dense, LayerNorm, swish], which together make depth trainable.
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
    """The activation of `x` `[..., width]` normalised over its last axis, then scaled and shifted by `[width]`.

    Its gradient is written out: what JAX derives from the mean and the variance passes over the row twice as often.
    """
    normal, _ = _normalise(x)
    return ACTIVATIONS[activation](normal * scale + bias).astype(x.dtype)


def _normalise(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Rows of mean 0 and variance 1, and the reciprocal of what they were divided by; in float32, as flax does it."""
    x = x.astype(jnp.float32)
    mean = jnp.mean(x, axis=-1, keepdims=True)
    variance = jnp.maximum(jnp.mean(x * x, axis=-1, keepdims=True) - mean * mean, 0)
    reciprocal = jax.lax.rsqrt(variance + _NORM_EPSILON)
    return (x - mean) * reciprocal, reciprocal


def _norm_activation_forwards(
    activation: str, x: jax.Array, scale: Array, bias: Array
) -> tuple[jax.Array, tuple[jax.Array, Array, Array]]:
    return norm_activation(activation, x, scale, bias), (x, scale, bias)


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


norm_activation.defvjp(_norm_activation_forwards, _norm_activation_backwards)


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
    """`[..., width]` to the same: four layers and the way around them, which is float32 at any precision."""

    width: int
    layer_norm: bool
    residual: bool
    activation: str
    precision: str

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        y = x
        for _layer in range(BLOCK_DEPTH):
            y = _Layer(self.width, self.layer_norm, self.activation, self.precision)(y)
        return x + y if self.residual else y.astype(x.dtype)


class Trunk(nn.Module):
    """`[..., *]` to `[..., width]`: a stem layer, then `depth / 4` blocks, their parameters stacked."""

    depth: int
    width: int
    layer_norm: bool
    residual: bool
    activation: str
    precision: str = "float32"

    def setup(self) -> None:
        self._stem = _Layer(self.width, self.layer_norm, self.activation, self.precision, name="stem")
        self.blocks = self.param("blocks", self._init_blocks)

    def __call__(self, x: jax.Array) -> jax.Array:
        return run_blocks([self.block], [self.blocks], [self.stem(x)])[0]

    def stem(self, x: jax.Array) -> jax.Array:
        return self._stem(x).astype(jnp.float32)

    @property
    def block(self) -> _Block:
        return _Block(self.width, self.layer_norm, self.residual, self.activation, self.precision, parent=None)

    def _init_blocks(self, key: Array) -> Params:
        keys = jax.random.split(key, self.depth // BLOCK_DEPTH)
        return jax.vmap(lambda key: self.block.init(key, jnp.zeros(self.width))["params"])(keys)


def run_blocks(blocks: Sequence[_Block], stacked: Sequence[Params], xs: Sequence[jax.Array]) -> list[jax.Array]:
    """Each of `xs` `[..., width]` through its own blocks, whose parameters are `stacked` `[depth / 4, ...]`.

    One scan for all, so that tracing and compiling cost the same at any depth, and so that what one network
    computes alone fills the other's pauses. Of each layer only the product with its kernel is kept for the
    gradient: on its way through memory the rest costs more than computing it again.
    """
    lengths = [len(jax.tree.leaves(params)[0]) for params in stacked]
    shortest = min(lengths)

    def body(xs: list[jax.Array], params: list[Params]) -> tuple[list[jax.Array], None]:
        return [block.apply({"params": each}, x) for block, each, x in zip(blocks, params, xs, strict=True)], None

    body = jax.checkpoint(body, policy=jax.checkpoint_policies.dots_saveable, prevent_cse=False)
    first = [jax.tree.map(lambda x: x[:shortest], params) for params in stacked]
    done, _ = jax.lax.scan(body, list(xs), first)
    deeper = [i for i, length in enumerate(lengths) if length > shortest]
    if deeper:
        rest = [jax.tree.map(lambda x: x[shortest:], stacked[i]) for i in deeper]
        for i, x in zip(deeper, run_blocks([blocks[i] for i in deeper], rest, [done[i] for i in deeper]), strict=True):
            done[i] = x
    return done


class Encoder(nn.Module):
    """`[..., *]` to a representation `[..., E]`."""

    trunk: Trunk
    representation_size: int

    def setup(self) -> None:
        self.head = nn.Dense(self.representation_size, kernel_init=_kernel_init)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.after_blocks(self.trunk(x))

    def before_blocks(self, x: jax.Array) -> jax.Array:
        return self.trunk.stem(x)

    def after_blocks(self, x: jax.Array) -> jax.Array:
        return self.head(x)


class Actor(nn.Module):
    """State `[..., S]` and goal `[..., G]` to mean and log std `[..., A]` of the action before its tanh."""

    trunk: Trunk
    action_size: int

    def setup(self) -> None:
        self.mean = nn.Dense(self.action_size, kernel_init=_kernel_init)
        self.log_std = nn.Dense(self.action_size, kernel_init=_kernel_init)

    def __call__(self, state: Array, goal: Array) -> tuple[jax.Array, jax.Array]:
        return self.after_blocks(self.trunk(jnp.concatenate([state, goal], axis=-1)))

    def before_blocks(self, state: Array, goal: Array) -> jax.Array:
        return self.trunk.stem(jnp.concatenate([state, goal], axis=-1))

    def after_blocks(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        return self.mean(x), LOG_STD_MIN + 0.5 * (LOG_STD_MAX - LOG_STD_MIN) * (nn.tanh(self.log_std(x)) + 1)


class Pass(NamedTuple):
    """`network.apply(params, *inputs)`, still to be made."""

    network: Actor | Encoder
    params: Params
    inputs: tuple[Array, ...]


def side_by_side(*passes: Pass) -> list[Any]:
    """What each pass gives, all of them run in one scan over their blocks; equal to one after the other."""
    xs = [each.network.apply(each.params, *each.inputs, method="before_blocks") for each in passes]
    blocks = [each.network.trunk.block for each in passes]
    xs = run_blocks(blocks, [each.params["params"]["trunk"]["blocks"] for each in passes], xs)
    return [each.network.apply(each.params, x, method="after_blocks") for each, x in zip(passes, xs, strict=True)]


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
            config.precision,
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


@lru_cache  # console, record and summary ask for it
def network_size(networks: Networks, spec: EnvSpec) -> int:
    """Parameters of actor and critic together."""
    return parameter_count(param_shapes(networks, spec))


def parameter_count(params: Params) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(params))
