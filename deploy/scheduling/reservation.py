"""Reservation of a run's share of a Ray cluster, before its first role starts: the whole share or nothing."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import ray
from ray.util.placement_group import placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from deploy.scheduling.placement import describe_wait, place, read_nodes
from deploy.scheduling.ray_cluster import Servers, answers
from shared.config import Experiment, Resources
from shared.errors import RunFailed
from shared.roles import Role

SOON_S = 3.0  # an idle cluster takes milliseconds, the release of another run's resources a second or two


class Reserved(NamedTuple):
    """Resources of a role, and the scheduling strategy that starts its actors in their place."""

    resources: Resources
    strategy: Any


@contextmanager
def reserved(experiment: Experiment, say: Callable[[str], None], servers: Servers) -> Iterator[dict[Role, Reserved]]:
    """Reserves a place for each role of a run on the connected cluster. At the end, Ray kills all that runs there.

    `servers`: those that `cluster` yields; nothing is asked of a dead one.

    Raises RunFailed with the numbers: at once if the cluster is too small, or after `supervision.start_seconds`
    if other jobs still hold resources that the run needs.
    """
    nodes = read_nodes(ray.nodes())
    placement = place(experiment, nodes)
    for note in placement.notes:
        say(note)
    group = placement_group(
        [bundle.amounts for bundle in placement.bundles],
        strategy="PACK",
        bundle_label_selector=[bundle.selector for bundle in placement.bundles],
    )
    wait_s = experiment.supervision.start_seconds
    try:
        if not group.wait(min(SOON_S, wait_s)):
            say(f"waiting: {describe_wait(placement.roles, ray.available_resources(), nodes)}")
            if not group.wait(max(wait_s - SOON_S, 0)):
                needed = describe_wait(placement.roles, ray.available_resources(), nodes)
                raise RunFailed(f"resources: {needed}; other jobs released nothing more within {wait_s:g} s")
        yield {
            role: Reserved(placement.roles[role], PlacementGroupSchedulingStrategy(group, index))
            for index, bundle in enumerate(placement.bundles)
            for role in bundle.roles
        }
    finally:
        if answers(servers):
            remove_placement_group(group)
