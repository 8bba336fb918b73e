"""Which role gets what of a Ray cluster, decided from what its nodes have, before anything is started.

A role lies on one node, and a share of a GPU on one GPU: 0.6 + 0.6 + 0.6 do not fit on two.
"""

import math
from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

from shared.config import Experiment, Resources
from shared.errors import RunFailed
from shared.roles import EVALUATOR, SERVICES, Kind, Role, learner_role, source_roles

NOTHING = Resources(gpus=0)
LEAST_SHARE = 0.05  # of a GPU; with less of it free, nobody is put there unasked
EVALUATOR_WEIGHT = 0.25  # it works now and then, the others all the time
_KINDS = {"gpus": "GPUs", "cpus": "CPUs", "memory_gb": "GB of memory"}
_RAY_NAMES = {"gpus": "GPU", "cpus": "CPU", "memory_gb": "memory"}
GB = 10**9
_ROUNDING = 1e-6

Roles = Mapping[Role, Resources]
Key = TypeVar("Key", bound=Hashable)


class Node(NamedTuple):
    """What one node of a cluster has in all, whoever uses it now."""

    id: str
    cpus: float = 0.0
    gpus: float = 0.0
    memory_gb: float = 0.0
    labels: Mapping[str, str] = {}


class Seat(NamedTuple):
    """A node, and those of its GPUs, counted from 0, that a role is on."""

    node: str
    gpus: tuple[int, ...]


class Bundle(NamedTuple):
    """What Ray is to set aside on one node for `roles`: amounts by Ray's names, and which nodes will do."""

    roles: tuple[Role, ...]
    amounts: dict[str, float]
    selector: dict[str, str]


class Placement(NamedTuple):
    """Every role's resources, nothing left open; `notes`: what a person may want to know."""

    roles: dict[Role, Resources]
    bundles: list[Bundle]
    notes: list[str]


def read_nodes(entries: Iterable[Mapping[str, Any]]) -> list[Node]:
    """The living ones of what `ray.nodes()` lists."""
    return [
        Node(
            entry["NodeID"],
            entry["Resources"].get("CPU", 0.0),
            entry["Resources"].get("GPU", 0.0),
            entry["Resources"].get("memory", 0.0) / GB,
            entry["Labels"],
        )
        for entry in entries
        if entry["Alive"]
    ]


def place(experiment: Experiment, nodes: Sequence[Node]) -> Placement:
    """Where the roles of a run go. Raises RunFailed, with the numbers, where they do not fit on `nodes`."""
    roles = assign_resources(experiment, nodes)
    if shortage := find_shortage(roles, nodes):
        raise RunFailed(f"resources: {shortage}; ask for less, or name a larger cluster by RAY_ADDRESS")
    notes = []
    given = {role for role, wanted in roles_of(experiment).items() if wanted.gpus is None and roles[role].gpus}
    if given:
        shares = ", ".join(f"{role} {roles[role].gpus:g}" for role in roles if role in given)
        notes.append(f"GPUs were shared out: {shares}")
    if experiment.placement == "pack":
        return Placement(roles, _bundles(roles, nodes), notes)
    sides = split_nodes(roles, nodes)
    if sides is None:
        notes.append("placement: spread found no nodes for those that act beside those for learners; all go together")
        return Placement(roles, _bundles(roles, nodes), notes)
    acting, learning = _sides(roles)
    return Placement(
        roles,
        [
            bundle._replace(selector=bundle.selector | {"ray.io/node-id": f"in({','.join(node.id for node in side)})"})
            for members, side in zip((acting, learning), sides, strict=True)
            for bundle in _bundles({role: roles[role] for role in members}, side)
        ],
        notes,
    )


def roles_of(experiment: Experiment) -> dict[Role, Resources]:
    """What each role of a run asks for; who feeds from a stream, and the services, ask for nothing."""
    source = NOTHING if experiment.stream else experiment.collector.collector_resources
    return {
        **dict.fromkeys(source_roles(experiment), source),
        EVALUATOR: experiment.evaluation.resources,
        **{learner_role(name): learner.resources for name, learner in experiment.all_learners.items()},
        SERVICES: NOTHING,
    }


def asks_nothing(roles: Roles) -> bool:
    return not any(wanted.cpus or wanted.gpus or wanted.memory_gb for wanted in roles.values())


def assign_resources(experiment: Experiment, nodes: Sequence[Node]) -> dict[Role, Resources]:
    """Every role's resources: where `gpus` was left open, a share of the GPUs that the others leave, or 0.

    On one GPU all share it. On more, those that act and those that learn have GPUs apart, one for each role as far
    as they go.
    """
    roles = roles_of(experiment)
    said = {role: wanted for role, wanted in roles.items() if wanted.gpus is not None}
    free = _free_gpus(said, nodes)
    shares = _share_out([role for role in roles if role not in said], free, experiment.placement == "spread")
    return {
        role: wanted if role in said else wanted.model_copy(update={"gpus": shares.get(role, 0.0)})
        for role, wanted in roles.items()
    }


def _free_gpus(roles: Roles, nodes: Sequence[Node]) -> list[tuple[str, float]]:
    """What `roles` leave of each GPU worth having, with its node's id; nothing where not even they fit."""
    seats = pack(roles, nodes)
    if seats is None:
        return []
    left = {(node.id, gpu): 1.0 for node in sorted(nodes, key=_size) for gpu in range(int(node.gpus))}
    for role, seat in seats.items():
        for gpu in seat.gpus:
            left[seat.node, gpu] -= min(roles[role].gpus or 0.0, 1.0)
    return [(node, share) for (node, _), share in left.items() if share >= LEAST_SHARE]


def _share_out(roles: Sequence[Role], free: Sequence[tuple[str, float]], spread: bool) -> dict[Role, float]:
    """A share of the `free` GPUs for each of `roles`; nobody gets one where there are none."""
    if not free:
        return {}
    acting, learning = _sides(roles)
    collectors = [role for role in acting if role != EVALUATOR]
    evaluator = [role for role in acting if role == EVALUATOR]
    if len(free) == 1 or not collectors or not learning:
        return _deal([*collectors, *learning, *evaluator], free)
    working = len(collectors) + len(learning)
    if len(free) >= working:
        cut = len(collectors) + (len(free) > working)  # the evaluator's own, if one is to spare
    else:
        cut = min(max(round(len(free) * len(collectors) / working), 1), len(free) - 1)
    between_nodes = [index for index in range(1, len(free)) if free[index][0] != free[index - 1][0]]
    if spread and between_nodes:
        cut = min(between_nodes, key=lambda index: abs(index - cut))
    return _deal([*collectors, *evaluator], free[:cut]) | _deal(learning, free[cut:])


def _deal(roles: Sequence[Role], free: Sequence[tuple[str, float]]) -> dict[Role, float]:
    """`roles` dealt to the GPUs in turn; those on one GPU share it equally, but for the evaluator."""
    shares = {}
    for index, room in enumerate(sorted((share for _, share in free), reverse=True)):
        weights = {role: EVALUATOR_WEIGHT if role == EVALUATOR else 1.0 for role in roles[index :: len(free)]}
        for role, weight in weights.items():
            shares[role] = math.floor(1000 * room * weight / sum(weights.values())) / 1000
    return shares


def find_shortage(roles: Roles, nodes: Sequence[Node]) -> str:
    """What the nodes have too little of, in one line with the numbers; empty where all `roles` fit."""
    for role, wanted in roles.items():
        labelled = " and ".join(f"{key}={value}" for key, value in wanted.labels.items())
        fitting = [node for node in nodes if _matches(node, wanted)]
        if not fitting:
            return f"{role} needs a node labelled {labelled}, none of {len(nodes)} is"
        for kind in _KINDS:
            most = max(getattr(node, kind) for node in fitting)
            if _amount(wanted, kind) > most + _ROUNDING:
                where = f"the largest node labelled {labelled}" if labelled else "the largest node"
                return f"{role} needs {_say(_amount(wanted, kind), kind)}, {where} has {most:.4g}"
    for kind in _KINDS:
        has = sum(getattr(node, kind) for node in nodes)
        if _total(roles, kind) > has + _ROUNDING:
            return f"this run needs {_needs(roles, kind)}, the cluster has {has:.4g}"
    if pack(roles, nodes) is None:
        needs = " and ".join(_needs(roles, kind) for kind in _KINDS if _total(roles, kind))
        sizes = " + ".join(f"{_say(node.gpus, 'gpus')}, {_say(node.cpus, 'cpus')}" for node in nodes)
        return (
            f"{needs} do not fit on the nodes ({sizes}): a role lies on one node, a share of a GPU on one GPU, "
            "so that what is left over may be in pieces too small"
        )
    return ""


def describe_wait(roles: Roles, free: Mapping[str, float], nodes: Sequence[Node]) -> str:
    """What a run needs and what is `free` of it, by Ray's names, while other jobs hold the rest."""
    parts = []
    for kind in (kind for kind in _KINDS if _total(roles, kind)):
        has = sum(getattr(node, kind) for node in nodes)
        left = free.get(_RAY_NAMES[kind], 0.0) / (GB if kind == "memory_gb" else 1)
        parts.append(f"{_needs(roles, kind)}, {left:.4g} of {has:.4g} are free")
    return f"this run needs {' and '.join(parts)}" if parts else "no node takes the run's roles"


def pack(roles: Mapping[Key, Resources], nodes: Sequence[Node]) -> dict[Key, Seat] | None:
    """A seat for each role on empty nodes, the largest first and each where it fits first; none if one does not."""
    spaces = [_Space(node) for node in sorted(nodes, key=_size)]
    seats = {}
    for role in sorted(roles, key=lambda role: (bool(roles[role].labels), *_size(roles[role])), reverse=True):
        seat = next((seat for space in spaces if (seat := space.take(roles[role]))), None)
        if seat is None:
            return None
        seats[role] = seat
    return seats


def split_nodes(roles: Roles, nodes: Sequence[Node]) -> tuple[list[Node], list[Node]] | None:
    """Nodes for those that act and nodes for those that learn, as even in number as will do; none if none do."""
    acting, learning = ({role: roles[role] for role in side} for side in _sides(roles))
    ordered = sorted(nodes, key=_size)
    for cut in sorted(range(1, len(nodes)), key=lambda cut: abs(2 * cut - len(nodes))):
        small, large = ordered[:cut], ordered[cut:]
        for first, second in ((small, large), (large, small)):
            if pack(acting, first) is not None and pack(learning, second) is not None:
                return first, second
    return None


class _Space:
    """What is left of a node while roles are put on it."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._cpus, self._memory_gb = node.cpus, node.memory_gb
        self._gpus = [1.0] * int(node.gpus)

    def take(self, wanted: Resources) -> Seat | None:
        """The seat of a role that is put here, if there is room."""
        gpus = wanted.gpus or 0.0
        share = min(gpus, 1.0)
        chosen = [gpu for gpu, left in enumerate(self._gpus) if left + _ROUNDING >= share][: math.ceil(gpus)]
        if (
            not _matches(self._node, wanted)
            or len(chosen) < math.ceil(gpus)
            or wanted.cpus > self._cpus + _ROUNDING
            or wanted.memory_gb > self._memory_gb + _ROUNDING
        ):
            return None
        self._cpus -= wanted.cpus
        self._memory_gb -= wanted.memory_gb
        for gpu in chosen:
            self._gpus[gpu] -= share
        return Seat(self._node.id, tuple(chosen))


def _bundles(roles: Roles, nodes: Sequence[Node]) -> list[Bundle]:
    """One for each role, but one for all that share a GPU: Ray, which puts bundles where it likes, keeps them there."""
    seats = pack(roles, nodes)
    assert seats is not None
    together: dict[Hashable, list[Role]] = {}
    for role, wanted in roles.items():
        shares_gpu = 0 < (wanted.gpus or 0.0) < 1
        together.setdefault(seats[role] if shares_gpu else role, []).append(role)
    return [_bundle({role: roles[role] for role in members}) for members in together.values()]


def _bundle(roles: Roles) -> Bundle:
    amounts = {_RAY_NAMES[kind]: round(_total(roles, kind), 4) for kind in ("gpus", "cpus")}
    amounts["memory"] = max(int(GB * _total(roles, "memory_gb")), 1)  # Ray has no bundle of nothing: one byte
    selector = {key: value for wanted in roles.values() for key, value in wanted.labels.items()}
    return Bundle(tuple(roles), {name: amount for name, amount in amounts.items() if amount}, selector)


def _sides(roles: Iterable[Role]) -> tuple[list[Role], list[Role]]:
    """Those that act and those that learn."""
    roles = list(roles)
    learning = [role for role in roles if role.kind in (Kind.SERVICES, Kind.LEARNER)]
    return [role for role in roles if role not in learning], learning


def _size(of: Node | Resources) -> tuple[float, float, float]:
    return of.gpus or 0.0, of.cpus, of.memory_gb


def _matches(node: Node, wanted: Resources) -> bool:
    return all(node.labels.get(key) == value for key, value in wanted.labels.items())


def _amount(wanted: Resources, kind: str) -> float:
    return getattr(wanted, kind) or 0.0


def _total(roles: Roles, kind: str) -> float:
    return sum(_amount(wanted, kind) for wanted in roles.values())


def _needs(roles: Roles, kind: str) -> str:
    """`3 GPUs (collector-0 1, learner-active 2)`"""
    each = ", ".join(f"{role} {_amount(wanted, kind):g}" for role, wanted in roles.items() if _amount(wanted, kind))
    return f"{_say(_total(roles, kind), kind)} ({each})"


def _say(amount: float, kind: str) -> str:
    return f"{amount:.4g} {_KINDS[kind].removesuffix('s') if amount == 1 else _KINDS[kind]}"
