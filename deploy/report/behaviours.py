"""Behaviour along depth: measures of each cell, their jumps, and which goals a depth unlocks. Pure functions.

A mean may rise in two ways: all goals are reached a little more often, or some goals change from never to always.
`split` tells these apart: the share of the variance of success that the goal explains. It is 0 if every goal is reached
equally often, and 1 if some goals are always reached and all others never.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from collector.behaviour import band_name, band_of
from deploy.report import contents, statistics
from deploy.report.records import Outcomes, Trial
from deploy.report.statistics import estimate_known, paired_known
from shared.envs.base import GoalEnv

TIME_AT_GOAL = "time_at_goal"
NEVER, ALWAYS = 0.1, 0.9  # success rates up to and from which a goal is never and always reached
MIN_EPISODES = 5  # over all seeds, of a goal whose success rate says anything


class Line(NamedTuple):
    """Trials along one axis of depth. `held`: the depth on the other axis; None for collector learners.

    `trials`: depth -> trials of that depth.
    """

    objective: str
    axis: str
    held: int | None
    trials: Mapping[int, Sequence[Trial]]


def make_behaviour(env: GoalEnv | None, lines: Sequence[Line], cells: Iterable[Sequence[Trial]]) -> contents.Behaviour:
    """Returns the behaviour in one environment.

    Args:
        env: the environment of the evaluations; without it there are no goals.
        lines: trials along both axes for each objective, and those of the collector learners.
        cells: trials of each place of the matrix, collector learners included.
    """
    groups = [group for group in cells if group]
    measures = list(dict.fromkeys(name for group in groups for trial in group for name in trial.behaviour))
    by_goal = _GoalGroups(env) if env else None
    return contents.Behaviour(
        measures=tuple(measures),
        cells=tuple(_cell(group, measures) for group in groups),
        jumps=tuple(jump for line in lines for name in (TIME_AT_GOAL, *measures) for jump in _jumps(line, name)),
        changes=tuple(change for line in lines for change in _changes(line, by_goal)) if by_goal else (),
        goals=tuple(each for group in groups if (each := _goals(group, by_goal))) if by_goal else (),
        walls=by_goal.walls if by_goal else None,
    )


def _cell(group: Sequence[Trial], measures: Sequence[str]) -> contents.BehaviourCell:
    first = group[0]
    return contents.BehaviourCell(
        objective=first.objective,
        collector_depth=first.collector_depth,
        learner_depth=first.learner_depth,
        active=first.active,
        measures={name: estimate_known(trial.behaviour.get(name, np.nan) for trial in group) for name in measures},
    )


def _jumps(line: Line, measure: str) -> Iterator[contents.Jump]:
    """Yields the steps in depth of a measure, and marks one that stands clear of the others, up or down."""
    series = {depth: _by_seed(trials, measure) for depth, trials in line.trials.items()}
    depths = sorted(depth for depth, values in series.items() if values)
    common = sorted(set.intersection(*(set(series[depth]) for depth in depths))) if depths else []
    if len(depths) < 2 or not common:
        return
    values = {depth: np.array([series[depth][seed] for seed in common]) for depth in depths}
    if any((each < 0).any() for each in values.values()):
        return  # ratios need values from 0 up
    ratios = statistics.depth_ratios(values)
    clear = statistics.clear_step(ratios)
    for ratio in ratios:
        yield contents.Jump(line.objective, line.axis, line.held, measure, replace(ratio, critical=ratio is clear))


def _by_seed(trials: Sequence[Trial], measure: str) -> dict[int, float]:
    values = {
        each.seed: each.final if measure == TIME_AT_GOAL else each.behaviour.get(measure, np.nan) for each in trials
    }
    return {seed: value for seed, value in values.items() if np.isfinite(value)}


class _GoalGroups:
    """Goals that are counted together: those of one cell of a maze, or of one band of distances.

    Bands are for planes and for several bodies in a maze, whose joint goals have no cell on a map.
    """

    def __init__(self, env: GoalEnv) -> None:
        self._spec, self._maze = env.spec, getattr(env, "maze", None) if getattr(env, "bodies", 1) == 1 else None
        self.walls = self._maze.walls if self._maze else None

    def keys(self, outcomes: Outcomes) -> np.ndarray:
        """Returns `[k, 2]` int: row and column of the goal's cell, or 0 and the number of the band."""
        if self._maze:
            return np.round(self._maze.in_cells(outcomes.goals)).astype(int)
        bands = np.nan_to_num(band_of(self._spec, outcomes.shortest_paths), nan=0.0).astype(int)
        return np.stack([np.zeros_like(bands), bands], axis=1)

    def name(self, key: tuple[int, int]) -> str:
        return f"{key[0]},{key[1]}" if self._maze else band_name(self._spec, key[1])

    def counts(self, outcomes: Outcomes) -> dict[tuple[int, int], np.ndarray]:
        """Returns the episodes and those that reached their goal `[2]`, by goal."""
        keys, which = np.unique(self.keys(outcomes), axis=0, return_inverse=True)
        episodes = np.bincount(which, minlength=len(keys))
        reached = np.bincount(which, outcomes.reached, minlength=len(keys))
        return {
            (int(row), int(column)): each
            for (row, column), each in zip(keys, np.stack([episodes, reached], 1), strict=True)
        }


def _pooled(trials: Iterable[Trial], groups: _GoalGroups) -> dict[tuple[int, int], np.ndarray]:
    """Returns the counts of all seeds together, of the goals with enough episodes."""
    total: dict[tuple[int, int], np.ndarray] = {}
    for trial in trials:
        for key, counts in groups.counts(trial.outcomes).items() if trial.outcomes else ():
            total[key] = total.get(key, np.zeros(2)) + counts
    return {key: counts for key, counts in sorted(total.items()) if counts[0] >= MIN_EPISODES}


def _goals(group: Sequence[Trial], groups: _GoalGroups) -> contents.Goals | None:
    """Returns the success of a cell by goal; None if its episodes are unknown."""
    pooled = _pooled(group, groups)
    if not pooled:
        return None
    first, counts = group[0], np.array([*pooled.values()])
    return contents.Goals(
        objective=first.objective,
        collector_depth=first.collector_depth,
        learner_depth=first.learner_depth,
        active=first.active,
        names=tuple(map(groups.name, pooled)),
        places=tuple(pooled),
        success=counts[:, 1] / counts[:, 0],
        episodes=counts[:, 0].astype(int),
    )


def split(counts: Iterable[np.ndarray]) -> float:
    """Returns the share of the variance of success that the goal explains; NaN if all or no episodes succeed.

    Analysis of variance with goals as groups: the intraclass correlation, without the chance within a goal. `counts`:
    episodes and successes of each goal.
    """
    episodes, reached = np.array([each for each in counts if each[0] > 0], float).T
    total, rate = episodes.sum(), reached / episodes
    mean, num = reached.sum() / total, len(episodes)
    if num < 2 or total == num or mean in (0.0, 1.0):
        return float("nan")
    between = np.sum(episodes * (rate - mean) ** 2) / (num - 1)
    within = np.sum(episodes * rate * (1 - rate)) / (total - num)
    size = (total - np.sum(episodes**2) / total) / (num - 1)  # of a goal, for goals of different numbers of episodes
    return float(np.clip((between - within) / (between + (size - 1) * within), 0, 1))


def _changes(line: Line, groups: _GoalGroups) -> Iterator[contents.Change]:
    """Yields the change of mean and distribution at each step in depth, seed by seed."""
    known = {depth: [each for each in trials if each.outcomes] for depth, trials in line.trials.items()}
    for shallower, deeper in pairwise(sorted(depth for depth, trials in known.items() if trials)):
        rates, splits = (
            {depth: _per_seed(known[depth], groups, each) for depth in (shallower, deeper)} for each in (_rate, split)
        )
        success = _difference(rates[deeper], rates[shallower])
        if success is None:
            continue
        ours, theirs = (_pooled(known[depth], groups) for depth in (deeper, shallower))
        both = [
            (counts[1] / counts[0], theirs[key][1] / theirs[key][0]) for key, counts in ours.items() if key in theirs
        ]
        difference = _difference(splits[deeper], splits[shallower])
        yield contents.Change(
            objective=line.objective,
            axis=line.axis,
            held=line.held,
            shallower=shallower,
            deeper=deeper,
            success=success,
            split_at_shallower=_mean(splits[shallower]),
            split_at_deeper=_mean(splits[deeper]),
            split=difference,
            goals=len(both),
            unlocked=sum(before <= NEVER and after >= ALWAYS for after, before in both),
            lost=sum(before >= ALWAYS and after <= NEVER for after, before in both),
            verdict=_verdict(success, difference),
        )


def _per_seed(trials: Sequence[Trial], groups: _GoalGroups, statistic: Callable[..., float]) -> dict[int, float]:
    return {each.seed: statistic(groups.counts(each.outcomes).values()) for each in trials if each.outcomes}


def _rate(counts: Iterable[np.ndarray]) -> float:
    episodes, reached = np.sum([*counts], axis=0)
    return float(reached / episodes)


def _difference(ours: Mapping[int, float], theirs: Mapping[int, float]) -> statistics.Difference | None:
    seeds = sorted(ours.keys() & theirs.keys())
    one, other = (np.array([each[seed] for seed in seeds]) for each in (ours, theirs))
    return paired_known(one, other)


def _mean(values: Mapping[int, float]) -> float:
    known = [value for value in values.values() if np.isfinite(value)]
    return float(np.mean(known)) if known else float("nan")


def _verdict(success: statistics.Difference, split: statistics.Difference | None) -> str:
    """Returns what changed clearly, in words: an interval lies to one side of 0."""
    if success.interval is None:
        return "one seed: no interval"
    found = (
        _direction(success, "more goals reached", "fewer goals reached"),
        _direction(split, "success differs more by goal", "success differs less by goal"),
    )
    return ", ".join(filter(None, found)) or "no clear change"


def _direction(difference: statistics.Difference | None, rises: str, falls: str) -> str:
    """Returns `rises` or `falls` if the interval is clear of 0, else nothing."""
    ends = difference.interval if difference else None
    return rises if ends and ends.low > 0 else falls if ends and ends.high < 0 else ""
