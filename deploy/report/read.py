"""Results of a matrix, read from its folder: one `Trial` for each learner of each finished run.

Runs may be restarted, cut short, damaged, or of another version. Whatever the report cannot use is a `Missing` with its
reason. A single number that is unknown is NaN.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import yaml

from collector.behaviour import PREFIX
from collector.collector import coverage
from collector.evaluator import within
from deploy.matrix.expand import MatrixRun, load_matrix
from deploy.matrix.folder import MATRIX, is_done, progress, runs_in
from deploy.report.records import Exploration, MatrixRecord, Missing, Outcomes, Trial, place
from deploy.report.statistics import Values, area_under_curve
from deploy.run.episodes import evaluated_in, read_episodes
from deploy.run.run_dir import read_status
from deploy.run.summary import HEADLINE_EVALUATIONS, headline, read_summary, run_seconds
from shared.config import ACTIVE
from shared.envs.registry import make_envs
from shared.errors import ConfigError
from shared.metrics import Row, read_metrics, read_scalars
from shared.roles import EVALUATOR, learner_role, source_roles

COVERAGE_POINTS = 40
_EPISODE_COLUMNS = "env", "learner", "updates", "goal", "shortest_path", "time_at_goal"
_YAML = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # ten times as fast, where PyYAML was built with it
_FROM_SUMMARY = "gradient_steps", "samples_per_insert", "sample_age", "parameters", "gradient_steps_per_second"
_UNKNOWN_ORIGIN = {"machine": "unknown", "python": "unknown", "versions": {}, "git_revision": "", "git_dirty": False}


def read_matrix(directory: Path) -> MatrixRecord:
    """Reads the matrix in `directory`, whole or half done. Raises ConfigError where there is none."""
    if not (directory / MATRIX).is_file():
        raise ConfigError(f"{directory}: holds no matrix; name a folder that `fathom matrix` filled")
    matrix = load_matrix(directory / MATRIX)
    runs = runs_in(matrix, directory)
    record = MatrixRecord(directory, matrix, len(runs))
    for run in runs:
        run_dir = directory / run.name
        if not is_done(run_dir, run):
            finished = read_status(run_dir).get("state") == "done"
            reason = "done with another configuration" if finished else progress(run_dir)
            record.missing.append(Missing(run.name, "", reason))
            continue
        record.done += 1
        _make_env(record, run)
        try:
            _RunReader(record, run).read()
        except OSError as error:
            record.missing.append(Missing(run.name, "", f"{error.filename or run_dir}: {error.strerror}"))
    return record


def _make_env(record: MatrixRecord, run: MatrixRun) -> None:
    """Adds the environments of a run's evaluations, once."""
    experiment, part = run.experiment, f"goals of {run.experiment.env}"
    if experiment.env in record.evaluations:
        return
    record.evaluations[experiment.env] = _evaluation_envs(run)
    try:
        evaluations = make_envs(experiment).evaluations
    except ConfigError as error:
        record.missing.append(Missing("", part, str(error)))
        return
    record.envs |= {place(experiment.env, name, not at): env for at, (name, env) in enumerate(evaluations.items())}


def _evaluation_envs(run: MatrixRun) -> list[str]:
    return [*(run.experiment.evaluation.envs or (run.experiment.env,))]


class _RunReader:
    """Reads one finished run into the record of its matrix."""

    def __init__(self, record: MatrixRecord, run: MatrixRun) -> None:
        self._record, self._run = record, run
        self._run_dir = record.directory / run.name
        self._status, self._summary = read_status(self._run_dir), read_summary(self._run_dir)
        self._episodes = self._read_episodes()

    def read(self) -> None:
        """Adds trials, exploration and origin; what cannot be used is added to `missing`. Raises OSError."""
        record, run = self._record, self._run
        origin = self._origin()
        if origin not in record.provenance:
            record.provenance.append(origin)
        if not self._summary:
            self._miss("treatment and speed", "summary.json is missing or damaged")
        if not run.fed and not _has_starts(self._status):
            self._miss("wall clock", "status.json is damaged")
        if math.isfinite(length := number(self._summary, "plan", "window_length")):
            record.episode_lengths[run.experiment.env] = int(length)
        evaluations = read_scalars(self._run_dir, EVALUATOR)
        for at, env in enumerate(_evaluation_envs(run)):
            rows = [_within(env, row) for row in evaluations] if at else evaluations
            for name in run.experiment.all_learners:
                trial = self._trial(name, [row for row in rows if row.get("learner") == name], env, not at)
                record.trials += [trial] if trial else []
        if not run.fed:
            exploration = self._exploration()
            record.explorations += [exploration] if exploration else []

    def _miss(self, part: str, reason: str) -> None:
        self._record.missing.append(Missing(self._run.name, part, reason))

    def _origin(self) -> dict[str, Any]:
        """Returns the version and the machine that made the run, without the command, which differs by run."""
        held = yaml.load((self._run_dir / "config.yaml").read_bytes(), _YAML).get("provenance")
        if not isinstance(held, dict):
            self._miss("origin", "config.yaml has no provenance")
            held = {}
        known = {
            name: held[name] for name, unknown in _UNKNOWN_ORIGIN.items() if isinstance(held.get(name), type(unknown))
        }
        return _UNKNOWN_ORIGIN | known

    def _trial(self, name: str, rows: list[Row], env: str, is_headline: bool) -> Trial | None:
        """Returns the results of a learner from its evaluations in an environment; None if they are not whole."""
        run, part = self._run, f"learner {name}" + f" in {env}" * (not is_headline)
        curve = _ascending(rows, "env_steps", "updates", "time_at_goal")
        planned = number(self._status, "updates_planned")
        if len(curve) < 2:
            self._miss(part, f"{len(curve)} evaluations; a learning curve needs at least 2")
            return None
        if curve[-1]["updates"] < planned:
            self._miss(part, f"the last evaluation is of update {curve[-1]['updates']:,.0f} of {planned:,.0f}")
            return None
        learner = {key: number(self._summary, "learners", name, key) for key in _FROM_SUMMARY}
        unknown = [key for key, value in learner.items() if math.isnan(value)]
        if unknown and self._summary:
            self._miss(part, f"summary.json has no {', '.join(unknown)}")
        algorithm = run.experiment.algorithm_of(name)
        env_steps, updates, time_at_goal = (
            np.array([row[column] for row in curve], np.float64) for column in ("env_steps", "updates", "time_at_goal")
        )
        return Trial(
            run=run.name,
            learner=name,
            env=place(run.experiment.env, env, is_headline),
            headline=is_headline,
            collector_depth=run.collector_depth,
            objective=self._record.matrix.objective_of(name),
            chunk=algorithm.chunk,
            collector_chunk=run.experiment.algorithm.chunk,
            discount=algorithm.discount,
            critic_layers=number(self._summary, "learners", name, "critic_layers"),
            learner_depth=run.experiment.learner(name).depth,
            seed=run.experiment.seed,
            active=name == ACTIVE,
            fed=run.fed,
            steps=env_steps,
            seconds=self._seconds(name, updates),
            time_at_goal=time_at_goal,
            final=headline(curve, "time_at_goal"),
            last=time_at_goal[-1],
            area=area_under_curve(env_steps, time_at_goal),
            success_rate=headline(curve, "success_rate"),
            behaviour={each.removeprefix(PREFIX): headline(curve, each) for each in _behaviours(curve)},
            outcomes=self._outcomes(name, None if is_headline else env),
            age_spread=self._age_spread(),
            **learner,
        )

    def _outcomes(self, name: str, env: str | None) -> Outcomes | None:
        """Returns the outcomes of a learner's last episodes; None without the run's table.

        `env`: the environment of the evaluation; None: the first one.
        """
        if self._episodes is None:
            return None
        episodes = evaluated_in(self._episodes, env).filter(pc.field("learner") == name)
        evaluations = [updates for updates in pc.unique(episodes["updates"]).to_pylist() if updates > 0]
        last = sorted(evaluations)[-HEADLINE_EVALUATIONS:]
        episodes = episodes.filter(pc.field("updates").isin(last))
        if not len(episodes):  # of a run that an older version evaluated
            return None
        return Outcomes(
            goals=np.array(episodes["goal"].to_pylist(), np.float64),
            shortest_paths=episodes["shortest_path"].to_numpy(),
            reached=episodes["time_at_goal"].to_numpy() > 0,
        )

    def _read_episodes(self) -> pa.Table | None:
        try:
            return read_episodes(self._run_dir, _EPISODE_COLUMNS)
        except OSError as error:
            self._miss("episodes", str(error.strerror))
            return None

    def _seconds(self, name: str, updates: Values) -> Values:
        """Returns the wall clock `[E]` at which a learner had made `updates` `[E]`; NaN if it is unknown."""
        if not _has_starts(self._status):
            return np.full(len(updates), np.nan)
        rows = _ascending(read_scalars(self._run_dir, learner_role(name), ("updates", "time")), "updates", "time")
        # A row may be missing where a learner died; the time of that update is then interpolated.
        counts = np.array([0, *(row["updates"] for row in rows)], np.float64)
        seconds = [0.0, *(run_seconds(self._status, row["time"]) for row in rows)]
        if counts[-1] >= updates[-1]:
            return np.interp(updates, counts, seconds)
        if not self._run.fed:  # a fed learner has no wall clock in the report
            reason = f"its rows end at update {counts[-1]:,.0f} of {updates[-1]:,.0f}"
            self._miss(f"wall clock of learner {name}", reason)
        return np.full(len(updates), np.nan)

    def _age_spread(self) -> float:
        """The limiter keeps each learner within `error_buffer` samples of the samples due, to either side."""
        names = "error_buffer", "samples_per_insert", "environments", "unroll_length"
        error_buffer, samples_per_insert, environments, unroll_length = (
            number(self._summary, "plan", name) or math.nan for name in names
        )
        return 2 * error_buffer / samples_per_insert / environments * unroll_length

    def _exploration(self) -> Exploration | None:
        """Returns the coverage of a run; None if the rows of its collectors are not whole."""
        run = self._run
        sources = {
            str(role): [
                row
                for row in _ascending(read_metrics(self._run_dir, role), "env_steps", "time")
                if _are_counts(row.get("visits"))
            ]
            for role in source_roles(run.experiment)
        }
        if reason := self._why_not_whole(sources):
            self._miss("coverage", reason)
            return None
        points = list(_points([*sources.values()]))
        visits = [np.sum([row["visits"] for row in rows], axis=0) for rows in points]
        return Exploration(
            run=run.name,
            env=run.experiment.env,
            collector_depth=run.collector_depth,
            seed=run.experiment.seed,
            steps=np.array([sum(row["env_steps"] for row in rows) for rows in points], np.float64),
            coverage=np.array([coverage(each)["coverage"] for each in visits]),
            entropy=coverage(visits[-1])["coverage_entropy"],
            env_steps_per_second=number(self._summary, "collector", "env_steps_per_second"),
        )

    def _why_not_whole(self, sources: Mapping[str, Sequence[Row]]) -> str:
        """Returns why the rows of the collectors do not give the coverage of a run; empty if they do."""
        for role, rows in sources.items():
            if not rows:
                return f"{role} has no rows with visits"
        if len({len(row["visits"]) for rows in sources.values() for row in rows}) > 1:
            return "visits are of different numbers of cells"
        made, planned = sum(rows[-1]["env_steps"] for rows in sources.values()), number(self._status, "env_steps")
        return f"the collectors' rows end at {made:,} of {planned:,} environment steps" if made < planned else ""


def _within(env: str, row: Row) -> Row:
    """Returns what a row of evaluations has of a further environment, by the names of the first."""
    prefix = within(env)
    shared = {name: row[name] for name in ("learner", "updates", "env_steps") if name in row}
    return shared | {name.removeprefix(prefix): value for name, value in row.items() if name.startswith(prefix)}


def _behaviours(evaluations: Sequence[Row]) -> list[str]:
    """Returns the measures of behaviour that any of these rows has."""
    return list(dict.fromkeys(name for row in evaluations for name in row if name.startswith(PREFIX)))


def number(values: Any, *path: str) -> float:
    """Returns the finite number at `path` in nested dicts; NaN if there is none."""
    for key in path:
        values = values.get(key) if isinstance(values, dict) else None
    return values if isinstance(values, (int, float)) and math.isfinite(values) else math.nan


def _has_starts(status: dict[str, Any]) -> bool:
    """Returns true if a status has the start of the run and of each resume."""
    resumed = status.get("resumed", [])
    starts = [number(each, key) for each in resumed for key in ("time", "seconds")] if isinstance(resumed, list) else []
    return isinstance(resumed, list) and not any(map(math.isnan, [number(status, "started"), *starts]))


def _are_counts(value: Any) -> bool:
    return isinstance(value, list) and set(map(type, value)) == {int}


def _ascending(rows: Sequence[Row], by: str, *needed: str) -> list[Row]:
    """Returns the rows in which all these columns are numbers, in the order of `by`; of equal ones the newest."""
    whole = {row[by]: row for row in rows if not any(math.isnan(number(row, name)) for name in (by, *needed))}
    return sorted(whole.values(), key=itemgetter(by))


def _points(sources: Sequence[Sequence[Row]]) -> Iterator[list[Row]]:
    """Yields the newest row of each collector at up to `COVERAGE_POINTS` moments of a run, the last one at its end.

    Collectors may have made different numbers of unrolls: one that was restarted makes more. Rows are in the order of
    environment steps; a collector that has no row yet is left out.
    """
    events: list[tuple[float, int, Row]] = []
    for index, rows in enumerate(sources):
        times = np.maximum.accumulate([row["time"] for row in rows])  # a clock may be set back
        events += [(time, index, row) for time, row in zip(times.tolist(), rows, strict=True)]
    events.sort(key=itemgetter(0))  # stable: rows of a collector stay in order
    chosen = set(np.linspace(0, len(events) - 1, COVERAGE_POINTS).astype(int).tolist())
    newest: dict[int, Row] = {}
    for count, (_, index, row) in enumerate(events):
        newest[index] = row
        if count in chosen:
            yield list(newest.values())
