"""Results of a matrix, read from its folder: one `Trial` for each learner of each finished run."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import yaml

from collector.collector import coverage
from deploy.matrix.expand import MatrixConfig, MatrixRun, load_matrix
from deploy.matrix.folder import MATRIX, is_done, progress, runs_in
from deploy.report.statistics import Values, area_under_curve
from shared.config import ACTIVE
from shared.errors import ConfigError
from shared.metrics import Row, read_metrics
from shared.roles import EVALUATOR, learner_role, source_roles

COVERAGE_POINTS = 40
_FROM_SUMMARY = "gradient_steps", "samples_per_insert", "sample_age", "parameters", "gradient_steps_per_second"


@dataclass(frozen=True, eq=False)
class Treatment:
    """Conditions under which one learner of one run trained."""

    run: str
    learner_depth: int
    active: bool  # the collector learner, which is never a cell
    fed: bool  # trained on the recorded stream of another run, without collectors
    gradient_steps: int
    samples_per_insert: float
    sample_age: float


@dataclass(frozen=True, eq=False)
class Trial(Treatment):
    """Results of one learner of one run. E: its evaluations; the first one is of the untrained policy."""

    env: str
    collector_depth: int
    seed: int
    steps: Values  # [E] environment steps
    seconds: Values  # [E] wall clock from the start of the run until the learner had this policy
    time_at_goal: Values  # [E] environment steps of an episode
    final: float  # time at goal at the last evaluation
    area: float  # mean of time at goal over training
    success_rate: float  # at the last evaluation
    age_spread: float  # most that sample ages of one run's learners may differ in lockstep, in steps of an environment
    parameters: int
    gradient_steps_per_second: float


@dataclass(frozen=True, eq=False)
class Exploration:
    """Coverage by all collectors of one run. P: up to `COVERAGE_POINTS` points of the run; the last one is its end."""

    run: str
    env: str
    collector_depth: int
    seed: int
    steps: Values  # [P] environment steps
    coverage: Values  # [P] share of the cells of goal space visited so far
    entropy: float  # entropy of all visits, as a share of its maximum
    env_steps_per_second: float


@dataclass(frozen=True)
class Unfinished:
    """A run without results; `state` says how far it came."""

    run: str
    state: str


class MatrixRecord(NamedTuple):
    """Content of a matrix's folder. `provenance`: each different origin of the runs, once."""

    directory: Path
    matrix: MatrixConfig
    trials: list[Trial]
    explorations: list[Exploration]
    unfinished: list[Unfinished]
    provenance: list[dict[str, Any]]
    episode_lengths: dict[str, int]


def read_matrix(directory: Path) -> MatrixRecord:
    """Reads the matrix in `directory`, whole or half done. Raises ConfigError where there is none."""
    if not (directory / MATRIX).is_file():
        raise ConfigError(f"{directory}: holds no matrix; name a folder that `fathom matrix` filled")
    matrix = load_matrix(directory / MATRIX)
    record = MatrixRecord(directory, matrix, [], [], [], [], {})
    for run in runs_in(matrix, directory):
        run_dir = directory / run.name
        if not is_done(run_dir, run):
            record.unfinished.append(Unfinished(run.name, progress(run_dir)))
            continue
        summary = json.loads((run_dir / "summary.json").read_text())
        status = json.loads((run_dir / "status.json").read_text())
        origin = yaml.safe_load((run_dir / "config.yaml").read_text())["provenance"]
        origin.pop("command", None)  # differs by run and says nothing of the version
        if origin not in record.provenance:
            record.provenance.append(origin)
        record.episode_lengths[run.experiment.env] = summary["plan"]["window_length"]
        evaluations = read_metrics(run_dir, EVALUATOR)
        for name in summary["learners"]:
            updates = read_metrics(run_dir, learner_role(name))
            rows = [row for row in evaluations if row["learner"] == name]
            record.trials.append(_trial(run, name, summary, rows, updates, status))
        if not run.fed:
            record.explorations.append(_exploration(run, run_dir, summary))
    return record


def _seconds(status: Row, time: float) -> float:
    """Returns the wall clock at `time`, without the time between the run's incarnations."""
    started, elapsed = status["started"], 0.0
    for resumed in status.get("resumed", []):
        if resumed["time"] <= time:
            started, elapsed = resumed["time"], resumed["seconds"]
    return elapsed + time - started


def _trial(
    run: MatrixRun, name: str, summary: dict[str, Any], evaluations: list[Row], updates: list[Row], status: Row
) -> Trial:
    plan, learner = summary["plan"], summary["learners"][name]
    env_steps, at_updates, time_at_goal, success_rate = (
        np.array([row[column] for row in evaluations], np.float64)
        for column in ("env_steps", "updates", "time_at_goal", "success_rate")
    )
    # A row may be missing where a learner died; the time of that update is then interpolated.
    counts = [0, *(row["updates"] for row in updates)]
    seconds = [0.0, *(_seconds(status, row["time"]) for row in updates)]
    # The limiter keeps each learner within `error_buffer` samples of the samples due, to either side.
    age_spread = 2 * plan["error_buffer"] / plan["samples_per_insert"] / plan["environments"] * plan["unroll_length"]
    return Trial(
        run=run.name,
        env=run.experiment.env,
        collector_depth=run.collector_depth,
        learner_depth=learner["depth"],
        seed=run.experiment.seed,
        active=name == ACTIVE,
        fed=run.fed,
        steps=env_steps,
        seconds=np.interp(at_updates, counts, seconds),
        time_at_goal=time_at_goal,
        final=time_at_goal[-1],
        area=area_under_curve(env_steps, time_at_goal),
        success_rate=success_rate[-1],
        age_spread=age_spread,
        **{field: learner[field] for field in _FROM_SUMMARY},
    )


def _exploration(run: MatrixRun, run_dir: Path, summary: dict[str, Any]) -> Exploration:
    roles = [read_metrics(run_dir, role) for role in source_roles(run.experiment)]
    unrolls = list(zip(*roles, strict=True))  # one row of every collector
    points = [unrolls[index] for index in np.unique(np.linspace(0, len(unrolls) - 1, COVERAGE_POINTS).astype(int))]
    return Exploration(
        run=run.name,
        env=run.experiment.env,
        collector_depth=run.collector_depth,
        seed=run.experiment.seed,
        steps=np.array([sum(row["env_steps"] for row in rows) for rows in points], np.float64),
        coverage=np.array([coverage(np.sum([row["visits"] for row in rows], axis=0))["coverage"] for rows in points]),
        entropy=summary["collector"]["coverage_entropy"],
        env_steps_per_second=summary["collector"]["env_steps_per_second"],
    )
