"""What a report holds. `analyse.py` makes it; the page, the figures and the tables are all drawn from it."""

from dataclasses import dataclass
from typing import Any

from deploy.report.read import Unfinished, Values
from deploy.report.statistics import Band, DepthRatio, Difference, Estimate


@dataclass(frozen=True)
class Cell:
    """One collector depth and one learner depth over the seeds that are done; `marks`: why it is not comparable."""

    collector_depth: int
    learner_depth: int
    seeds: tuple[int, ...]
    time_at_goal: Estimate
    success_rate: Estimate
    area: Estimate
    marks: tuple[str, ...]


@dataclass(frozen=True)
class Comparison:
    """Two learners on the same streams, seed by seed: time at goal at the end, and over the whole curve."""

    collector_depth: int
    deeper: int
    shallower: int
    time_at_goal: Difference
    area: Difference


@dataclass(frozen=True)
class Gain:
    """What depth gains by `cause`, in time at goal; `meaning`: the difference that this is."""

    cause: str
    meaning: str
    difference: Difference


@dataclass(frozen=True)
class CriticalStep:
    """A step in depth along `axis`; `held`: the other axis' depth, none where there is none."""

    axis: str
    held: int | None
    step: DepthRatio


@dataclass(frozen=True, eq=False)
class Curve:
    """A learner's curve over the seeds: by environment steps, and by wall clock. E: evaluations."""

    collector_depth: int
    learner_depth: int
    active: bool
    seeds: tuple[int, ...]
    steps: Values  # [E]
    by_steps: Band
    seconds: Values  # [E]; empty where the learner was fed: it waited for no collector
    by_seconds: Band | None


@dataclass(frozen=True, eq=False)
class Explored:
    """What collectors of one depth saw, over the seeds. P: points of a run."""

    collector_depth: int
    seeds: tuple[int, ...]
    coverage: Estimate
    entropy: Estimate
    env_steps_per_second: Estimate
    steps: Values  # [P]
    by_steps: Band


@dataclass(frozen=True)
class Cost:
    """A learner's size, and its speed beside the others of its runs."""

    learner_depth: int
    parameters: int
    gradient_steps_per_second: Estimate


@dataclass(frozen=True)
class Fairness:
    """How one learner of one run was treated. `mark`: what sets it apart; empty where nothing does."""

    run: str
    learner_depth: int
    active: bool
    fed: bool
    gradient_steps: int
    samples_per_insert: float
    sample_age: float
    mark: str


@dataclass(frozen=True)
class EnvironmentReport:
    env: str
    evaluated_in: str
    episode_length: int | None
    collector_depths: tuple[int, ...]
    learner_depths: tuple[int, ...]
    cells: tuple[Cell, ...]
    active: tuple[Cell, ...]
    """Collector learners: ordinary training, beside the matrix."""
    differences: tuple[Comparison, ...]
    """Each learner depth minus the shallowest one, on the same collector's streams."""
    neighbours: tuple[Comparison, ...]
    gains: tuple[Gain, ...]
    critical: tuple[CriticalStep, ...]
    curves: tuple[Curve, ...]
    explored: tuple[Explored, ...]
    costs: tuple[Cost, ...]
    fairness: tuple[Fairness, ...]


@dataclass(frozen=True)
class Report:
    name: str
    seeds: tuple[int, ...]
    runs: int
    done: int
    unfinished: tuple[Unfinished, ...]
    envs: tuple[EnvironmentReport, ...]
    provenance: tuple[dict[str, Any], ...]
    """Each different origin of the runs once: one entry means that one version made them all."""
    matrix: dict[str, Any]
