"""Analysis: makes the contents of a report (`contents.py`) from what `read.py` returns. Pure functions.

C: collector depths, L: learner depths, S: seeds, all ascending. An array by these axes is NaN where a trial is missing.
It holds the passive learners of one objective; `objectives.py` compares objectives.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import fields
from functools import reduce
from itertools import chain, groupby
from operator import attrgetter
from typing import Any, NamedTuple

import numpy as np

from deploy.report import contents, statistics
from deploy.report.aggregate import aggregate
from deploy.report.behaviours import Line, make_behaviour
from deploy.report.objectives import gain_differences, objective_gains
from deploy.report.published import published_beside
from deploy.report.records import Exploration, MatrixRecord, Treatment, Trial, place
from deploy.report.statistics import Values, estimate, estimate_known, paired_known

EXPRESSING, EXPLORING, TOGETHER = "expressing", "exploring", "both together"
SAMPLES_PER_INSERT_TOLERANCE = 0.01  # as a share of the median

Depths = Sequence[int]
_place = attrgetter("collector_depth", "learner_depth")


class _Series(NamedTuple):
    """Passive learners of one objective; `final` and `area` `[C, L, S]`."""

    objective: str
    trials: list[Trial]
    final: Values
    area: Values


def make_report(record: MatrixRecord) -> contents.Report:
    matrix = record.matrix
    return contents.Report(
        name=record.directory.name,
        seeds=matrix.seeds,
        runs=record.runs,
        done=record.done,
        missing=tuple(record.missing),
        envs=tuple(
            _environment(record, env, evaluated_in, headline=not at)
            for env in matrix.envs
            for at, evaluated_in in enumerate(record.evaluations.get(env, [env]))
        ),
        aggregates=aggregate(record.headline_trials, record.episode_lengths),
        provenance=tuple(record.provenance),
        matrix=matrix.model_dump(mode="json", exclude_unset=True),
    )


def _environment(
    record: MatrixRecord, trained_in: str, evaluated_in: str, headline: bool
) -> contents.EnvironmentReport:
    matrix, env = record.matrix, place(trained_in, evaluated_in, headline)
    trials = [trial for trial in record.trials if trial.env == env]
    passive = [trial for trial in trials if not trial.active]
    active = [trial for trial in trials if trial.active]
    marks = _marks(trials)
    depths = tuple(sorted(matrix.collector_depths)), tuple(sorted(matrix.learner_depths))
    seeds = sorted(matrix.seeds)
    every = [_series(objective, passive, *depths, seeds) for objective in matrix.objective_keys]
    finals = {series.objective: series.final for series in every}
    active_final = _by_axes(active, "final", collector_depth=depths[0], seed=seeds)
    learners = [series.trials for series in every]
    deeper = range(1, len(depths[1]))
    return contents.EnvironmentReport(
        env=env,
        trained_in=trained_in,
        evaluated_in=evaluated_in,
        headline=headline,
        episode_length=record.episode_lengths.get(trained_in),
        objectives=tuple(finals),
        collector_depths=depths[0],
        learner_depths=depths[1],
        cells=_of_all(_cells(trials, marks) for trials in learners),
        active=_cells(active, marks),
        differences=_of_all(_comparisons(series, *depths, [(index, 0) for index in deeper]) for series in every),
        neighbours=_of_all(_comparisons(series, *depths, [(index, index - 1) for index in deeper]) for series in every),
        gains=_of_all(_gains(series, *depths) for series in every),
        objective_gains=objective_gains(finals, *depths),
        gain_differences=gain_differences(finals, *depths),
        critical=_of_all(_critical(series, *depths) for series in every)
        + _steps(matrix.own_objective, "active", None, active_final, depths[0]),
        curves=tuple(_curve(group) for trials in (*learners, active) for group in _grouped(trials, _place)),
        behaviour=make_behaviour(
            record.envs.get(env),
            [*_of_all(_lines(series) for series in every), *_active_line(active)],
            [group for trials in (*learners, active) for group in _grouped(trials, _place)],
        ),
        explored=_explored([each for each in record.explorations if headline and each.env == env]),
        costs=_of_all(
            _costs([trial for trial in trials if headline and trial.objective == objective])
            for objective in dict.fromkeys([*finals, matrix.own_objective])
        ),
        fairness=_fairness(trials, marks, [*finals]),
        published=tuple(published_beside(trained_in, evaluated_in, active)),
    )


def _series(
    objective: str, passive: Iterable[Trial], collector_depths: Depths, learner_depths: Depths, seeds: Sequence[int]
) -> _Series:
    trials = [trial for trial in passive if trial.objective == objective]
    axes = {"collector_depth": collector_depths, "learner_depth": learner_depths, "seed": seeds}
    return _Series(objective, trials, *(_by_axes(trials, measure, **axes) for measure in ("final", "area")))


def _of_all(rows: Iterable[Iterable[Any]]) -> tuple:
    return tuple(chain.from_iterable(rows))


def _grouped(items: Iterable[Any], key: Callable[[Any], Any]) -> list[list[Any]]:
    """Returns groups of equal `key`, keys ascending; seeds ascend within a group."""
    return [list(group) for _, group in groupby(sorted(items, key=lambda each: (key(each), each.seed)), key)]


def _by_axes(trials: Iterable[Trial], measure: str, **axes: Sequence[int]) -> Values:
    """Returns the attribute `measure` of trials as an array by `axes`: attributes, and the values along each."""
    values = np.full([len(axis) for axis in axes.values()], np.nan)
    for trial in trials:
        values[tuple(axis.index(getattr(trial, name)) for name, axis in axes.items())] = getattr(trial, measure)
    return values


def _cells(trials: Sequence[Trial], marks: Mapping[Trial, str]) -> tuple[contents.Cell, ...]:
    return tuple(
        contents.Cell(
            group[0].objective,
            *_place(group[0]),
            seeds=tuple(each.seed for each in group),
            time_at_goal=estimate([trial.final for trial in group]),
            last=estimate([trial.last for trial in group]),
            success_rate=estimate_known(trial.success_rate for trial in group),
            area=estimate([trial.area for trial in group]),
            marks=tuple(f"seed {trial.seed}: {marks[trial]}" for trial in group if marks[trial]),
        )
        for group in _grouped(trials, _place)
    )


def _comparisons(
    series: _Series, collector_depths: Depths, learner_depths: Depths, pairs: Sequence[tuple[int, int]]
) -> tuple[contents.Comparison, ...]:
    """Compares learners of each collector depth. `pairs`: (deeper, shallower), as indices of `learner_depths`."""
    return tuple(
        contents.Comparison(
            series.objective,
            depth,
            learner_depths[deeper],
            learner_depths[shallower],
            final_difference,
            area_difference,
        )
        for depth, finals, areas in zip(collector_depths, series.final, series.area, strict=True)
        for deeper, shallower in pairs
        if (final_difference := paired_known(finals[deeper], finals[shallower]))
        and (area_difference := paired_known(areas[deeper], areas[shallower]))
    )


def _gains(series: _Series, collector_depths: Depths, learner_depths: Depths) -> tuple[contents.Gain, ...]:
    """Compares the deepest with the shallowest along each axis of `series.final`, over seeds with every cell."""
    if not learner_depths:
        return ()
    final = series.final
    least_c, most_c, least_l, most_l = collector_depths[0], collector_depths[-1], learner_depths[0], learner_depths[-1]
    wanted = []
    if least_l < most_l:
        meaning = f"learners of depth {most_l} minus {least_l}, mean over collector depths"
        wanted.append((EXPRESSING, meaning, final[:, -1].mean(axis=0), final[:, 0].mean(axis=0)))
    if least_c < most_c:
        meaning = f"collector depth {most_c} minus {least_c}, mean over learner depths"
        wanted.append((EXPLORING, meaning, final[-1].mean(axis=0), final[0].mean(axis=0)))
    if len(wanted) == 2:
        meaning = f"gain by {EXPRESSING} at collector depth {most_c}, minus the same gain at collector depth {least_c}"
        wanted.append((TOGETHER, meaning, final[-1, -1] - final[-1, 0], final[0, -1] - final[0, 0]))
    return tuple(
        contents.Gain(series.objective, cause, meaning, gain)
        for cause, meaning, *pair in wanted
        if (gain := paired_known(*pair))
    )


def _lines(series: _Series) -> Iterator[Line]:
    """Yields the passive learners of an objective along each axis, with the other one held."""
    axes = {"learner": ("collector_depth", "learner_depth"), "collector": ("learner_depth", "collector_depth")}
    for axis, (held_by, along) in axes.items():
        for group in _grouped(series.trials, attrgetter(held_by)):
            trials = {getattr(each[0], along): each for each in _grouped(group, attrgetter(along))}
            yield Line(series.objective, axis, getattr(group[0], held_by), trials)


def _active_line(active: Sequence[Trial]) -> list[Line]:
    trials = {group[0].collector_depth: group for group in _grouped(active, attrgetter("collector_depth"))}
    return [Line(active[0].objective, "active", None, trials)] if active else []


def _critical(series: _Series, collector_depths: Depths, learner_depths: Depths) -> tuple[contents.CriticalStep, ...]:
    """Returns the steps along both axes of `series.final`."""
    objective, final = series.objective, series.final
    along_learners = zip(collector_depths, final, strict=True)
    return _of_all(
        [
            *(_steps(objective, "learner", held, values, learner_depths) for held, values in along_learners),
            *(
                _steps(objective, "collector", held, final[:, index], collector_depths)
                for index, held in enumerate(learner_depths)
            ),
        ]
    )


def _steps(
    objective: str, axis: str, held: int | None, values: Values, depths: Depths
) -> tuple[contents.CriticalStep, ...]:
    """Returns the steps of `values` `[depths, S]`."""
    return tuple(contents.CriticalStep(objective, axis, held, ratio) for ratio in _ratios(values, depths))


def _ratios(values: Values, depths: Depths) -> list[statistics.DepthRatio]:
    """Returns the ratios of `values` `[depths, S]`, over the depths that have any seed, and the seeds that all have."""
    held = ~np.isnan(values)
    rows = [row for row in range(len(depths)) if held[row].any()]
    common = held[rows].all(axis=0)
    return statistics.depth_ratios({depths[row]: values[row, common] for row in rows}) if common.any() else []


def _curve(group: Sequence[Trial]) -> contents.Curve:
    """Returns the curve of one place."""
    steps = _common_steps([trial.steps for trial in group])
    collecting = [trial for trial in group if not trial.fed and not np.isnan(trial.seconds).any()]
    # The grid ends with the fastest seed: beyond its end the mean would be over the other seeds alone.
    grid = np.linspace(0, min((trial.seconds[-1] for trial in collecting), default=0), len(steps))
    timed = [np.interp(grid, trial.seconds, trial.time_at_goal) for trial in collecting]
    return contents.Curve(
        group[0].objective,
        *_place(group[0]),
        active=group[0].active,
        seeds=tuple(each.seed for each in group),
        steps=steps,
        by_steps=statistics.curve_band([np.interp(steps, trial.steps, trial.time_at_goal) for trial in group]),
        seconds=grid if timed else np.array([]),
        by_seconds=statistics.curve_band(timed) if timed else None,
    )


def _common_steps(series: Sequence[Values]) -> Values:
    """Returns the evaluations that all seeds have: one that a busy evaluator skipped for one seed is skipped for all.

    Seeds that were evaluated at other steps, by another version, share a range instead.
    """
    common = reduce(np.intersect1d, series)
    if len(common) > 1:
        return common
    return np.linspace(max(steps[0] for steps in series), min(steps[-1] for steps in series), min(map(len, series)))


def _explored(explorations: Sequence[Exploration]) -> tuple[contents.Explored, ...]:
    return tuple(_explored_by(group) for group in _grouped(explorations, attrgetter("collector_depth")))


def _explored_by(group: Sequence[Exploration]) -> contents.Explored:
    """Returns the coverage by collectors of one depth, up to the end of the longest run; shorter runs keep theirs."""
    first, last = (max(each.steps[end] for each in group) for end in (0, -1))
    steps = np.linspace(first, last, max(len(each.steps) for each in group))
    return contents.Explored(
        collector_depth=group[0].collector_depth,
        seeds=tuple(each.seed for each in group),
        coverage=estimate([each.coverage[-1] for each in group]),
        entropy=estimate([each.entropy for each in group]),
        env_steps_per_second=estimate_known(each.env_steps_per_second for each in group),
        steps=steps,
        by_steps=statistics.curve_band([np.interp(steps, each.steps, each.coverage) for each in group]),
    )


def _costs(trials: Sequence[Trial]) -> tuple[contents.Cost, ...]:
    return tuple(
        contents.Cost(
            objective=group[0].objective,
            learner_depth=group[0].learner_depth,
            parameters=next((trial.parameters for trial in group if not np.isnan(trial.parameters)), np.nan),
            gradient_steps_per_second=estimate_known(trial.gradient_steps_per_second for trial in group),
        )
        for group in _grouped(trials, attrgetter("learner_depth"))
    )


def _marks(trials: Sequence[Trial]) -> dict[Trial, str]:
    """Returns how each trial differs: in gradient steps from most of `trials`, in its chunk from its collector.

    In samples per insert and in sample age, from its stream's median.
    """
    counts = Counter(trial.gradient_steps for trial in trials if not np.isnan(trial.gradient_steps))
    usual_steps = max(counts, key=lambda steps: counts[steps], default=0)
    marks = {}
    for stream in _grouped(trials, attrgetter("collector_depth", "seed")):
        ratio, age = (
            _median([getattr(trial, name) for trial in stream]) for name in ("samples_per_insert", "sample_age")
        )
        for trial in stream:
            known = {
                "gradient steps": trial.gradient_steps,
                "samples per insert": trial.samples_per_insert,
                "sample age": trial.sample_age - trial.age_spread,
            }
            found = [f"unknown {name}" for name, value in known.items() if np.isnan(value)]
            if trial.gradient_steps != usual_steps and not np.isnan(trial.gradient_steps):
                found.append(f"{trial.gradient_steps:,} gradient steps, most have {usual_steps:,}")
            if abs(trial.samples_per_insert - ratio) > SAMPLES_PER_INSERT_TOLERANCE * ratio:
                found.append(f"{trial.samples_per_insert:.3f} samples per insert, its stream's median is {ratio:.3f}")
            if abs(trial.sample_age - age) > trial.age_spread:
                found.append(f"sample age {trial.sample_age:.0f}, its stream's median is {age:.0f}")
            if trial.chunk != trial.collector_chunk:
                found.append(f"chunk of {trial.chunk}, its collector's is {trial.collector_chunk}")
            marks[trial] = "; ".join(found)
    return marks


def _median(values: Sequence[float]) -> float:
    """Returns the median of the values that are known; NaN without any."""
    known = [value for value in values if not np.isnan(value)]
    return float(np.median(known)) if known else np.nan


def _fairness(
    trials: Sequence[Trial], marks: Mapping[Trial, str], objectives: Sequence[str]
) -> tuple[contents.Fairness, ...]:
    def place(each: Trial) -> tuple:
        objective = -1 if each.active else objectives.index(each.objective)
        return each.collector_depth, each.seed, objective, each.learner_depth

    ordered = sorted(trials, key=place)
    names = [field.name for field in fields(Treatment)]
    return tuple(
        contents.Fairness(**{name: getattr(trial, name) for name in names}, mark=marks[trial]) for trial in ordered
    )
