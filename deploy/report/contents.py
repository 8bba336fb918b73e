"""Contents of a report, made by `analyse.py`; the page, the figures, the tables and the JSON file show them."""

from collections.abc import Mapping
from dataclasses import dataclass
from operator import attrgetter
from typing import Any

from deploy.report.aggregate import Aggregates
from deploy.report.records import Missing, Treatment
from deploy.report.statistics import Band, DepthRatio, Difference, Estimate, Values


@dataclass(frozen=True)
class Cell:
    """Results of a collector depth and a learner depth over finished seeds.

    `time_at_goal` and `success_rate`: mean over the last five evaluations. `last`: time at goal at the last one.
    `marks`: why trials are not comparable.
    """

    objective: str
    collector_depth: int
    learner_depth: int
    seeds: tuple[int, ...]
    time_at_goal: Estimate
    last: Estimate
    success_rate: Estimate
    area: Estimate
    marks: tuple[str, ...]


@dataclass(frozen=True)
class Comparison:
    """Two learners on the same streams, seed by seed: time at goal as in a cell, and over the whole curve (`area`)."""

    objective: str
    collector_depth: int
    deeper: int
    shallower: int
    time_at_goal: Difference
    area: Difference


@dataclass(frozen=True)
class Gain:
    """Gain of depth in time at goal, by `cause`; `meaning` says in words what is subtracted from what."""

    objective: str
    cause: str
    meaning: str
    difference: Difference


@dataclass(frozen=True)
class ObjectiveGain:
    """Gain from the shallowest to the deepest learner with one objective, beside the same gain with others.

    `collector_depth`: None for the mean over all collector depths.
    """

    objective: str
    collector_depth: int | None
    shallower: int
    deeper: int
    at_shallower: Estimate
    at_deeper: Estimate
    difference: Difference


@dataclass(frozen=True)
class GainDifference:
    """Gain of depth with `objective` minus that with `other` on the same streams, seed by seed; see ObjectiveGain."""

    objective: str
    other: str
    collector_depth: int | None
    difference: Difference


@dataclass(frozen=True)
class CriticalStep:
    """A step in depth along `axis`. `held`: the depth on the other axis; None for collector learners."""

    objective: str
    axis: str
    held: int | None
    step: DepthRatio


@dataclass(frozen=True, eq=False)
class Curve:
    """Learning curve over the seeds, by environment steps and by wall clock. E: evaluations."""

    objective: str
    collector_depth: int
    learner_depth: int
    active: bool
    seeds: tuple[int, ...]
    steps: Values  # [E]
    by_steps: Band
    seconds: Values  # [E]; empty for a fed learner, which waited for no collector
    by_seconds: Band | None


@dataclass(frozen=True, eq=False)
class Explored:
    """Coverage by collectors of one depth, over the seeds. P: points of a run."""

    collector_depth: int
    seeds: tuple[int, ...]
    coverage: Estimate
    entropy: Estimate
    env_steps_per_second: Estimate
    steps: Values  # [P]
    by_steps: Band


@dataclass(frozen=True)
class Cost:
    """Size of a learner, and its speed beside the other learners of its runs."""

    objective: str
    learner_depth: int
    parameters: float
    gradient_steps_per_second: Estimate


@dataclass(frozen=True, eq=False)
class Fairness(Treatment):
    """A row of the fairness table. `mark`: how the learner's treatment differs; empty where it does not."""

    mark: str


@dataclass(frozen=True)
class BehaviourCell:
    """Measures of behaviour at a place of the matrix, by name; each over the seeds that have it."""

    objective: str
    collector_depth: int
    learner_depth: int
    active: bool
    measures: Mapping[str, Estimate]


@dataclass(frozen=True)
class Jump:
    """A step in depth of a measure; `step.critical` marks one that stands clear of the others, up or down.

    `axis` and `held` are those of a `CriticalStep`.
    """

    objective: str
    axis: str
    held: int | None
    measure: str
    step: DepthRatio


@dataclass(frozen=True)
class Change:
    """Change of success and of its distribution over goals at a step in depth, seed by seed.

    `split...`: see `behaviours.split`; `split` is None if no seed has it at both depths. `unlocked` of the `goals` are
    never reached at the shallower depth and always at the deeper one, `lost` the reverse.
    """

    objective: str
    axis: str
    held: int | None
    shallower: int
    deeper: int
    success: Difference
    split_at_shallower: float
    split_at_deeper: float
    split: Difference | None
    goals: int
    unlocked: int
    lost: int
    verdict: str


@dataclass(frozen=True, eq=False)
class Goals:
    """Success by goal at a place of the matrix, all seeds together. L: goals.

    `names`: row and column of a maze's cell, or a band of distances in the goal's units. `places`: the same as two
    numbers; the first is 0 for a band.
    """

    objective: str
    collector_depth: int
    learner_depth: int
    active: bool
    names: tuple[str, ...]
    places: tuple[tuple[int, int], ...]
    success: Values  # [L]
    episodes: Values  # [L]


@dataclass(frozen=True, eq=False)
class Behaviour:
    """Behaviour along depth in one environment. `walls` `[rows, columns]` bool: the maze, in whose cells goals lie."""

    measures: tuple[str, ...]
    cells: tuple[BehaviourCell, ...]
    jumps: tuple[Jump, ...]
    changes: tuple[Change, ...]
    goals: tuple[Goals, ...]
    walls: Values | None


@dataclass(frozen=True)
class Published:
    """A published result of ordinary training, beside that of collector learners of the same depth.

    `ours`, `theirs`: steps at goal; `env_steps`, `their_env_steps`: environment steps of the training. `error`: None
    where none is published; `error_is` says what it is. `differs`: in what theirs is not comparable.
    """

    objective: str
    chunk: int
    depth: int
    ours: Estimate
    env_steps: float
    theirs: float
    error: float | None
    error_is: str
    their_env_steps: int
    source: str
    link: str
    differs: str


@dataclass(frozen=True)
class EnvironmentReport:
    """Results in one environment of the evaluations. `env`: the training's, or as `records.place` names a further one.

    `headline`: whether this is the first environment of the evaluation; a further one has neither what the collectors
    explored nor what learners cost, which are the same.
    """

    env: str
    trained_in: str
    evaluated_in: str
    headline: bool
    episode_length: int | None
    objectives: tuple[str, ...]  # of the passive learners
    collector_depths: tuple[int, ...]
    learner_depths: tuple[int, ...]
    cells: tuple[Cell, ...]
    active: tuple[Cell, ...]  # collector learners: ordinary training, beside the matrix
    differences: tuple[Comparison, ...]  # each learner depth minus the shallowest, on streams of the same collectors
    neighbours: tuple[Comparison, ...]
    gains: tuple[Gain, ...]
    objective_gains: tuple[ObjectiveGain, ...]  # with one objective alone there are none, as of the differences
    gain_differences: tuple[GainDifference, ...]
    critical: tuple[CriticalStep, ...]
    curves: tuple[Curve, ...]
    behaviour: Behaviour
    explored: tuple[Explored, ...]
    costs: tuple[Cost, ...]
    fairness: tuple[Fairness, ...]
    published: tuple[Published, ...]

    @property
    def title(self) -> str:
        return self.trained_in if self.headline else f"{self.trained_in}, evaluated in {self.evaluated_in}"

    def cell(self, like: Cell, active: bool) -> Cell | None:
        """Returns the cell of the same learners as one of another environment; None if there is none."""
        place = attrgetter("objective", "collector_depth", "learner_depth", "seeds")
        return next((cell for cell in (self.active if active else self.cells) if place(cell) == place(like)), None)

    @property
    def several(self) -> bool:
        """True if passive learners have several objectives, which are compared."""
        return len(self.objectives) > 1

    @property
    def mixed(self) -> bool:
        """True if any two learners, also collector learners, have different objectives."""
        return len({row.objective for row in self.fairness}) > 1

    @property
    def varied(self) -> bool:
        """True if any two learners differ in their objectives, or in constants that the fairness table has of them."""
        return len({(row.objective, row.chunk, row.discount) for row in self.fairness}) > 1


@dataclass(frozen=True)
class Report:
    name: str
    seeds: tuple[int, ...]
    runs: int
    done: int
    missing: tuple[Missing, ...]  # runs that are not in the report, and parts of runs
    envs: tuple[EnvironmentReport, ...]
    aggregates: Aggregates
    provenance: tuple[dict[str, Any], ...]  # each different origin once: with one entry, one version made all runs
    matrix: dict[str, Any]
