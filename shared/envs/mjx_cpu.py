"""MJX on a CPU: keeps XLA from computing a chain of links again for each of its links.

XLA fuses the walk along a body's tree into loops that start anew from the root at every link. An arm of seven
links then makes 3 steps a second; with a barrier after each link it makes 250 (16 environments, 2 cores). Results
do not change. On a GPU nothing is done.
"""

from collections.abc import Callable
from typing import Any

import jax
from mujoco.mjx._src import scan

_body_tree = scan.body_tree


def keep_links_apart() -> None:
    """Puts the barriers into MJX; harmless when called again."""
    scan.body_tree = _barred_body_tree


def _barred_body_tree(model: Any, f: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    if jax.default_backend() != "cpu":
        return _body_tree(model, f, *args, **kwargs)
    return _body_tree(model, lambda *links: jax.tree.map(_bar, f(*links)), *args, **kwargs)


def _bar(value: Any) -> Any:
    return jax.lax.optimization_barrier(value) if isinstance(value, jax.Array) else value
