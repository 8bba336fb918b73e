"""Placement: the resources of each role on a Ray cluster, derived from the cluster's nodes before anything starts.

A role needs one node, and a share of a GPU needs one GPU: 0.6 + 0.6 + 0.6 do not fit on two.
"""

import math
from collections import defaultdict
from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

from shared.config import Experiment, Resources
from shared.errors import RunFailed
from shared.roles import EVALUATOR, SERVICES, Kind, Role, learner_role, source_roles

NOTHING = Resources(gpus=0)
LEAST_SHARE = 0.05  # of a GPU; a GPU with less of it free is not assigned unasked
EVALUATOR_WEIGHT = 0.25  # the evaluator works now and then, the other roles all the time
_KINDS = {"gpus": "GPUs", "cpus": "CPUs", "memory_gb": "GB of memory"}
_RAY_NAMES = {"gpus": "GPU", "cpus": "CPU", "memory_gb": "memory"}
GB = 10**9
_ROUNDING = 1e-6

Roles = Mapping[Role, Resources]
Key = TypeVar("Key", bound=Hashable)
Seat = tuple[str, tuple[int, ...]]
"""Node of a role, and the role's GPUs there, counted from 0."""


class Node(NamedTuple):
    """Total resources of one node of a cluster, in use or not."""

    id: str
    cpus: float = 0.0
    gpus: float = 0.0
    memory_gb: float = 0.0
    labels: Mapping[str, str] = {}


class Bundle(NamedTuple):
    """Resources that Ray reserves for `roles` on one node: amounts by Ray's names, and labels that select the node."""

    roles: tuple[Role, ...]
    amounts: dict[str, float]
    selector: dict[str, str]


class Placement(NamedTuple):
    """Complete resources of every role, their bundles, and `notes` for the user."""

    roles: dict[Role, Resources]
    bundles: list[Bundle]
    notes: list[str]


def read_nodes(entries: Iterable[Mapping[str, Any]]) -> list[Node]:
    """Returns the living nodes among the entries of `ray.nodes()`."""
    nodes = []
    for entry in entries:
        if entry["Alive"]:
            amount = defaultdict(float, entry["Resources"])
            nodes.append(Node(entry["NodeID"], amount["CPU"], amount["GPU"], amount["memory"] / GB, entry["Labels"]))
    return nodes


def place(experiment: Experiment, nodes: Sequence[Node]) -> Placement:
    """Places the roles of a run on `nodes`. Raises RunFailed, with the numbers, if they do not fit."""
    roles = assign_resources(experiment, nodes)
    if shortage := find_shortage(roles, nodes):
        raise RunFailed(f"resources: {shortage}; ask for less, or name a larger cluster by RAY_ADDRESS")
    asked = roles_of(experiment)
    shares = [f"{role} {given.gpus:g}" for role, given in roles.items() if given.gpus and asked[role].gpus is None]
    notes = [f"GPUs were shared out: {', '.join(shares)}"] if shares else []
    if experiment.placement == "pack":
        return Placement(roles, _bundles(roles, nodes), notes)
    sides = split_nodes(roles, nodes)
    if sides is None:
        notes.append("placement: spread found no nodes for collectors and evaluator beside those for learners; packed")
        return Placement(roles, _bundles(roles, nodes), notes)
    bundles = []
    for members, side in zip(_sides(roles), sides, strict=True):
        on_side = {"ray.io/node-id": f"in({','.join(node.id for node in side)})"}
        bundles += [bundle._replace(selector=bundle.selector | on_side) for bundle in _bundles(members, side)]
    return Placement(roles, bundles, notes)


def roles_of(experiment: Experiment) -> dict[Role, Resources]:
    """Returns the resources that each role of a run asks for; feeders and services ask for nothing."""
    source = NOTHING if experiment.stream else experiment.collector.collector_resources
    return {
        **dict.fromkeys(source_roles(experiment), source),
        EVALUATOR: experiment.evaluation.resources,
        **{learner_role(name): learner.resources for name, learner in experiment.all_learners.items()},
        SERVICES: NOTHING,
    }


def asks_nothing(roles: Roles) -> bool:
    return not any(any(_size(wanted)) for wanted in roles.values())


def assign_resources(experiment: Experiment, nodes: Sequence[Node]) -> dict[Role, Resources]:
    """Returns every role's resources: `gpus` that was left open becomes a share of the GPUs that are left, or 0.

    All roles share a single GPU. Several GPUs are divided in two groups, one for collectors and evaluator and one for
    learners; within its group each role gets a GPU of its own as far as they suffice.
    """
    roles = roles_of(experiment)
    open_roles = {role: wanted for role, wanted in roles.items() if wanted.gpus is None}
    free = _free_gpus({role: wanted for role, wanted in roles.items() if role not in open_roles}, nodes)
    shares = _share_out(open_roles, free, experiment.placement == "spread")
    return roles | {
        role: wanted.model_copy(update={"gpus": shares.get(role, 0.0)}) for role, wanted in open_roles.items()
    }


def _free_gpus(roles: Roles, nodes: Sequence[Node]) -> list[tuple[str, float]]:
    """Node and free share of each GPU that has a useful share left beside `roles`; nothing if `roles` do not fit."""
    spaces = _empty(nodes)
    if _seat(roles, spaces) is None:
        return []
    return [(space.node.id, left) for space in spaces for left in space.gpus if left >= LEAST_SHARE]


def _share_out(roles: Roles, free: Sequence[tuple[str, float]], spread: bool) -> dict[Role, float]:
    """Returns a share of the `free` GPUs for each of `roles`; nothing if there are none."""
    if not free:
        return {}
    acting, learning = _sides(roles)
    collectors = [role for role in acting if role != EVALUATOR]
    evaluator = [role for role in acting if role == EVALUATOR]
    if len(free) == 1 or not collectors or not learning:
        return _deal([*collectors, *learning, *evaluator], free)
    working = len(collectors) + len(learning)
    if len(free) > working:
        cut = len(collectors) + 1  # one for the evaluator alone
    else:
        cut = min(max(round(len(free) * len(collectors) / working), 1), len(free) - 1)
    between_nodes = [index for index in range(1, len(free)) if free[index][0] != free[index - 1][0]]
    if spread and between_nodes:
        cut = min(between_nodes, key=lambda index: abs(index - cut))
    return _deal([*collectors, *evaluator], free[:cut]) | _deal([*learning], free[cut:])


def _deal(roles: Sequence[Role], free: Sequence[tuple[str, float]]) -> dict[Role, float]:
    """Deals `roles` to the GPUs in turn. Roles on one GPU share it equally, but the evaluator gets less."""
    shares = {}
    for index, left in enumerate(sorted((share for _, share in free), reverse=True)):
        weights = {role: EVALUATOR_WEIGHT if role == EVALUATOR else 1.0 for role in roles[index :: len(free)]}
        for role, weight in weights.items():
            shares[role] = math.floor(1000 * left * weight / sum(weights.values())) / 1000
    return shares


def find_shortage(roles: Roles, nodes: Sequence[Node]) -> str:
    """Returns one line with the numbers on the resource that `nodes` lack; empty if all `roles` fit."""
    for role, wanted in roles.items():
        labelled = " and ".join(f"{key}={value}" for key, value in wanted.labels.items())
        fitting = [node for node in nodes if _matches(node, wanted)]
        if not fitting:
            return f"{role} needs a node labelled {labelled}, the cluster has {len(nodes)} without"
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
            f"{needs} do not fit on the nodes ({sizes}): a role needs one node and a share of a GPU one GPU, "
            "so the resources that are left over may be in pieces too small"
        )
    return ""


def describe_wait(roles: Roles, free: Mapping[str, float], nodes: Sequence[Node]) -> str:
    """Returns one line on the resources that a run needs, and how much of them is `free`, by Ray's names."""
    parts = []
    for kind in (kind for kind in _KINDS if _total(roles, kind)):
        has = sum(getattr(node, kind) for node in nodes)
        left = free.get(_RAY_NAMES[kind], 0.0) / (GB if kind == "memory_gb" else 1)
        parts.append(f"{_needs(roles, kind)}, {left:.4g} of {has:.4g} are free")
    return f"this run needs {' and '.join(parts)}" if parts else "no node takes the run's roles"


def pack(roles: Mapping[Key, Resources], nodes: Sequence[Node]) -> dict[Key, Seat] | None:
    """Seats `roles` on empty `nodes`, the largest role first, each where it fits first; none if one does not fit."""
    return _seat(roles, _empty(nodes))


def split_nodes(roles: Roles, nodes: Sequence[Node]) -> tuple[list[Node], list[Node]] | None:
    """Splits `nodes`, as evenly as fits, for collectors and evaluator and for learners; none if no split fits."""
    acting, learning = _sides(roles)
    ordered = sorted(nodes, key=_size)
    for cut in sorted(range(1, len(nodes)), key=lambda cut: abs(2 * cut - len(nodes))):
        small, large = ordered[:cut], ordered[cut:]
        for first, second in ((small, large), (large, small)):
            if pack(acting, first) is not None and pack(learning, second) is not None:
                return first, second
    return None


class _Space:
    """Resources that are left of a node while roles are seated on it."""

    def __init__(self, node: Node) -> None:
        self.node = node
        self.gpus = [1.0] * int(node.gpus)
        self._cpus, self._memory_gb = node.cpus, node.memory_gb

    def take(self, wanted: Resources) -> Seat | None:
        """Seats a role here if it fits."""
        gpus = wanted.gpus or 0.0
        share = min(gpus, 1.0)
        chosen = [gpu for gpu, left in enumerate(self.gpus) if left + _ROUNDING >= share][: math.ceil(gpus)]
        if (
            not _matches(self.node, wanted)
            or len(chosen) < math.ceil(gpus)
            or wanted.cpus > self._cpus + _ROUNDING
            or wanted.memory_gb > self._memory_gb + _ROUNDING
        ):
            return None
        self._cpus -= wanted.cpus
        self._memory_gb -= wanted.memory_gb
        for gpu in chosen:
            self.gpus[gpu] -= share
        return self.node.id, tuple(chosen)


def _empty(nodes: Sequence[Node]) -> list[_Space]:
    return [_Space(node) for node in sorted(nodes, key=_size)]


def _seat(roles: Mapping[Key, Resources], spaces: Sequence[_Space]) -> dict[Key, Seat] | None:
    seats = {}
    for role in sorted(roles, key=lambda role: (bool(roles[role].labels), *_size(roles[role])), reverse=True):
        seat = next((seat for space in spaces if (seat := space.take(roles[role]))), None)
        if seat is None:
            return None
        seats[role] = seat
    return seats


def _bundles(roles: Roles, nodes: Sequence[Node]) -> list[Bundle]:
    """A bundle for each role, but only one for roles that share a GPU, because Ray places each bundle by itself."""
    seats = pack(roles, nodes)
    assert seats is not None
    together: dict[Hashable, dict[Role, Resources]] = {}
    for role, wanted in roles.items():
        shares_gpu = 0 < (wanted.gpus or 0.0) < 1
        together.setdefault(seats[role] if shares_gpu else role, {})[role] = wanted
    bundles = []
    for members in together.values():
        amounts = {_RAY_NAMES[kind]: round(_total(members, kind), 4) for kind in ("gpus", "cpus")}
        amounts["memory"] = max(int(GB * _total(members, "memory_gb")), 1)  # Ray has no empty bundle: one byte
        selector = {key: value for wanted in members.values() for key, value in wanted.labels.items()}
        bundles.append(Bundle(tuple(members), {name: amount for name, amount in amounts.items() if amount}, selector))
    return bundles


def _sides(roles: Roles) -> tuple[Roles, Roles]:
    """Splits roles into collectors, feeders and the evaluator, and learners and services."""
    learning = {role: wanted for role, wanted in roles.items() if role.kind in (Kind.SERVICES, Kind.LEARNER)}
    return {role: wanted for role, wanted in roles.items() if role not in learning}, learning


def _size(of: Node | Resources) -> tuple[float, float, float]:
    return of.gpus or 0.0, of.cpus, of.memory_gb


def _matches(node: Node, wanted: Resources) -> bool:
    return all(node.labels.get(key) == value for key, value in wanted.labels.items())


def _amount(wanted: Resources, kind: str) -> float:
    return getattr(wanted, kind) or 0.0


def _total(roles: Roles, kind: str) -> float:
    return sum(_amount(wanted, kind) for wanted in roles.values())


def _needs(roles: Roles, kind: str) -> str:
    """Returns a text such as `3 GPUs (collector-0 1, learner-active 2)`."""
    each = ", ".join(f"{role} {_amount(wanted, kind):g}" for role, wanted in roles.items() if _amount(wanted, kind))
    return f"{_say(_total(roles, kind), kind)} ({each})"


def _say(amount: float, kind: str) -> str:
    return f"{amount:.4g} {_KINDS[kind].removesuffix('s') if amount == 1 else _KINDS[kind]}"
