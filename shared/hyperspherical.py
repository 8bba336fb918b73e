"""Hyperspherical normalisation of a trunk, in place of layer norm: activations and columns of kernels have norm 1.

Source: Lee et al., "Hyperspherical Normalization for Scalable Deep Reinforcement Learning" (SimbaV2, 2025). SimbaV2's
blocks have two Dense layers. The 1000-layer paper (appendix A.6) reports gains, and leaves open the place of the
normalisation in its blocks of four layers. The placement here is Fathom's:

- A layer is a Dense layer without bias and with unit columns, a learnable scale of each unit, the activation, and l2
  normalisation over the width. SimbaV2 normalises the output of a block's layers alone.
- A block interpolates on the sphere between its input and the output of its layers, by a learnable weight of each unit.
- The stem's input gets a constant component and is normalised, so that the input's norm is not lost. Observations are
  not normalised by running statistics.
- Heads are as with layer norm. They take the trunk's output times sqrt(width): with inputs of norm 1, their outputs
  would begin near 0 and change slowly.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from shared.types import Array, Params

EMBEDDED_CONSTANT = 3.0  # SimbaV2's c_shift
_EPSILON = 1e-12  # keeps the gradient finite where all activations are 0


def at_least_float32(x: jax.Array) -> jax.Array:
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def unit_norm(x: jax.Array, axis: int = -1) -> jax.Array:
    """Returns `x` with norm 1 along `axis`, in float32 or better; zeros stay zeros."""
    x = at_least_float32(x)
    return x * jax.lax.rsqrt(jnp.sum(x * x, axis=axis, keepdims=True) + _EPSILON)


def embed(x: jax.Array) -> jax.Array:
    """Returns inputs `[..., I]` on the unit sphere, `[..., I + 1]`."""
    return unit_norm(jnp.concatenate([x, jnp.full((*x.shape[:-1], 1), EMBEDDED_CONSTANT, x.dtype)], axis=-1))


def _orthonormal(x: jax.Array) -> jax.Array:
    """Returns orthonormal rows that span the rows of `x` `[M, N]`, M <= N: Gram-Schmidt, twice for each row.

    Not `jnp.linalg.qr`: with JAX 0.10 on CPUs, decompositions of several batches at once can wait for each other
    forever, since they wait in the threads that they need.
    """

    def step(row: int, x: jax.Array) -> jax.Array:
        vector, done = x[row], jnp.arange(len(x)) < row
        for _ in range(2):
            shares = jnp.where(done, jnp.matmul(x, vector, precision=jax.lax.Precision.HIGHEST), 0)
            vector = vector - jnp.matmul(shares, x, precision=jax.lax.Precision.HIGHEST)
        return x.at[row].set(unit_norm(vector))

    return jax.lax.fori_loop(0, len(x), step, x)


def _init_kernel(key: Array, shape: tuple[int, int]) -> jax.Array:
    """Returns an orthogonal matrix `[inputs, width]`, with unit columns where it has more columns than rows, too."""
    kernel = _orthonormal(jax.random.normal(key, (min(shape), max(shape))))
    return unit_norm(kernel if shape[0] < shape[1] else kernel.T, axis=-2)


class UnitDense(nn.Module):
    """`[..., *]`, of norm 1, to `[..., width]`, of variance 1 at initialisation; its kernel's columns have norm 1.

    The product is computed in `number_format`, float32 at `precision`.
    """

    width: int
    number_format: str
    precision: jax.lax.Precision = jax.lax.Precision.HIGHEST

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        inputs = x.shape[-1]
        kernel = self.param("kernel", _init_kernel, (inputs, self.width))
        # The product of a unit vector with a random one has variance 1 / inputs. The parameter is as large as a
        # kernel's entries, so that an optimiser's step changes both by an equal share.
        scale = self.width**-0.5
        scaler = self.param("scaler", nn.initializers.constant(scale), (self.width,))
        factors = x.astype(self.number_format), kernel.astype(self.number_format)
        product = jnp.matmul(*factors, precision=self.precision)
        return at_least_float32(product) * (scaler * (inputs**0.5 / scale))


class Interpolation(nn.Module):
    """Points of the sphere between `x` and `y` `[..., width]`, at first at `weight` of the way from `x`."""

    weight: float

    @nn.compact
    def __call__(self, x: jax.Array, y: jax.Array) -> jax.Array:
        width = x.shape[-1]
        scale = width**-0.5
        alpha = self.param("alpha", nn.initializers.constant(scale), (width,))
        return unit_norm(x + alpha * (self.weight / scale) * (y.astype(x.dtype) - x))


def project_kernels(params: Any) -> Any:
    """Returns any tree of parameters, with unit columns in all kernels `[..., inputs, width]` of `UnitDense`.

    Optimisers' steps leave the sphere, so a projection follows each step. Without `UnitDense`, `params` are returned as
    they are.
    """
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: unit_norm(leaf, axis=-2) if _is_unit_kernel(path) else leaf, params
    )


def _is_unit_kernel(path: tuple[Any, ...]) -> bool:
    keys: list[Params] = [getattr(entry, "key", "") for entry in path]
    return len(keys) > 1 and keys[-1] == "kernel" and str(keys[-2]).startswith(UnitDense.__name__)
