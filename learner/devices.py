"""Devices of a learner: each holds all parameters and a shard of the windows and of every minibatch."""

from functools import lru_cache
from typing import NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from shared.plan import Plan
from shared.replay.codec import Columns


class Layout(NamedTuple):
    """`replicated`: for parameters, optimiser states, keys and metrics. `split`: shards arrays along the first axis."""

    replicated: NamedSharding
    split: NamedSharding


@lru_cache
def make_layout(devices: tuple[jax.Device, ...] | None = None) -> Layout:
    """Returns the layout over `devices`; by default, all devices of this process."""
    mesh = Mesh(np.array(devices or jax.local_devices()), ("data",))
    return Layout(NamedSharding(mesh, PartitionSpec()), NamedSharding(mesh, PartitionSpec("data")))


def check_divides(layout: Layout, plan: Plan) -> None:
    """Raises ValueError unless minibatches and windows have equal shards on all devices."""
    devices = layout.split.mesh.size
    for name, count in (("batch_size", plan.batch_size), ("windows_per_update", plan.windows_per_update)):
        if count % devices:
            raise ValueError(
                f"algorithm.{name}: {count} cannot be divided evenly among a learner's {devices} devices; "
                f"use {-(-count // devices) * devices}, or give the learner fewer devices"
            )


def share_out(columns: Columns) -> Columns:
    """Returns a copy of windows `[B, ...]`, sharded over this process's devices; waits until the copy is complete."""
    split = make_layout().split
    if split.mesh.devices.flat[0].platform == "cpu":  # there `device_put` may keep the host's own array
        columns = jax.tree.map(np.array, columns)
    return jax.block_until_ready(jax.device_put(columns, split))
