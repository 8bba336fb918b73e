"""Weights on their way from the collector learner's device to a collector's, between real processes of one node."""

import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import ray

from deploy.run.actors.learner import LearnerActor
from deploy.run.actors.services import ParamStoreActor
from deploy.run.actors.source import CollectorActor
from deploy.run.launch import as_actor, object_store_bytes, ray_output
from deploy.scheduling.ray_cluster import cluster
from deploy.scheduling.reaper import guarded
from deploy.scheduling.reservation import reserved
from shared.config import ACTIVE, Experiment
from shared.config_file import parse_experiment
from shared.envs.base import EnvSpec
from shared.envs.registry import make_envs
from shared.networks import make_networks
from shared.params import Policy
from shared.plan import make_plan
from shared.roles import COLLECTOR_LEARNER, SERVICES, Role, source_roles
from shared.types import Params

TIMEOUT_S = 300.0  # for any one step, initialising and compiling the first time among them
_LEGS = ("to_host_seconds", "put_seconds", "get_seconds", "to_device_seconds")


class PublishingLearner(LearnerActor):
    """The collector learner's process, which publishes random parameters when it is told to."""

    def prepare(self) -> int:
        """Makes the parameters on the device. Returns their bytes."""
        self._params = random_actor(self._experiment, make_envs(self._experiment).training.spec)
        return sum(leaf.nbytes for leaf in jax.tree.leaves(self._params))

    def publish_version(self, version: int) -> dict[str, float]:
        """`started`: by the node's monotonic clock."""
        fresh = jax.block_until_ready(jax.tree.map(lambda x: x + 0, self._params))  # an update's result is a new one
        started = time.monotonic()
        policy = Policy(version, jax.device_get(fresh))
        on_host = time.monotonic()
        self._publish(policy)
        return {
            "started": started,
            "to_host_seconds": on_host - started,
            "put_seconds": time.monotonic() - on_host,
        }


class PullingCollector(CollectorActor):
    """A collector's process, which waits for a version of the policy when it is told to."""

    def device(self) -> str:
        return jax.devices()[0].device_kind

    def pull_version(self, version: int) -> dict[str, float]:
        """`ended`: by the node's monotonic clock."""
        policy = None
        while policy is None:
            asked = time.monotonic()
            policy = self._pull(version - 1)
        pulled = time.monotonic()
        jax.block_until_ready(jax.device_put(policy.params))
        ended = time.monotonic()
        return {"ended": ended, "get_seconds": pulled - asked, "to_device_seconds": ended - pulled}


def bench_weights(depth: int, width: int, repeats: int, say: Callable[[str], None] = lambda text: None) -> dict:
    """Medians of `repeats` versions of an actor of `depth` and `width`, in seconds; the first one left out.

    to_host: from the learner's device. put: into Ray's object store, and the reference on its way to the
    parameter store. get: the collector's call that finds the new reference, and the weights behind it. to_device:
    onto the collector's device. total: from the first to the end of the last, the reference's way included;
    first_total: the first version's, which meets cold memory. bytes: of the parameters. device: the collector's
    kind; a CPU's first and last legs copy nothing. A collector pulls between unrolls: what it waits for the end of
    its own is left out.

    Raises RunFailed where the cluster is too small.
    """
    # Nothing is collected or trained: only the sizes of the collector network count.
    experiment = parse_experiment(
        {
            "env": "point_u_maze",
            "collector": {"depth": depth, "width": width, "environments": 64},
            "algorithm": {"batch_size": 2, "windows_per_update": 1, "minibatches_per_update": 1},
        }
    )
    spec = make_envs(experiment).training.spec
    plan = make_plan(experiment, spec)
    namespace = f"fathom-bench-{time.time_ns():x}"
    with tempfile.TemporaryDirectory(prefix="fathom-bench-") as folder:
        output, ray_cluster = ray_output(Path(folder)), cluster(object_store_bytes(experiment, spec), namespace)
        with guarded(), output, ray_cluster, reserved(experiment, say) as places:

            def start(kind: type, role: Role, *arguments: Any) -> Any:
                return as_actor(kind, places[role]).remote(*arguments)

            store = start(ParamStoreActor, SERVICES)
            stacks = str(Path(folder) / "stacks.log")
            learner = start(
                PublishingLearner, COLLECTOR_LEARNER, stacks, experiment, plan, ACTIVE, store, None, folder, 0
            )
            source = source_roles(experiment)[0]
            collector = start(PullingCollector, source, stacks, experiment, plan, source, None, folder, store, None)
            size, device = ray.get([learner.prepare.remote(), collector.device.remote()], timeout=TIMEOUT_S)
            first, *timed = [_send(learner, collector, version) for version in range(repeats + 1)]
            for actor in (learner, collector, store):
                ray.kill(actor)
    return {
        "depth": depth,
        "width": width,
        "device": device,
        "bytes": size,
        **{leg: statistics.median(times[leg] for times in timed) for leg in (*_LEGS, "total_seconds")},
        "first_total_seconds": first["total_seconds"],
    }


def _send(learner: Any, collector: Any, version: int) -> dict[str, float]:
    """One version: the collector waits for it before the learner makes it, as one that has just ended an unroll."""
    pulled = collector.pull_version.remote(version)
    published = learner.publish_version.remote(version)
    sent, got = ray.get([published, pulled], timeout=TIMEOUT_S)
    return {**sent, **got, "total_seconds": got["ended"] - sent["started"]}


def random_actor(experiment: Experiment, spec: EnvSpec) -> Params:
    """The collector network's actor alone, on the device: a critic of that depth would be two more."""
    actor = make_networks(experiment.collector, spec).actor
    init = jax.jit(actor.init)
    return jax.block_until_ready(init(jax.random.key(0), jnp.zeros(spec.state_size), jnp.zeros(spec.goal_size)))
