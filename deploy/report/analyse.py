"""From what `read.py` found to what a report shows (`contents.py`). Pure functions."""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from deploy.report.contents import (
    Cell,
    Comparison,
    Cost,
    CriticalStep,
    Curve,
    EnvironmentReport,
    Explored,
    Fairness,
    Gain,
    Report,
)
from deploy.report.read import Exploration, MatrixRecord, Trial
from deploy.report.statistics import (
    DepthRatio,
    Difference,
    area_under_curve,
    curve_band,
    depth_ratios,
    estimate,
    paired_difference,
)

EXPRESSING, EXPLORING, TOGETHER = "expressing", "exploring", "both together"
SAMPLES_PER_INSERT_APART = 0.01


def make_report(record: MatrixRecord) -> Report:
    matrix = record.matrix
    return Report(
        name=record.directory.name,
        seeds=matrix.seeds,
        runs=len(record.unfinished) + len({trial.run for trial in record.trials}),
        done=len({trial.run for trial in record.trials}),
        unfinished=tuple(record.unfinished),
        envs=tuple(_environment(record, env) for env in matrix.envs),
        provenance=_origins(record.provenance),
        matrix=matrix.model_dump(mode="json", exclude_unset=True),
    )


def _environment(record: MatrixRecord, env: str) -> EnvironmentReport:
    matrix = record.matrix
    trials = [trial for trial in record.trials if trial.env == env]
    passive = [trial for trial in trials if not trial.active]
    active = [trial for trial in trials if trial.active]
    fairness = _fairness(trials)
    collector_depths, learner_depths = tuple(sorted(matrix.collector_depths)), tuple(sorted(matrix.learner_depths))
    return EnvironmentReport(
        env=env,
        evaluated_in=matrix.evaluation_envs.get(env, env),
        episode_length=record.episode_lengths.get(env),
        collector_depths=collector_depths,
        learner_depths=learner_depths,
        cells=_cells(passive, fairness),
        active=_cells(active, fairness),
        differences=_comparisons(passive, [(deep, learner_depths[0]) for deep in learner_depths[1:]]),
        neighbours=_comparisons(passive, [*zip(learner_depths[1:], learner_depths[:-1], strict=True)]),
        gains=_gains(passive, collector_depths, learner_depths),
        critical=_critical(passive, active),
        curves=tuple(_curve(group) for group in [*_grouped(passive, _place), *_grouped(active, _place)]),
        explored=_explored([each for each in record.explorations if each.env == env]),
        costs=_costs(trials),
        fairness=fairness,
    )


def _grouped(items: Iterable[Any], key: Callable[[Any], Any]) -> list[list[Any]]:
    """Items of equal `key` together, by ascending key, seeds ascending within."""
    groups: dict[Any, list[Any]] = {}
    for item in sorted(items, key=lambda each: (key(each), each.seed)):
        groups.setdefault(key(item), []).append(item)
    return list(groups.values())


def _place(trial: Trial) -> tuple[int, int]:
    return trial.collector_depth, trial.learner_depth


def _seeds(trials: Sequence[Any]) -> tuple[int, ...]:
    return tuple(trial.seed for trial in trials)


def _final(trial: Trial) -> float:
    return float(trial.time_at_goal[-1])


def _area(trial: Trial) -> float:
    return area_under_curve(trial.steps, trial.time_at_goal)


def _cells(trials: Sequence[Trial], fairness: Sequence[Fairness]) -> tuple[Cell, ...]:
    marks = {(each.run, each.learner_depth, each.active): each.mark for each in fairness if each.mark}
    return tuple(
        Cell(
            *_place(group[0]),
            seeds=_seeds(group),
            time_at_goal=estimate([_final(trial) for trial in group]),
            success_rate=estimate([trial.success_rate[-1] for trial in group]),
            area=estimate([_area(trial) for trial in group]),
            marks=tuple(
                f"seed {trial.seed}: {marks[place]}"
                for trial in group
                if (place := (trial.run, trial.learner_depth, trial.active)) in marks
            ),
        )
        for group in _grouped(trials, _place)
    )


def _by_seed(trials: Iterable[Trial], value: Callable[[Trial], float]) -> dict[int, float]:
    return {trial.seed: value(trial) for trial in trials}


def _comparisons(trials: Sequence[Trial], pairs: Sequence[tuple[int, int]]) -> tuple[Comparison, ...]:
    """`pairs`: (deeper, shallower). Of seeds that have both."""
    made = []
    for group in _grouped(trials, lambda trial: trial.collector_depth):
        for deeper, shallower in pairs:
            ours = [trial for trial in group if trial.learner_depth == deeper]
            theirs = [trial for trial in group if trial.learner_depth == shallower]
            if set(_seeds(ours)) & set(_seeds(theirs)):
                final, area = (_paired(_by_seed(ours, each), _by_seed(theirs, each)) for each in (_final, _area))
                made.append(Comparison(group[0].collector_depth, deeper, shallower, final, area))
    return tuple(made)


def _paired(ours: dict[int, float], theirs: dict[int, float]) -> Difference:
    common = sorted(ours.keys() & theirs.keys())
    return paired_difference([ours[seed] for seed in common], [theirs[seed] for seed in common])


def _gains(trials: Sequence[Trial], collector_depths: Sequence[int], learner_depths: Sequence[int]) -> tuple[Gain, ...]:
    """Deepest against shallowest along each axis, of the seeds that have every cell this takes."""
    if not trials:
        return ()
    values = {(*_place(trial), trial.seed): _final(trial) for trial in trials}

    def mean(collectors: Sequence[int], learners: Sequence[int]) -> dict[int, float]:
        """Seed -> mean over the cells named, of seeds that have them all."""
        places = [(collector, learner) for collector in collectors for learner in learners]
        seeds = {seed for *_, seed in values if all((*place, seed) in values for place in places)}
        return {seed: float(np.mean([values[*place, seed] for place in places])) for seed in seeds}

    (least_c, most_c), (least_l, most_l) = ((depths[0], depths[-1]) for depths in (collector_depths, learner_depths))
    wanted = []
    if least_l != most_l:
        meaning = f"learners of depth {most_l} minus {least_l}, mean over collector depths"
        wanted.append((EXPRESSING, meaning, mean(collector_depths, [most_l]), mean(collector_depths, [least_l])))
    if least_c != most_c:
        meaning = f"collector depth {most_c} minus {least_c}, mean over learner depths"
        wanted.append((EXPLORING, meaning, mean([most_c], learner_depths), mean([least_c], learner_depths)))
    if least_l != most_l and least_c != most_c:
        meaning = f"what learner depth {most_l} gains on collector depth {most_c}, minus what it gains on {least_c}"
        deep, shallow = (
            _minus(mean([collector], [most_l]), mean([collector], [least_l])) for collector in (most_c, least_c)
        )
        wanted.append((TOGETHER, meaning, deep, shallow))
    return tuple(
        Gain(cause, meaning, _paired(ours, theirs))
        for cause, meaning, ours, theirs in wanted
        if ours.keys() & theirs.keys()
    )


def _minus(ours: dict[int, float], theirs: dict[int, float]) -> dict[int, float]:
    return {seed: ours[seed] - theirs[seed] for seed in ours.keys() & theirs.keys()}


def _critical(passive: Sequence[Trial], active: Sequence[Trial]) -> tuple[CriticalStep, ...]:
    steps = []
    for group in _grouped(passive, lambda trial: trial.collector_depth):
        ratios = _ratios(group, lambda trial: trial.learner_depth)
        steps += [CriticalStep("learner", group[0].collector_depth, ratio) for ratio in ratios]
    for group in _grouped(passive, lambda trial: trial.learner_depth):
        ratios = _ratios(group, lambda trial: trial.collector_depth)
        steps += [CriticalStep("collector", group[0].learner_depth, ratio) for ratio in ratios]
    steps += [CriticalStep("active", None, ratio) for ratio in _ratios(active, lambda trial: trial.learner_depth)]
    return tuple(steps)


def _ratios(trials: Sequence[Trial], depth: Callable[[Trial], int]) -> list[DepthRatio]:
    """Of the seeds that every depth has."""
    series = {depth(group[0]): _by_seed(group, _final) for group in _grouped(trials, depth)}
    common = sorted(set.intersection(*(set(values) for values in series.values()))) if series else []
    if not common:
        return []
    return depth_ratios({depth: [values[seed] for seed in common] for depth, values in series.items()})


def _curve(group: Sequence[Trial]) -> Curve:
    """Evaluations that a busy evaluator left out for one seed are left out for all."""
    steps = group[0].steps
    for trial in group[1:]:
        steps = np.intersect1d(steps, trial.steps)
    heights = np.array([np.interp(steps, trial.steps, trial.time_at_goal) for trial in group])
    collecting = [trial for trial in group if not trial.fed]
    # Up to where the quickest seed ended: beyond it the others would be alone.
    grid = np.linspace(0, min((trial.seconds[-1] for trial in collecting), default=0), len(steps))
    timed = [np.interp(grid, trial.seconds, trial.time_at_goal) for trial in collecting]
    return Curve(
        *_place(group[0]),
        active=group[0].active,
        seeds=_seeds(group),
        steps=steps,
        by_steps=curve_band(heights),
        seconds=grid if timed else np.array([]),
        by_seconds=curve_band(timed) if timed else None,
    )


def _explored(explorations: Sequence[Exploration]) -> tuple[Explored, ...]:
    return tuple(
        Explored(
            collector_depth=group[0].collector_depth,
            seeds=_seeds(group),
            coverage=estimate([each.coverage[-1] for each in group]),
            entropy=estimate([each.entropy for each in group]),
            env_steps_per_second=estimate([each.env_steps_per_second for each in group]),
            steps=group[0].steps,
            by_steps=curve_band([each.coverage for each in group]),
        )
        for group in _grouped(explorations, lambda each: each.collector_depth)
    )


def _costs(trials: Sequence[Trial]) -> tuple[Cost, ...]:
    return tuple(
        Cost(
            group[0].learner_depth,
            group[0].parameters,
            estimate([trial.gradient_steps_per_second for trial in group]),
        )
        for group in _grouped(trials, lambda trial: trial.learner_depth)
    )


def _fairness(trials: Sequence[Trial]) -> tuple[Fairness, ...]:
    """Gradient steps: against most learners of the environment; the rest: against those on the same stream."""
    usual = Counter(trial.gradient_steps for trial in trials).most_common(1)
    rows = []
    for group in _grouped(trials, lambda trial: (trial.collector_depth, trial.seed)):
        for trial in sorted(group, key=lambda each: (not each.active, each.learner_depth)):
            rows.append(
                Fairness(
                    run=trial.run,
                    learner_depth=trial.learner_depth,
                    active=trial.active,
                    fed=trial.fed,
                    gradient_steps=trial.gradient_steps,
                    samples_per_insert=trial.samples_per_insert,
                    sample_age=trial.sample_age,
                    mark=_mark(trial, group, usual[0][0]),
                )
            )
    return tuple(rows)


def _mark(trial: Trial, group: Sequence[Trial], usual_steps: int) -> str:
    marks = []
    if trial.gradient_steps != usual_steps:
        marks.append(f"{trial.gradient_steps:,} gradient steps, most have {usual_steps:,}")
    ratio = float(np.median([each.samples_per_insert for each in group]))
    if abs(trial.samples_per_insert - ratio) > SAMPLES_PER_INSERT_APART * ratio:
        marks.append(f"{trial.samples_per_insert:.3f} samples per insert, its stream's median is {ratio:.3f}")
    age = float(np.median([each.sample_age for each in group]))
    if abs(trial.sample_age - age) > trial.age_spread:
        marks.append(f"sample age {trial.sample_age:.0f}, its stream's median is {age:.0f}")
    return "; ".join(marks)


def _origins(provenance: Sequence[dict[str, Any]]) -> tuple[dict[str, Any], ...]:
    """Each different origin once; the command differs by run and says nothing of the version."""
    origins: list[dict[str, Any]] = []
    for each in provenance:
        origin = {key: value for key, value in each.items() if key != "command"}
        if origin not in origins:
            origins.append(origin)
    return tuple(origins)
