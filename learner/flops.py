"""Floating-point operations of an update, from the sizes of its networks."""

from typing import Any

import jax

from shared.networks import NetworkParams
from shared.types import Params


def model_flops(params: NetworkParams, batch: int, representation_size: int) -> float:
    """Returns the multiplications and additions in matrix products of one gradient step on `batch` rows.

    A network costs 2 B for each kernel entry forwards, and as much again for its inputs' gradient and for its kernels'
    gradient. The state-action encoder runs a second time on the actor's own actions, without the kernels' gradient.
    """
    actor, critic = params
    passes = 3 * _kernel_entries(actor) + 5 * _kernel_entries(critic.state_action) + 3 * _kernel_entries(critic.goal)
    return 2.0 * batch * passes + 3 * 2.0 * batch * batch * representation_size


def _kernel_entries(params: Params) -> int:
    leaves: list[tuple[Any, Any]] = jax.tree_util.tree_flatten_with_path(params)[0]
    return sum(leaf.size for path, leaf in leaves if path[-1].key == "kernel")
