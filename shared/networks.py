"""Residual trunk, and the networks that are built on it.

Source: Wang et al., "1000 Layer Networks for Self-Supervised RL" (2025), section 3. A residual block has four layers of
[Dense, LayerNorm, swish]; residual path and layer norm together make depth trainable. `hyperspherical.py` has the
alternative to layer norm.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from shared.envs.base import EnvSpec
from shared.hyperspherical import Interpolation, UnitDense, at_least_float32, embed, unit_norm
from shared.network_config import BLOCK_DEPTH, NetworkConfig, TrunkSize
from shared.types import Array, Params

ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {"swish": nn.swish, "relu": nn.relu}
LOG_STD_MIN, LOG_STD_MAX = -5.0, 2.0
_NORM_EPSILON = 1e-6  # flax's
_MAX_BLOCKS_AT_ONCE = 16  # enough for several cores

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
    x = at_least_float32(x)
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


def number_format(precision: str) -> str:
    """Returns the format of numbers of hidden layers at a network's `precision`."""
    return "float32" if precision == "tf32" else precision


def products(precision: str) -> jax.lax.Precision:
    """Returns how products of float32 numbers are computed: in full, or as tf32 where a GPU has it."""
    return jax.lax.Precision.DEFAULT if precision == "tf32" else jax.lax.Precision.HIGHEST


class _Layer(nn.Module):
    """`[..., *]` to `[..., width]`: Dense, LayerNorm, activation; computed in `precision`, parameters in float32.

    With `hyperspherical` normalisation, the activation comes before it, and the result has norm 1.
    """

    width: int
    layer_norm: bool
    activation: str
    precision: str
    hyperspherical: bool

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        if self.hyperspherical:
            x = UnitDense(self.width, number_format(self.precision), products(self.precision))(x)
            return unit_norm(ACTIVATIONS[self.activation](x)).astype(number_format(self.precision))
        dense = {"dtype": number_format(self.precision), "precision": products(self.precision)}
        x = nn.Dense(self.width, kernel_init=_kernel_init, **dense)(x)
        if self.layer_norm:
            return _NormActivation(self.activation, name="LayerNorm_0")(x)
        return ACTIVATIONS[self.activation](x)


class _Block(nn.Module):
    """`[..., width]` to the same: four layers and a residual path, which is float32 at any precision.

    `interpolation`: initial weight of the layers' output on the sphere; none: the output is added.
    """

    layer: Callable[[], _Layer]
    residual: bool
    interpolation: float | None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        y = x
        for _ in range(BLOCK_DEPTH):
            y = self.layer()(y)
        if not self.residual:
            return y.astype(x.dtype)
        return x + y if self.interpolation is None else Interpolation(self.interpolation)(x, y)


class Trunk(nn.Module):
    """`[..., *]` to `[..., width]`: a stem layer, then `depth / 4` blocks, whose parameters are stacked.

    Trunks of depth 1 and 2 are plain: they have `depth` layers in all, the stem among them, and no residual path.
    """

    depth: int
    width: int
    layer_norm: bool
    residual: bool
    activation: str
    precision: str = "float32"
    hyperspherical: bool = False

    def setup(self) -> None:
        num_plain = 0 if self.num_blocks else self.depth - 1
        self._plain = [self._layer(name="stem"), *(self._layer(name=f"layer_{i + 1}") for i in range(num_plain))]
        # A plain trunk has no such parameter: checkpoints cannot hold arrays of size 0.
        self.blocks = self._find_blocks() if self.num_blocks else {}

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.after_blocks(run_blocks([self.block], [self.blocks], [self.before_blocks(x)])[0])

    def before_blocks(self, x: jax.Array) -> jax.Array:
        """Returns the blocks' input: the output of the stem, and of a plain trunk's other layer."""
        x = embed(x) if self.hyperspherical else x
        for layer in self._plain:
            x = layer(x)
        return at_least_float32(x)

    def after_blocks(self, x: jax.Array) -> jax.Array:
        """Returns the blocks' output `x` as heads take it: with entries of mean square 1, also where its norm is 1."""
        return x * self.width**0.5 if self.hyperspherical else x

    @property
    def num_blocks(self) -> int:
        return self.depth // BLOCK_DEPTH

    @property
    def _layer(self) -> Callable[..., _Layer]:
        return partial(_Layer, self.width, self.layer_norm, self.activation, self.precision, self.hyperspherical)

    @property
    def block(self) -> _Block:
        interpolation = 1 / (self.num_blocks + 1) if self.hyperspherical else None
        return _Block(self._layer, self.residual, interpolation, parent=None)

    def _find_blocks(self) -> Params:
        """Returns the parameter "blocks". Where it exists, flax's `param` would trace its initialiser for its shape."""
        if self.has_variable("params", "blocks"):
            return self.get_variable("params", "blocks")
        return self.param("blocks", self._init_blocks)

    def _init_blocks(self, key: Array) -> Params:
        """Returns the parameters of all blocks, made a few blocks at a time: all random bits at once take memory."""
        keys = jax.random.split(key, self.num_blocks)
        at_once = math.gcd(self.num_blocks, _MAX_BLOCKS_AT_ONCE)  # equal batches are compiled once
        return jax.lax.map(lambda key: self.block.init(key, jnp.zeros(self.width))["params"], keys, batch_size=at_once)


def run_blocks(blocks: Sequence[_Block], stacked: Sequence[Params], xs: Sequence[jax.Array]) -> list[jax.Array]:
    """Runs each of `xs` `[..., width]` through its own blocks, whose parameters are `stacked` `[depth / 4, ...]`.

    Plain trunks have neither blocks nor parameters of blocks: they return their `xs`. One scan runs all blocks: tracing
    and compiling cost the same at any depth, and one network computes on the cores that another one leaves idle. For
    the gradient, only the results of matrix products are stored. Everything else is computed again, which costs less
    than moving it through memory.
    """
    lengths = [max(map(len, jax.tree.leaves(params)), default=0) for params in stacked]
    shortest, outputs = min(lengths), list(xs)

    def body(xs: list[jax.Array], params: list[Params]) -> tuple[list[jax.Array], None]:
        return [block.apply({"params": each}, x) for block, each, x in zip(blocks, params, xs, strict=True)], None

    body = jax.checkpoint(body, policy=jax.checkpoint_policies.dots_saveable, prevent_cse=False)
    if shortest:
        first = [jax.tree.map(lambda x: x[:shortest], params) for params in stacked]
        outputs, _ = jax.lax.scan(body, outputs, first)
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
        return self.trunk.before_blocks(jnp.concatenate(inputs, axis=-1))

    @property
    def dense(self) -> Callable[..., nn.Dense]:
        """Makes a layer of a head, which is float32 also where hidden layers are bfloat16."""
        return partial(nn.Dense, precision=products(self.trunk.precision))


class Encoder(_Network):
    """Inputs `[..., *]` to a representation `[..., E]`."""

    representation_size: int

    def setup(self) -> None:
        self.head = self.dense(self.representation_size, kernel_init=_kernel_init)

    def after_blocks(self, x: jax.Array) -> jax.Array:
        return self.head(x)


class Actor(_Network):
    """State `[..., S]` and goal `[..., G]` to mean and log std `[..., H * A]` of H actions before their tanh."""

    action_size: int

    def setup(self) -> None:
        self.mean = self.dense(self.action_size, kernel_init=_kernel_init)
        self.log_std = self.dense(self.action_size, kernel_init=_kernel_init)

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
    xs = run_blocks(blocks, [each.params["params"]["trunk"].get("blocks", {}) for each in passes], xs)
    xs = [each.network.trunk.after_blocks(x) for each, x in zip(passes, xs, strict=True)]
    return [each.network.apply(each.params, x, method="after_blocks") for each, x in zip(passes, xs, strict=True)]


def make_trunk(config: NetworkConfig, size: TrunkSize) -> Trunk:
    """Returns a trunk with the switches of `config`."""
    switches = config.layer_norm, config.residual, config.activation, config.precision, config.hyperspherical
    return Trunk(*size, *switches)


def make_actor(config: NetworkConfig, spec: EnvSpec, chunk: int = 1) -> Actor:
    """Returns the actor of one learner, which decides `chunk` actions at once."""
    return Actor(make_trunk(config, config.actor_trunk), chunk * spec.action_size)


def parameter_count(params: Params) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(params))
