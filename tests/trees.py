"""Comparison of trees of arrays."""

from typing import Any

import jax
import numpy as np


def assert_equal(one: Any, other: Any) -> None:
    """Asserts that two trees are equal to the bit, in structure, shapes and types, PRNG keys included."""
    assert jax.tree.structure(one) == jax.tree.structure(other)
    for x, y in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        assert (x.shape, x.dtype) == (y.shape, y.dtype)
        if jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key):
            x, y = jax.random.key_data(x), jax.random.key_data(y)
        np.testing.assert_array_equal(x, y)
