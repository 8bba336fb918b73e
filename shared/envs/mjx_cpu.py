"""Patch for MJX on a CPU: XLA computes each link of a kinematic chain once.

XLA fuses the walk along a body's tree into loops that start anew from the root at every link. An arm of seven links
then makes 3 steps a second. With an optimization barrier after each link it makes 250 steps a second (16
environments, 2 cores). Results do not change. On a GPU the patch does nothing.
"""

from collections.abc import Callable
from typing import Any

import jax
from mujoco.mjx._src import scan

_body_tree = scan.body_tree


def install_barriers() -> None:
    """Puts the barriers into MJX. Repeated calls have no further effect."""
    scan.body_tree = _body_tree_with_barriers


def _body_tree_with_barriers(model: Any, f: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    if jax.default_backend() != "cpu":
        return _body_tree(model, f, *args, **kwargs)
    return _body_tree(model, lambda *links: jax.tree.map(_barrier, f(*links)), *args, **kwargs)


def _barrier(value: Any) -> Any:
    return jax.lax.optimization_barrier(value) if isinstance(value, jax.Array) else value
