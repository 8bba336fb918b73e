"""Analysis: makes the contents of a report (`contents.py`) from what `read.py` returns. Pure functions.

C: collector depths, L: learner depths, S: seeds, all ascending. An array by these axes is NaN where a trial is missing.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import fields
from functools import partial, reduce
from itertools import groupby
from operator import attrgetter
from typing import Any

import numpy as np

from deploy.report import contents, statistics
from deploy.report.read import Exploration, MatrixRecord, Treatment, Trial
from deploy.report.statistics import Values, estimate

EXPRESSING, EXPLORING, TOGETHER = "expressing", "exploring", "both together"
SAMPLES_PER_INSERT_TOLERANCE = 0.01  # as a share of the median

Depths = Sequence[int]
_place = attrgetter("collector_depth", "learner_depth")


def make_report(record: MatrixRecord) -> contents.Report:
    matrix = record.matrix
    return contents.Report(
        name=record.directory.name,
        seeds=matrix.seeds,
        runs=record.runs,
        done=record.done,
        missing=tuple(record.missing),
        envs=tuple(_environment(record, env) for env in matrix.envs),
        provenance=tuple(record.provenance),
        matrix=matrix.model_dump(mode="json", exclude_unset=True),
    )


def _environment(record: MatrixRecord, env: str) -> contents.EnvironmentReport:
    matrix = record.matrix
    trials = [trial for trial in record.trials if trial.env == env]
    passive = [trial for trial in trials if not trial.active]
    active = [trial for trial in trials if trial.active]
    marks = _marks(trials)
    collector_depths, learner_depths = tuple(sorted(matrix.collector_depths)), tuple(sorted(matrix.learner_depths))
    axes = {"collector_depth": collector_depths, "learner_depth": learner_depths, "seed": sorted(matrix.seeds)}
    final, area = (_by_axes(passive, measure, **axes) for measure in ("final", "area"))
    active_final = _by_axes(active, "final", collector_depth=collector_depths, seed=axes["seed"])
    compare = partial(_comparisons, final, area, collector_depths, learner_depths)
    deeper = range(1, len(learner_depths))
    return contents.EnvironmentReport(
        env=env,
        evaluated_in=matrix.evaluation_envs.get(env, env),
        episode_length=record.episode_lengths.get(env),
        collector_depths=collector_depths,
        learner_depths=learner_depths,
        cells=_cells(passive, marks),
        active=_cells(active, marks),
        differences=compare([(index, 0) for index in deeper]),
        neighbours=compare([(index, index - 1) for index in deeper]),
        gains=_gains(final, collector_depths, learner_depths),
        critical=_critical(final, active_final, collector_depths, learner_depths),
        curves=tuple(_curve(group) for learners in (passive, active) for group in _grouped(learners, _place)),
        explored=_explored([each for each in record.explorations if each.env == env]),
        costs=_costs(trials),
        fairness=_fairness(trials, marks),
    )


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
            *_place(group[0]),
            seeds=tuple(each.seed for each in group),
            time_at_goal=estimate([trial.final for trial in group]),
            success_rate=_estimate_known(trial.success_rate for trial in group),
            area=estimate([trial.area for trial in group]),
            marks=tuple(f"seed {trial.seed}: {marks[trial]}" for trial in group if marks[trial]),
        )
        for group in _grouped(trials, _place)
    )


def _estimate_known(values: Iterable[float]) -> statistics.Estimate:
    """Returns the estimate of the values that are known, which is NaN of no seed without any."""
    known = [value for value in values if not np.isnan(value)]
    return estimate(known) if known else statistics.Estimate(np.nan, None, 0)


def _paired(ours: Values, theirs: Values) -> statistics.Difference | None:
    """Compares `ours` `[S]` with `theirs` `[S]` over the seeds that both have; None without such a seed."""
    common = ~np.isnan(ours - theirs)
    return statistics.paired_difference(ours[common], theirs[common]) if common.any() else None


def _comparisons(
    final: Values, area: Values, collector_depths: Depths, learner_depths: Depths, pairs: Sequence[tuple[int, int]]
) -> tuple[contents.Comparison, ...]:
    """Compares learners of each collector depth. `pairs`: (deeper, shallower), as indices of `learner_depths`."""
    return tuple(
        contents.Comparison(depth, learner_depths[deeper], learner_depths[shallower], final_difference, area_difference)
        for depth, finals, areas in zip(collector_depths, final, area, strict=True)
        for deeper, shallower in pairs
        if (final_difference := _paired(finals[deeper], finals[shallower]))
        and (area_difference := _paired(areas[deeper], areas[shallower]))
    )


def _gains(final: Values, collector_depths: Depths, learner_depths: Depths) -> tuple[contents.Gain, ...]:
    """Compares the deepest with the shallowest along each axis of `final` `[C, L, S]`, over seeds with every cell."""
    if not learner_depths:
        return ()
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
    return tuple(contents.Gain(cause, meaning, gain) for cause, meaning, *pair in wanted if (gain := _paired(*pair)))


def _critical(
    final: Values, active: Values, collector_depths: Depths, learner_depths: Depths
) -> tuple[contents.CriticalStep, ...]:
    """Returns the steps along both axes of `final` `[C, L, S]`, and of the collector learners `active` `[C, S]`."""
    axes = [
        *(("learner", held, values, learner_depths) for held, values in zip(collector_depths, final, strict=True)),
        *(("collector", held, final[:, index], collector_depths) for index, held in enumerate(learner_depths)),
        ("active", None, active, collector_depths),
    ]
    return tuple(contents.CriticalStep(axis, held, ratio) for axis, held, *series in axes for ratio in _ratios(*series))


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
        env_steps_per_second=_estimate_known(each.env_steps_per_second for each in group),
        steps=steps,
        by_steps=statistics.curve_band([np.interp(steps, each.steps, each.coverage) for each in group]),
    )


def _costs(trials: Sequence[Trial]) -> tuple[contents.Cost, ...]:
    return tuple(
        contents.Cost(
            learner_depth=group[0].learner_depth,
            parameters=next((trial.parameters for trial in group if not np.isnan(trial.parameters)), np.nan),
            gradient_steps_per_second=_estimate_known(trial.gradient_steps_per_second for trial in group),
        )
        for group in _grouped(trials, attrgetter("learner_depth"))
    )


def _marks(trials: Sequence[Trial]) -> dict[Trial, str]:
    """Returns how each trial differs: in gradient steps from most of `trials`, otherwise from its stream's median."""
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
            marks[trial] = "; ".join(found)
    return marks


def _median(values: Sequence[float]) -> float:
    """Returns the median of the values that are known; NaN without any."""
    known = [value for value in values if not np.isnan(value)]
    return float(np.median(known)) if known else np.nan


def _fairness(trials: Sequence[Trial], marks: Mapping[Trial, str]) -> tuple[contents.Fairness, ...]:
    ordered = sorted(trials, key=lambda each: (each.collector_depth, each.seed, not each.active, each.learner_depth))
    names = [field.name for field in fields(Treatment)]
    return tuple(
        contents.Fairness(**{name: getattr(trial, name) for name in names}, mark=marks[trial]) for trial in ordered
    )
