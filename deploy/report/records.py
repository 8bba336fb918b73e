"""Records of a matrix, made by `read.py`: one `Trial` for each learner of each finished run."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from deploy.matrix.expand import MatrixConfig
from deploy.report.statistics import Values
from shared.envs.base import GoalEnv


@dataclass(frozen=True, eq=False)
class Treatment:
    """Conditions under which one learner of one run trained."""

    run: str
    learner: str
    objective: str
    learner_depth: int
    active: bool  # the collector learner, which is never a cell
    fed: bool  # trained on the recorded stream of another run, without collectors
    chunk: int  # actions that the learner's policy decides at once
    collector_chunk: int
    discount: float  # of later rows as goals, and of returns
    critic_layers: float  # hidden Dense layers between the critic's inputs and its heads; unknown in older versions
    gradient_steps: float
    samples_per_insert: float
    sample_age: float


class Outcomes(NamedTuple):
    """Episodes of a learner's last five evaluations. `goals` `[k, G]`. `shortest_paths` `[k]`. `reached` `[k]` bool."""

    goals: Values
    shortest_paths: Values
    reached: NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class Trial(Treatment):
    """Results of one learner of one run. E: its evaluations; the first one is of the untrained policy."""

    env: str  # that of the training, or a further one of the evaluation as `place` names it
    headline: bool  # evaluated in the first environment of the evaluation
    collector_depth: int
    seed: int
    steps: Values  # [E] environment steps
    seconds: Values  # [E] wall clock from the start of the run until the learner had this policy; NaN if unknown
    time_at_goal: Values  # [E] environment steps of an episode
    final: float  # time at goal, mean over the last five evaluations
    last: float  # time at goal at the last evaluation
    area: float  # mean of time at goal over training
    success_rate: float  # mean over the last five evaluations
    behaviour: Mapping[str, float]  # each measure of behaviour, mean over the last five evaluations
    outcomes: Outcomes | None  # unknown in older versions
    age_spread: float  # most that sample ages of one run's learners may differ in lockstep, in steps of an environment
    parameters: float
    gradient_steps_per_second: float


@dataclass(frozen=True, eq=False)
class Exploration:
    """Coverage by all collectors of one run. P: points of the run; the last one is its end."""

    run: str
    env: str
    collector_depth: int
    seed: int
    steps: Values  # [P] environment steps
    coverage: Values  # [P] share of the cells of goal space visited so far
    entropy: float  # entropy of all visits, as a share of its maximum
    env_steps_per_second: float


@dataclass(frozen=True)
class Missing:
    """A run that is not in the report, or a part of a run; `part` is empty for a whole run."""

    run: str
    part: str
    reason: str


@dataclass
class MatrixRecord:
    """Content of a matrix's folder. `provenance`: each different origin of the runs, once."""

    directory: Path
    matrix: MatrixConfig
    runs: int
    done: int = 0
    trials: list[Trial] = field(default_factory=list)
    explorations: list[Exploration] = field(default_factory=list)
    missing: list[Missing] = field(default_factory=list)
    provenance: list[dict[str, Any]] = field(default_factory=list)
    episode_lengths: dict[str, int] = field(default_factory=dict)
    envs: dict[str, GoalEnv] = field(default_factory=dict)
    """Environments of the evaluations, by `place`; one that this machine cannot make is missing."""
    evaluations: dict[str, list[str]] = field(default_factory=dict)
    """Names of the environments of the evaluations, by training environment."""

    @property
    def headline_trials(self) -> list[Trial]:
        """The trials in the first environment of the evaluations."""
        return [trial for trial in self.trials if trial.headline]


def place(env: str, evaluated_in: str, headline: bool) -> str:
    """Returns the name under which a report has what was trained in `env` and evaluated in `evaluated_in`."""
    return env if headline else f"{env}-in-{evaluated_in}"
