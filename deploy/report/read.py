"""What a matrix's runs wrote, read back: one `Trial` for each learner of each run that is done."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import yaml
from numpy.typing import NDArray

from collector.collector import coverage
from deploy.matrix.expand import MatrixConfig, MatrixRun, load_matrix
from deploy.matrix.folder import MATRIX, is_done, progress, runs_in
from shared.config import ACTIVE
from shared.errors import ConfigError
from shared.metrics import Row, read_metrics
from shared.roles import EVALUATOR, learner_role, source_roles

Values = NDArray[np.float64]

COVERAGE_POINTS = 40


@dataclass(frozen=True, eq=False)
class Trial:
    """One learner of one run. E: its evaluations, the untrained policy's first."""

    run: str
    env: str
    collector_depth: int
    learner_depth: int
    seed: int
    active: bool
    """The collector learner; never a cell."""
    fed: bool
    """Trained on the recorded stream of another run, with no collector at work."""
    steps: Values  # [E] environment steps
    seconds: Values  # [E] wall clock from the run's start until the learner had this policy
    time_at_goal: Values  # [E] environment steps of an episode
    success_rate: Values  # [E]
    gradient_steps: int
    samples_per_insert: float
    sample_age: float
    age_spread: float
    """Environment-local steps that the ages of one run's learners may lie apart in lockstep."""
    parameters: int
    gradient_steps_per_second: float


@dataclass(frozen=True, eq=False)
class Exploration:
    """What the collectors of one run saw. P: a few points of the run, the last one its end."""

    run: str
    env: str
    collector_depth: int
    seed: int
    steps: Values  # [P] environment steps
    coverage: Values  # [P] share of goal space's cells visited so far
    entropy: float  # of all visits, as a share of its maximum
    env_steps_per_second: float


class Unfinished(NamedTuple):
    """A run without results, and how far it came."""

    run: str
    state: str


class MatrixRecord(NamedTuple):
    """Everything that a report is made of. `provenance`: what every run's config.yaml says of its origin."""

    directory: Path
    matrix: MatrixConfig
    trials: list[Trial]
    explorations: list[Exploration]
    unfinished: list[Unfinished]
    provenance: list[dict[str, Any]]
    episode_lengths: dict[str, int]


def read_matrix(directory: Path) -> MatrixRecord:
    """The matrix in `directory`, whole or half done. Raises ConfigError where there is none."""
    if not (directory / MATRIX).is_file():
        raise ConfigError(f"{directory}: holds no matrix; name a folder that `fathom matrix` filled")
    matrix = load_matrix(directory / MATRIX)
    record = MatrixRecord(directory, matrix, [], [], [], [], {})
    for run in runs_in(matrix, directory):
        _read_run(record, run)
    return record


def _read_run(record: MatrixRecord, run: MatrixRun) -> None:
    run_dir = record.directory / run.name
    if not is_done(run_dir, run):
        record.unfinished.append(Unfinished(run.name, progress(run_dir)))
        return
    summary = json.loads((run_dir / "summary.json").read_text())
    status = json.loads((run_dir / "status.json").read_text())
    record.provenance.append(yaml.safe_load((run_dir / "config.yaml").read_text())["provenance"])
    record.episode_lengths[run.experiment.env] = summary["plan"]["window_length"]
    evaluations = read_metrics(run_dir, EVALUATOR)
    for name in summary["learners"]:
        updates = read_metrics(run_dir, learner_role(name))
        rows = [row for row in evaluations if row["learner"] == name]
        record.trials.append(_trial(run, name, summary, rows, updates, status))
    if not run.fed:
        record.explorations.append(_exploration(run, run_dir, summary))


def _seconds(status: Row, time: float) -> float:
    """Wall clock at `time`, without what lay between the run's lives."""
    begun, behind = status["started"], 0.0
    for life in status.get("resumed", []):
        if life["time"] <= time:
            begun, behind = life["time"], life["seconds"]
    return behind + time - begun


def _trial(
    run: MatrixRun, name: str, summary: dict[str, Any], evaluations: list[Row], updates: list[Row], status: Row
) -> Trial:
    plan, learner = summary["plan"], summary["learners"][name]
    # A learner that died may have taken a row along; evaluations are at most one row apart from others.
    counts = [0, *(row["updates"] for row in updates)]
    seconds = [0.0, *(_seconds(status, row["time"]) for row in updates)]
    # The limiter holds each learner within E samples of what is due, to either side.
    apart = 2 * plan["error_buffer"] / plan["samples_per_insert"] / plan["environments"] * plan["unroll_length"]
    return Trial(
        run=run.name,
        env=run.experiment.env,
        collector_depth=run.collector_depth,
        learner_depth=learner["depth"],
        seed=run.experiment.seed,
        active=name == ACTIVE,
        fed=run.fed,
        steps=_column(evaluations, "env_steps"),
        seconds=np.interp(_column(evaluations, "updates"), counts, seconds),
        time_at_goal=_column(evaluations, "time_at_goal"),
        success_rate=_column(evaluations, "success_rate"),
        gradient_steps=learner["gradient_steps"],
        samples_per_insert=learner["samples_per_insert"],
        sample_age=learner["sample_age"],
        age_spread=apart,
        parameters=learner["parameters"],
        gradient_steps_per_second=learner["gradient_steps_per_second"],
    )


def _exploration(run: MatrixRun, run_dir: Path, summary: dict[str, Any]) -> Exploration:
    roles = [read_metrics(run_dir, role) for role in source_roles(run.experiment)]
    unrolls = list(zip(*roles, strict=True))  # of every collector at once
    points = np.unique(np.linspace(0, len(unrolls) - 1, COVERAGE_POINTS).astype(int))
    visits = [np.sum([row["visits"] for row in unrolls[point]], axis=0) for point in points]
    return Exploration(
        run=run.name,
        env=run.experiment.env,
        collector_depth=run.collector_depth,
        seed=run.experiment.seed,
        steps=np.array([sum(row["env_steps"] for row in unrolls[point]) for point in points], np.float64),
        coverage=np.array([coverage(each)["coverage"] for each in visits]),
        entropy=summary["collector"]["coverage_entropy"],
        env_steps_per_second=summary["collector"]["env_steps_per_second"],
    )


def _column(rows: list[Row], name: str) -> Values:
    return np.array([row[name] for row in rows], np.float64)
