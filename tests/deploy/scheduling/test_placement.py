"""Placement of roles on nodes that tests describe, and on two real Ray nodes whose GPUs exist only for Ray."""

import os
import time
from collections.abc import Iterator
from itertools import product
from typing import Any

import pytest
import ray
from ray.cluster_utils import Cluster

from deploy.cli.overrides import override
from deploy.run.launch import as_actor
from deploy.scheduling.placement import (
    Node,
    assign_resources,
    find_shortage,
    pack,
    place,
    read_nodes,
    split_nodes,
)
from deploy.scheduling.reservation import Reserved, reserved
from shared.config import Experiment, Resources
from shared.config_file import parse_experiment
from shared.errors import ConfigError, RunFailed
from shared.roles import SERVICES, Kind, Role

ON_CPU = {"resources": {"gpus": 0}}


def experiment(learners: int = 0, collectors: int = 1, **keys: Any) -> Experiment:
    """Returns an experiment with `learners` passive learners, called a, b, ..., and `collectors` collectors."""
    collector = {"actors": collectors, **keys.pop("collector", {})}
    passive = {chr(ord("a") + index): {} for index in range(learners)}
    return Experiment.model_validate({"env": "point_u_maze", "collector": collector, "learners": passive, **keys})


def machine(gpus: float, cpus: float = 16) -> list[Node]:
    return [Node("a", cpus, gpus, 100)]


def role(text: str) -> Role:
    kind, _, role_id = text.partition("-")
    return Role(Kind(kind), role_id)


def gpus(run: Experiment, nodes: list[Node]) -> dict[str, float | None]:
    """Returns the GPUs of each role that has any."""
    return {str(role): given.gpus for role, given in assign_resources(run, nodes).items() if given.gpus}


def asking(gpus: dict[str, float]) -> dict[str, Resources]:
    return {name: Resources(gpus=share) for name, share in gpus.items()}


def on_gpus(gpus_by_role: dict[str, float]) -> dict[Role, Resources]:
    return {role(text): wanted for text, wanted in asking(gpus_by_role).items()}


# --- open resources ---


def test_without_gpus_all_roles_share_the_cpu() -> None:
    placement = place(experiment(learners=2), machine(0, cpus=1))
    assert set(placement.roles.values()) == {Resources(gpus=0)}
    assert placement.notes == []
    assert all(bundle.amounts == {"memory": 1} and bundle.selector == {} for bundle in placement.bundles)


def test_all_roles_share_a_single_gpu() -> None:
    shares = gpus(experiment(learners=1), machine(1))
    assert shares == {"collector-0": 0.307, "evaluator": 0.076, "learner-active": 0.307, "learner-a": 0.307}
    placement = place(experiment(learners=1), machine(1))
    shared, services = placement.bundles
    assert (set(map(str, shared.roles)), shared.amounts) == (set(shares), {"GPU": 0.997, "memory": 1})
    assert services.roles == (SERVICES,)
    assert placement.notes == [
        "GPUs were shared out: collector-0 0.307, evaluator 0.076, learner-active 0.307, learner-a 0.307"
    ]


def test_collectors_and_learners_get_one_of_two_gpus_each() -> None:
    run = experiment(learners=2)
    assert gpus(run, machine(2)) == {
        "collector-0": 0.8,
        "evaluator": 0.2,
        "learner-active": 0.333,
        "learner-a": 0.333,
        "learner-b": 0.333,
    }
    bundles = [set(map(str, bundle.roles)) for bundle in place(run, machine(2)).bundles]
    assert bundles[:2] == [{"collector-0", "evaluator"}, {"learner-active", "learner-a", "learner-b"}]


def test_each_role_gets_one_of_eight_gpus_as_far_as_possible() -> None:
    one_each = {"collector-0": 1.0, "evaluator": 1.0, "learner-active": 1.0, "learner-a": 1.0}
    assert gpus(experiment(learners=1), machine(8)) == one_each
    full = gpus(experiment(learners=5, collectors=2), machine(8))
    assert (full.pop("collector-0"), full.pop("evaluator")) == (0.8, 0.2)
    assert set(full.values()) == {1.0}
    crowded = gpus(experiment(learners=9, collectors=2), machine(8))
    assert sorted(share or 0 for role, share in crowded.items() if role.startswith("learner")) == [0.5] * 6 + [1.0] * 4
    assert [crowded[role] for role in ("collector-0", "collector-1", "evaluator")] == [0.444, 0.444, 0.111]


def test_every_placement_fits() -> None:
    for count, learners, collectors, strategy in product((0, 1, 2, 3, 8), range(10), (1, 2, 5), ("pack", "spread")):
        run = experiment(learners, collectors, placement=strategy)
        for nodes in (machine(count), [Node("a", 8), Node("b", 8, count), Node("c", 8, 2)]):
            placement = place(run, nodes)
            placed = sorted(role for bundle in placement.bundles for role in bundle.roles)
            assert placed == sorted(placement.roles)
            assert all(bundle.amounts.get("GPU", 0) in (0, 1) or len(bundle.roles) > 1 for bundle in placement.bundles)
            apart = strategy == "spread" and len([node for node in nodes if node.gpus]) > 1
            assert not apart or all("ray.io/node-id" in bundle.selector for bundle in placement.bundles)


def test_roles_with_open_gpus_share_those_that_are_left() -> None:
    run = experiment(collector={"collector_resources": {"gpus": 0.5}}, evaluation=ON_CPU)
    assert gpus(run, machine(1)) == {"collector-0": 0.5, "learner-active": 0.5}
    assert gpus(run, machine(2)) == {"collector-0": 0.5, "learner-active": 1.0}
    full = experiment(collector={"collector_resources": {"gpus": 1}})
    assert gpus(full, machine(1)) == {"collector-0": 1.0}
    assert gpus(full, machine(0)) == {"collector-0": 1.0}  # too much already: no other role gets a share
    fed = experiment(learners=1, stream="somewhere")
    assert gpus(fed, machine(1)) == {"learner-a": 0.8, "evaluator": 0.2}


# --- requested resources ---


def test_labels_need_gpus_and_gpus_are_whole_or_a_share() -> None:
    with pytest.raises(ConfigError, match=r"evaluation.resources: labels say where the role goes; say by gpus"):
        parse_experiment({"env": "a", "evaluation": {"resources": {"labels": {"pool": "x"}}}})
    with pytest.raises(ConfigError, match=r"evaluation.resources.gpus: 1.5 GPUs are neither .* use 1 or 2"):
        parse_experiment({"env": "a", "evaluation": {"resources": {"gpus": 1.5}}})
    with pytest.raises(ConfigError, match=r"evaluation.resources.labels.pool: string should match pattern"):
        parse_experiment({"env": "a", "evaluation": {"resources": {"gpus": 0, "labels": {"pool": "!x"}}}})


def test_labels_can_be_set_on_the_command_line(tmp_path: Any) -> None:
    options = ["--evaluation.resources.gpus", "0", "--evaluation.resources.labels", "{pool: x}"]
    changed = override(experiment(), [*options, "--placement", "spread"], tmp_path)
    assert changed.evaluation.resources == Resources(gpus=0, labels={"pool": "x"})
    assert changed.placement == "spread"
    assert override(changed, [], tmp_path) == changed


# --- shortages ---


@pytest.mark.parametrize(
    ("roles", "nodes", "shortage"),
    [
        ({role("learner-deep"): Resources(gpus=2)}, machine(1), "learner-deep needs 2 GPUs, the largest node has 1"),
        ({role("collector-0"): Resources(cpus=4)}, machine(1, 2), "collector-0 needs 4 CPUs, the largest node has 2"),
        (
            {role("evaluator"): Resources(memory_gb=200)},
            machine(1),
            "evaluator needs 200 GB of memory, the largest node has 100",
        ),
        (
            on_gpus({"collector-0": 1, "learner-active": 1, "learner-deep": 1}),
            machine(2),
            "this run needs 3 GPUs (collector-0 1, learner-active 1, learner-deep 1), the cluster has 2",
        ),
        (
            on_gpus({"collector-0": 0.6, "learner-active": 0.6, "learner-deep": 0.6}),
            machine(2),
            "1.8 GPUs (collector-0 0.6, learner-active 0.6, learner-deep 0.6) do not fit on the nodes (2 GPUs, ",
        ),
        (
            {role("collector-0"): Resources(gpus=0, labels={"pool": "x"})},
            [Node("a", labels={"pool": "y"}), Node("b")],
            "collector-0 needs a node labelled pool=x, the cluster has 2 without",
        ),
        (
            {role("collector-0"): Resources(gpus=1, labels={"pool": "x"})},
            [Node("a", labels={"pool": "x"}), Node("b", gpus=1)],
            "collector-0 needs 1 GPU, the largest node labelled pool=x has 0",
        ),
    ],
)
def test_a_shortage_is_one_line_with_the_numbers(roles: dict[str, Resources], nodes: list[Node], shortage: str) -> None:
    assert find_shortage(roles, nodes).startswith(shortage)


def test_shares_are_packed_gpu_by_gpu() -> None:
    two = [Node("a", gpus=2)]
    assert find_shortage(on_gpus({"learner-a": 0.3, "learner-b": 0.3, "learner-c": 0.7, "learner-d": 0.7}), two) == ""
    assert pack(asking({"a": 0.6, "b": 1, "c": 0.4}), two) == {"b": ("a", (0,)), "a": ("a", (1,)), "c": ("a", (1,))}
    assert pack(asking({"a": 1, "b": 0.5, "c": 0.6}), two) is None
    assert pack(asking({"a": 2, "b": 1}), [Node("small", gpus=1), Node("large", gpus=2)]) == {
        "a": ("large", (0, 1)),
        "b": ("small", (0,)),
    }


def test_spread_separates_the_nodes_of_collectors_and_learners() -> None:
    head, small, large = Node("head", 1), Node("small", 8, 1), Node("large", 8, 8)
    run = experiment(placement="spread")
    assert split_nodes(assign_resources(run, [small, large]), [small, large]) == ([small], [large])
    requests = on_gpus({"collector-0": 2, "learner-active": 1, "services": 0})
    assert split_nodes(requests, [head, small, large]) == ([large], [head, small])
    assert split_nodes(requests, [head, large]) is None
    together = place(experiment(placement="spread"), [head, large])
    assert together.notes[-1].startswith("placement: spread found no nodes")
    assert all(bundle.selector == {} for bundle in together.bundles)


# --- Ray ---


@pytest.fixture
def two_nodes(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Node]]:
    """Starts two nodes of one core and one GPU each, the second labelled."""
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "/nowhere")
    cluster = Cluster()
    sizes = {"num_cpus": 1, "num_gpus": 1, "object_store_memory": 100 * 2**20, "include_dashboard": False}
    for labels in ({}, {"pool": "second"}):
        cluster.add_node(labels=labels, **sizes)
    ray.init(address=cluster.address, log_to_driver=False, logging_level="CRITICAL")
    yield read_nodes(ray.nodes())
    ray.shutdown()
    cluster.shutdown()


def locate(places: dict[str, Reserved], roles: list[str]) -> dict[str, Any]:
    """Starts an actor for each role; returns the actors' nodes, visible GPUs and memory fractions."""

    class Where:  # a local class is pickled by value: its actors import neither this module nor JAX
        def where(self) -> tuple[str, str | None, str | None]:
            names = ("CUDA_VISIBLE_DEVICES", "XLA_CLIENT_MEM_FRACTION")
            return ray.get_runtime_context().get_node_id(), *(os.environ.get(name) for name in names)  # type: ignore[return-value]

    actors = {text: as_actor(Where, places[role(text)]).remote() for text in roles}
    return {text: ray.get(actor.where.remote(), timeout=60) for text, actor in actors.items()}


@pytest.mark.ray
@pytest.mark.timeout(180)
def test_roles_run_where_they_are_placed(two_nodes: list[Node]) -> None:
    said: list[str] = []
    with reserved(experiment(placement="spread"), said.append, {}) as places:
        located = locate(places, ["collector-0", "learner-active", "services"])
        (collector, _, shared), (learner, gpu, whole), (services, _, none) = located.values()
        assert collector != learner == services
        assert (gpu, shared, whole, none) == ("0", "0.720", "0.900", None)
        waits = experiment(collector={"learner_resources": {"gpus": 0.5}}, supervision={"start_seconds": 1})
        assert _reserve(waits) == (
            "resources: this run needs 2 GPUs (collector-0 1, evaluator 0.5, learner-active 0.5), 0 of 2 are free; "
            "other jobs released nothing more within 1 s"
        )
    assert said == ["GPUs were shared out: collector-0 0.8, evaluator 0.2, learner-active 1"]
    labelled = {"gpus": 0, "cpus": 1, "labels": {"pool": "second"}}
    run = experiment(collector={"collector_resources": labelled, "learner_resources": {"gpus": 0}}, evaluation=ON_CPU)
    with reserved(run, said.append, {}) as places:
        node_id, *_ = locate(places, ["collector-0"])["collector-0"]
    assert [node.labels.get("pool") for node in two_nodes if node.id == node_id] == ["second"]
    started = time.monotonic()
    too_large = _reserve(experiment(collector={"learner_resources": {"gpus": 2}}))
    assert too_large.startswith("resources: learner-active needs 2 GPUs, the largest node has 1; ask for less")
    assert time.monotonic() - started < 2


def _reserve(run: Experiment) -> str:
    """Returns the reason why a run cannot be placed."""
    with pytest.raises(RunFailed) as failed, reserved(run, print, {}):
        pass
    return str(failed.value)
