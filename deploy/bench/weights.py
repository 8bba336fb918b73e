"""Transfer of weights from the collector learner's device to a collector's, between real processes of one node."""

import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import jax
import ray

from deploy.bench.harness import to_stderr
from deploy.bench.rollout import collector_experiment, random_policy_params
from deploy.run.actors.learner import LearnerActor
from deploy.run.actors.services import ParamStoreActor
from deploy.run.actors.source import CollectorActor
from deploy.run.launch import as_actor, ray_output
from deploy.run.policy_sizes import object_store_bytes
from deploy.run.setup import prepare_jax
from deploy.scheduling.ray_cluster import cluster
from deploy.scheduling.reaper import guarded
from deploy.scheduling.reservation import reserved
from shared.config import ACTIVE
from shared.envs.registry import make_envs
from shared.params import Policy
from shared.plan import make_plan
from shared.roles import COLLECTOR_LEARNER, SERVICES, source_roles

TIMEOUT_S = 300.0  # for each step, including the first initialisation and compilation


class PublishingLearner(LearnerActor):
    """The collector learner's process; publishes random parameters on request."""

    def prepare(self) -> int:
        """Creates the parameters on the device and returns their bytes."""
        self._params = random_policy_params(self._experiment, make_envs(self._experiment).training.spec)
        return sum(leaf.nbytes for leaf in jax.tree.leaves(self._params))

    def publish_version(self, version: int) -> dict[str, float]:
        """Returns durations; `started`: the node's monotonic time."""
        fresh = jax.block_until_ready(jax.tree.map(lambda x: x + 0, self._params))  # new arrays, as after an update
        started = time.monotonic()
        policy = Policy(version, jax.device_get(fresh))
        on_host = time.monotonic()
        self._publish(policy)
        put = time.monotonic()
        return {"started": started, "to_host_seconds": on_host - started, "put_seconds": put - on_host}


class PullingCollector(CollectorActor):
    """A collector's process; waits for a version of the policy on request."""

    def device(self) -> str:
        return jax.devices()[0].device_kind

    def pull_version(self, version: int) -> dict[str, float]:
        """Returns durations; `ended`: the node's monotonic time."""
        policy = None
        while policy is None:
            asked = time.monotonic()
            policy = self._pull(version - 1)
        pulled = time.monotonic()
        jax.block_until_ready(jax.device_put(policy.params))
        ended = time.monotonic()
        return {"ended": ended, "get_seconds": pulled - asked, "to_device_seconds": ended - pulled}


def bench_weights(depth: int, width: int, repeats: int) -> dict[str, Any]:
    """Returns medians in seconds of `repeats` versions of an actor of `depth` and `width`, without the first version.

    to_host: from the learner's device. put: into Ray's object store, with the reference on its way to the parameter
    store. get: the collector's call that finds the new reference, and the weights behind it. to_device: onto the
    collector's device. total: from the start of the first to the end of the last, with the reference's way;
    first_total: the first version's, which meets cold memory. bytes: of the parameters. device: the collector's kind;
    a CPU's first and last legs copy nothing. A collector pulls between unrolls: its wait for the end of an unroll is
    left out.

    Raises RunFailed if the cluster is too small.
    """
    prepare_jax(cpu_only=True)  # a GPU is for the two processes alone
    experiment = collector_experiment("point_u_maze", depth=depth, width=width, environments=64)
    spec = make_envs(experiment).training.spec
    plan = make_plan(experiment, spec)
    namespace = f"fathom-bench-{time.time_ns():x}"
    with tempfile.TemporaryDirectory(prefix="fathom-bench-") as folder:
        output, ray_cluster = ray_output(Path(folder)), cluster(object_store_bytes(experiment, spec), namespace)
        with guarded(), output, ray_cluster as servers, reserved(experiment, to_stderr, servers) as places:
            store = as_actor(ParamStoreActor, places[SERVICES]).remote()
            common = (str(Path(folder) / "stacks.log"), experiment, plan)
            start_learner = as_actor(PublishingLearner, places[COLLECTOR_LEARNER]).remote
            learner = start_learner(*common, ACTIVE, store, None, folder, 0)
            source = source_roles(experiment)[0]
            collector = as_actor(PullingCollector, places[source]).remote(*common, source, None, folder, store, None)
            size, device = ray.get([learner.prepare.remote(), collector.device.remote()], timeout=TIMEOUT_S)
            first, *timed = [_send(learner, collector, version) for version in range(repeats + 1)]
            for actor in (learner, collector, store):
                ray.kill(actor)
    return {
        "depth": depth,
        "width": width,
        "device": device,
        "bytes": size,
        **{leg: statistics.median(times[leg] for times in timed) for leg in first if leg.endswith("_seconds")},
        "first_total_seconds": first["total_seconds"],
    }


def _send(learner: Any, collector: Any, version: int) -> dict[str, float]:
    """Returns durations of one version. The collector waits for it first, as if it had just ended an unroll."""
    pulled = collector.pull_version.remote(version)
    published = learner.publish_version.remote(version)
    sent, got = ray.get([published, pulled], timeout=TIMEOUT_S)
    return {**sent, **got, "total_seconds": got["ended"] - sent["started"]}
