"""The roles of a run. A role is a place that one process at a time fills; a restarted process has the same role."""

from enum import StrEnum
from typing import NamedTuple

from shared.config import ACTIVE, Experiment


class Kind(StrEnum):
    COLLECTOR = "collector"
    FEEDER = "feeder"
    LEARNER = "learner"
    EVALUATOR = "evaluator"
    REPLAY = "replay"
    STORE = "store"
    SERVICES = "services"
    """The replay server and the parameter store together, which are placed as one."""


class Role(NamedTuple):
    """`id`: the index of a collector or feeder, the name of a learner; empty where a run has one role of the kind.

    As text (`collector-0`, `learner-deep`, `evaluator`) a role names files, actors and rows of tables.
    """

    kind: Kind
    id: str = ""

    def __str__(self) -> str:
        return f"{self.kind}-{self.id}" if self.id else str(self.kind)

    @property
    def title(self) -> str:
        """The role as messages call it."""
        return _TITLES.get(self.kind, str(self))

    @property
    def is_source(self) -> bool:
        """True for collectors and feeders, which insert unrolls."""
        return self.kind in (Kind.COLLECTOR, Kind.FEEDER)

    @property
    def is_learner(self) -> bool:
        return self.kind is Kind.LEARNER


_TITLES = {Kind.REPLAY: "replay server", Kind.STORE: "parameter store"}

EVALUATOR, REPLAY = Role(Kind.EVALUATOR), Role(Kind.REPLAY)
STORE, SERVICES = Role(Kind.STORE), Role(Kind.SERVICES)


def learner_role(name: str) -> Role:
    return Role(Kind.LEARNER, name)


COLLECTOR_LEARNER = learner_role(ACTIVE)


def learner_roles(experiment: Experiment) -> list[Role]:
    """The role of every learner, the collector learner first."""
    return [learner_role(name) for name in experiment.all_learners]


def source_roles(experiment: Experiment) -> list[Role]:
    """The role of every collector, or of every feeder where the experiment names a stream."""
    kind = Kind.FEEDER if experiment.stream else Kind.COLLECTOR
    return [Role(kind, str(index)) for index in range(experiment.collector.actors)]
