"""Results across environments and seeds, as Agarwal et al. (2021) recommend, with the bootstrap of their rliable.

S: seeds; M: environments (rliable's tasks); T: thresholds of a performance profile; K: rows of a table; Q: numbers of a
row. Every interval is a 95 % percentile bootstrap over the seeds of each environment: it shows what other seeds would
give, not what other environments would.
"""

import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import groupby
from operator import attrgetter
from typing import NamedTuple, TypeVar

import numpy as np

from deploy.report.records import Trial
from deploy.report.scores import Algorithm, RunsOf, Score, by_algorithm, common, score, score_matrix, scored
from deploy.report.statistics import (
    BOOTSTRAP_SEED,
    Band,
    Estimate,
    Interval,
    Values,
    interquartile_mean,
    probability_of_improvement,
)

RESAMPLES = 2_000  # rliable resamples in a Python loop
THRESHOLDS = np.arange(101) / 100  # `[T]`


@dataclass(frozen=True, eq=False)
class Aggregate(Algorithm):
    """Scores of one algorithm in `envs` with `seeds`.

    `iqm`: interquartile mean of all scores. `profile` `[T]`: share of the runs with a score above each threshold.
    """

    envs: tuple[str, ...]
    seeds: tuple[int, ...]
    iqm: Estimate
    profile: Band


@dataclass(frozen=True)
class Improvement:
    """Probability that a run at depth `deeper` along `axis` has a higher score than a run at depth `shallower`.

    `axis` and `held` are those of a `CriticalStep`. `interval` is None with fewer than 2 seeds.
    """

    objective: str
    axis: str
    held: int | None
    deeper: int
    shallower: int
    envs: tuple[str, ...]
    seeds: tuple[int, ...]
    probability: float
    interval: Interval | None


@dataclass(frozen=True)
class Aggregates:
    scores: tuple[Score, ...]
    algorithms: tuple[Aggregate, ...]
    improvements: tuple[Improvement, ...]
    left_out: tuple[str, ...]  # environments whose steps of an episode are unknown

    @property
    def envs(self) -> tuple[str, ...]:
        return tuple(sorted({each.env for each in self.scores}))

    @property
    def seeds(self) -> int:
        """Largest number of seeds of an algorithm."""
        return max((len(each.seeds) for each in self.algorithms), default=0)

    @property
    def uneven(self) -> bool:
        """True if an algorithm lacks an environment or a seed that another one has."""
        runs = Counter(each.name for each in self.scores)
        return min(runs.values(), default=0) < len({(each.env, each.seed) for each in self.scores})

    @property
    def mixed(self) -> bool:
        """True if algorithms have several objectives."""
        return len({each.objective for each in self.algorithms}) > 1

    @property
    def separations(self) -> int:
        """Orders in which the runs of two algorithms can rank in one environment; in 2 of them all of one lead."""
        return math.comb(2 * self.seeds, self.seeds)


class _Axis(NamedTuple):
    """An axis along which depths are compared, with the fields of an algorithm that are held and changed along it."""

    name: str
    held: str | None
    changed: tuple[str, ...]

    def held_depth(self, algorithm: Algorithm) -> int | None:
        return getattr(algorithm, self.held) if self.held else None


_AXES = (
    _Axis("learner", "collector_depth", ("learner_depth",)),
    _Axis("collector", "learner_depth", ("collector_depth",)),
    _Axis("active", None, ("collector_depth", "learner_depth")),
)


class _Pair(NamedTuple):
    axis: _Axis
    deeper: Algorithm
    shallower: Algorithm


class _Found(NamedTuple):
    """Statistics `[Q]` of a row of a table, over the environments and seeds that all its algorithms have."""

    envs: tuple[str, ...]
    seeds: tuple[int, ...]
    values: Values
    low: Values
    high: Values


Row = TypeVar("Row", Algorithm, _Pair)


def aggregate(trials: Iterable[Trial], episode_lengths: Mapping[str, int]) -> Aggregates:
    """Returns the results of all trials. `episode_lengths`: environment -> steps of an episode."""
    trials = list(trials)
    runs = by_algorithm(score(trial, episode_lengths[trial.env]) for trial in scored(trials, episode_lengths))
    alone = _estimates(_iqm_and_profile, {each: (held,) for each, held in runs.items()})
    pairs = _estimates(_probability, {pair: (runs[pair.deeper], runs[pair.shallower]) for pair in _pairs(runs)})
    return Aggregates(
        scores=tuple(each for held in runs.values() for each in held.values()),
        algorithms=tuple(_aggregate(each, found) for each, found in alone.items()),
        improvements=tuple(_improvement(pair, found) for pair, found in pairs.items()),
        left_out=tuple(sorted({trial.env for trial in trials} - episode_lengths.keys())),
    )


def _pairs(runs: Iterable[Algorithm]) -> Iterator[_Pair]:
    """Yields each deeper algorithm with the shallowest one along each axis, in the order of the depths held."""
    runs = list(runs)
    for axis in _AXES:
        compared = [each for each in runs if each.active == (axis.held is None)]
        least = min((getattr(each, axis.changed[0]) for each in compared), default=0)
        for _, group in groupby(compared, attrgetter("objective")):
            for deeper in sorted(group, key=lambda each: axis.held_depth(each) or 0):
                shallower = Algorithm(**vars(deeper) | dict.fromkeys(axis.changed, least))
                if deeper != shallower and shallower in runs:
                    yield _Pair(axis, deeper, shallower)


def _aggregate(algorithm: Algorithm, found: _Found) -> Aggregate:
    values, low, high = found.values, found.low, found.high
    return Aggregate(
        **vars(algorithm),
        envs=found.envs,
        seeds=found.seeds,
        iqm=Estimate(float(values[0]), _interval(low[0], high[0]), len(found.seeds)),
        profile=Band(values[1:], low[1:], high[1:]),
    )


def _improvement(pair: _Pair, found: _Found) -> Improvement:
    axis, deeper, shallower = pair
    return Improvement(
        objective=deeper.objective,
        axis=axis.name,
        held=axis.held_depth(deeper),
        deeper=getattr(deeper, axis.changed[0]),
        shallower=getattr(shallower, axis.changed[0]),
        envs=found.envs,
        seeds=found.seeds,
        probability=float(found.values[0]),
        interval=_interval(found.low[0], found.high[0]),
    )


def _interval(low: float, high: float) -> Interval | None:
    return None if math.isnan(low) else Interval(float(low), float(high))


def _iqm_and_profile(scores: Values) -> Values:
    """Returns `[K, 1 + T]` of `scores` `[S, M, K]`: all runs count alike, whatever their environment."""
    runs = scores.reshape(-1, scores.shape[-1]).T
    return np.column_stack([interquartile_mean(runs, axis=1), (runs[..., None] > THRESHOLDS).mean(axis=1)])


def _probability(ours: Values, theirs: Values) -> Values:
    """Returns `[K, 1]` of scores `[S, M, K]`."""
    return probability_of_improvement(ours, theirs)[:, None]


def _estimates(statistic: Callable[..., Values], rows: Mapping[Row, tuple[RunsOf[Score], ...]]) -> dict[Row, _Found]:
    """Returns `statistic` of each row's scores, in the order of `rows`; a row without a common seed is left out.

    Rows with the same environments and seeds are resampled in one call, each by draws of its own: every call of rliable
    is a Python loop over the resamples.
    """
    groups: dict[tuple[tuple[str, ...], tuple[int, ...]], list[Row]] = {}
    for row, held in rows.items():
        groups.setdefault(common(*held), []).append(row)
    found = {}
    for (envs, seeds), group in groups.items():
        if seeds:
            sides = zip(*(rows[row] for row in group), strict=True)
            scores = [np.stack([score_matrix(runs, envs, seeds) for runs in side], axis=-1) for side in sides]
            for row, *estimated in zip(group, *_bootstrapped(statistic, *scores), strict=True):
                found[row] = _Found(envs, seeds, *estimated)
    return {row: found[row] for row in rows if row in found}


def _bootstrapped(statistic: Callable[..., Values], *scores: Values) -> tuple[Values, Values, Values]:
    """Returns `statistic` `[K, Q]` of `scores`, arrays `[S, M, K]`, and both ends of its intervals: NaN where S < 2.

    rliable draws from numpy's global generator, whatever `random_state` it is given. Equal seeds for every call give
    the same report each time.
    """
    values = statistic(*scores)
    if len(scores[0]) < 2:
        return values, *np.full((2, *values.shape), np.nan)
    from rliable.library import get_interval_estimates  # here, because its import takes seconds

    state = np.random.get_state()
    np.random.seed(BOOTSTRAP_SEED)
    try:
        _, ends = get_interval_estimates(
            {"": list(scores)}, lambda *resampled: statistic(*resampled).ravel(), reps=RESAMPLES
        )
    finally:
        np.random.set_state(state)
    return values, *ends[""].reshape(2, *values.shape)
