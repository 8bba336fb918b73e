"""A learner's devices: parameters on every one, windows and minibatches shared out among them."""

from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from shared.plan import Plan
from shared.replay.codec import Columns


class Layout(NamedTuple):
    """`replicated`: parameters, optimiser states, keys, metrics. `split`: arrays along their first axis."""

    replicated: NamedSharding
    split: NamedSharding

    @property
    def devices(self) -> int:
        return self.split.mesh.size


@lru_cache
def make_layout(devices: Sequence[jax.Device] | None = None) -> Layout:
    """For `devices`, a tuple; none: all that this process has."""
    mesh = Mesh(np.array(devices or jax.local_devices()), ("data",))
    return Layout(NamedSharding(mesh, PartitionSpec()), NamedSharding(mesh, PartitionSpec("data")))


def check_divides(layout: Layout, plan: Plan) -> None:
    """Raises ValueError unless minibatches and windows can be shared out evenly."""
    for name, count in (("batch_size", plan.batch_size), ("windows_per_update", plan.windows_per_update)):
        if count % layout.devices:
            raise ValueError(
                f"algorithm.{name}: {count} cannot be shared out among a learner's {layout.devices} devices; "
                f"use {-(-count // layout.devices) * layout.devices}, or give the learner fewer"
            )


def share_out(columns: Columns) -> Columns:
    """A copy of windows `[B, ...]` on this process's devices, finished when this returns: a part on each.

    Copied on the host first: what JAX puts on a CPU, it may leave where it is, `may_alias=False` or not.
    """
    return jax.block_until_ready(jax.device_put(jax.tree.map(np.array, columns), make_layout().split))
