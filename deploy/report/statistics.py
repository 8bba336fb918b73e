"""What a report says of several seeds: estimates, their intervals, and comparisons. Pure functions over numpy arrays.

S: seeds; E: evaluations of a run; R: resamples. Every interval is a 95 % percentile bootstrap over seeds, the
seeds drawn by one fixed generator: a report comes out the same each time, and whatever is computed from
the same seeds is resampled in the same way, so that comparisons stay paired.

Percentile, not BCa: BCa's correction leaves out one seed at a time, and with few seeds that changes the statistic
itself (the interquartile mean of four seeds cuts two, of three none); where all are equal it is not defined at all.
It is also what Agarwal et al. (2021) use. It is too narrow with few seeds. How often it holds the truth, measured on
normal samples: with 2, 3, 5, 10 and 20 seeds 50, 73, 84, 91 and 93 % for the mean, 50, 73, 90, 95 and 95 % for the
interquartile mean. BCa is no better there (mean, 5 and 10 seeds: 84 and 89 %).
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, Protocol, overload

import numpy as np
from numpy.typing import ArrayLike, NDArray

Values = NDArray[np.float64]

# One more than a multiple of 40: both ends of an interval are resamples themselves, not points between two.
RESAMPLES = 10_001
ENDS = (0.025, 0.975)
BOOTSTRAP_SEED = 0


class Statistic(Protocol):
    """`[..., S] -> [...]` when called as `statistic(values, axis=-1)`, as `numpy.mean` is."""

    def __call__(self, values: Values, /, *, axis: int) -> Any: ...


@dataclass(frozen=True)
class Interval:
    """`low` to `high`. Without width where all seeds are equal: that says that they agree, not that more would."""

    low: float
    high: float


@dataclass(frozen=True)
class Estimate:
    """Interquartile mean over `seeds` runs; no `interval` with fewer than 2."""

    value: float
    interval: Interval | None
    seeds: int


@dataclass(frozen=True)
class Difference:
    """`mean` of ours minus theirs; in `wins` of `seeds` ours is the higher one, in `ties` both are equal."""

    mean: float
    interval: Interval | None
    wins: int
    ties: int
    seeds: int


@dataclass(frozen=True)
class DepthRatio:
    """Interquartile mean at depth `deeper` over that at `shallower`.

    `ratio`: None where the shallower one is 0; `note` says so, and is empty otherwise. `interval`: None where
    `ratio` is, and with fewer than 2 seeds; its `high` is infinite where more than 2.5 % of the resamples
    divide by 0. `critical`: this step in depth stands clear of all the others.
    """

    shallower: int
    deeper: int
    ratio: float | None
    interval: Interval | None
    critical: bool
    note: str


@dataclass(frozen=True, eq=False)
class Band:
    """A learning curve: interquartile mean `centre` `[E]`, interval `low` `[E]` to `high` `[E]` at each evaluation.

    With fewer than 2 seeds the ends are not numbers, of which matplotlib draws nothing.
    """

    centre: Values
    low: Values
    high: Values


@overload
def interquartile_mean(values: ArrayLike) -> float: ...
@overload
def interquartile_mean(values: ArrayLike, *, axis: int) -> Values: ...
def interquartile_mean(values: ArrayLike, *, axis: int | None = None) -> float | Values:
    """`values` `[S]` -> mean of the middle half; with an `axis`, over that axis.

    Leaves out the lowest S // 4 and the highest S // 4: whole seeds, none of fewer than 4, where it is the
    mean. Without an `axis`, raises ValueError on a wrong shape. Agarwal et al. (2021), where it is
    `scipy.stats.trim_mean(values, 0.25)`.
    """
    if axis is None:
        return float(interquartile_mean(_checked("values", values, axes=1), axis=0))
    ordered = np.sort(np.asarray(values, dtype=np.float64), axis=axis)
    seeds = ordered.shape[axis]
    middle = np.arange(seeds // 4, seeds - seeds // 4)
    return np.asarray(ordered.take(middle, axis=axis).mean(axis=axis))


def interval(values: ArrayLike, statistic: Statistic) -> Interval | None:
    """`values` `[S]` -> where `statistic` of them lies; None with fewer than 2. Raises ValueError on a wrong shape."""
    values = _checked("values", values, axes=1)
    if len(values) < 2:
        return None
    low, high = np.quantile(_resampled(values, statistic), ENDS)
    return Interval(float(low), float(high))


def estimate(values: ArrayLike) -> Estimate:
    """`values` `[S]` -> their interquartile mean and its interval. Raises ValueError on a wrong shape."""
    values = _checked("values", values, axes=1)
    return Estimate(interquartile_mean(values), interval(values, interquartile_mean), len(values))


def area_under_curve(steps: ArrayLike, values: ArrayLike) -> float:
    """`steps` `[E]` environment steps, `values` `[E]` at them -> the curve's mean height, in the units of `values`.

    Trapezoids between evaluations, over all steps between the first and the last. Raises ValueError on wrong
    shapes, on one evaluation only, and on steps that do not ascend.
    """
    steps, values = _checked("steps", steps, axes=1), _checked("values", values, axes=1)
    _same_shape("steps", steps, "values", values)
    if len(steps) < 2:
        raise ValueError("steps: one evaluation has no area under it, at least 2 are needed")
    if np.any(np.diff(steps) <= 0):
        raise ValueError("steps: must ascend from each evaluation to the next")
    return float(np.trapezoid(values, steps) / (steps[-1] - steps[0]))


def paired_difference(ours: ArrayLike, theirs: ArrayLike) -> Difference:
    """`ours` `[S]`, `theirs` `[S]`, the same seeds in the same order -> ours minus theirs, seed by seed.

    For learners of one stream: they share its luck, which a difference within a seed takes out. The plain mean,
    since interquartile means of two samples may leave out different seeds. Raises ValueError on wrong shapes.
    """
    ours, theirs = _checked("ours", ours, axes=1), _checked("theirs", theirs, axes=1)
    _same_shape("ours", ours, "theirs", theirs)
    differences = ours - theirs
    return Difference(
        mean=float(differences.mean()),
        interval=interval(differences, np.mean),
        wins=int(np.sum(ours > theirs)),
        ties=int(np.sum(ours == theirs)),
        seeds=len(differences),
    )


def depth_ratios(values: Mapping[int, ArrayLike]) -> list[DepthRatio]:
    """`values`: depth -> `[S]`, the same seeds in the same order at each -> one ratio a step in depth, ascending.

    A resample draws the same seeds at every depth. Raises ValueError on wrong shapes, and on values below 0, of
    which a ratio says nothing.
    """
    depths = sorted(values)
    series = {depth: _checked(f"depth {depth}", values[depth], axes=1) for depth in depths}
    for depth in depths:
        _same_shape(f"depth {depths[0]}", series[depths[0]], f"depth {depth}", series[depth])
        if np.any(series[depth] < 0):
            raise ValueError(f"depth {depth}: has values below 0, ratios need values from 0 up")
    ratios = [_ratio(series, *step) for step in pairwise(depths)]
    critical = _critical(ratios)
    return [replace(ratio, critical=ratio is critical) for ratio in ratios]


def curve_band(curves: ArrayLike) -> Band:
    """`curves` `[S, E]`, evaluated at the same steps -> the curve of their interquartile mean, and its band.

    The band holds at each evaluation by itself, not for the curve as a whole. Raises ValueError on a wrong shape.
    """
    curves = _checked("curves", curves, axes=2)
    intervals = [interval(evaluation, interquartile_mean) for evaluation in curves.T]
    ends = np.array([(each.low, each.high) if each else (np.nan, np.nan) for each in intervals])
    return Band(centre=interquartile_mean(curves, axis=0), low=ends[:, 0], high=ends[:, 1])


def _resampled(values: Values, statistic: Statistic) -> Values:
    """`values` `[S]` -> `statistic` `[R]` of each resample. Equal S, equal draws: what keeps comparisons paired."""
    seeds = len(values)
    draws = np.random.default_rng(BOOTSTRAP_SEED).integers(seeds, size=(RESAMPLES, seeds))
    return np.asarray(statistic(values[draws], axis=-1))


def _ratio(series: Mapping[int, Values], shallower: int, deeper: int) -> DepthRatio:
    denominator = interquartile_mean(series[shallower])
    if denominator == 0:
        note = f"undefined: the interquartile mean at depth {shallower} is 0"
        return DepthRatio(shallower, deeper, ratio=None, interval=None, critical=False, note=note)
    ratio = interquartile_mean(series[deeper]) / denominator
    ends = _ratio_interval(series[shallower], series[deeper])
    return DepthRatio(shallower, deeper, ratio, ends, critical=False, note="")


def _ratio_interval(shallower: Values, deeper: Values) -> Interval | None:
    """A resample that divides 0 by 0 may be any ratio: it counts as 0 at the low end, as infinite at the high one."""
    if len(shallower) < 2:
        return None
    with np.errstate(divide="ignore", invalid="ignore"):
        ratios = _resampled(deeper, interquartile_mean) / _resampled(shallower, interquartile_mean)
    unknown = np.isnan(ratios)
    # Nearest: nothing lies between two resamples of which one is infinite.
    low = np.quantile(np.where(unknown, 0, ratios), ENDS[0], method="nearest")
    high = np.quantile(np.where(unknown, np.inf, ratios), ENDS[1], method="nearest")
    return Interval(float(low), float(high))


def _critical(ratios: list[DepthRatio]) -> DepthRatio | None:
    """The largest ratio, if its interval lies above all the others, and above 1: losing least is not critical.

    None without a second ratio, and while one has no interval: it might be the largest.
    """
    intervals = [each.interval for each in ratios if each.interval is not None]
    if len(ratios) < 2 or len(intervals) < len(ratios):
        return None
    largest = max(range(len(ratios)), key=lambda index: ratios[index].ratio or 0.0)
    others = [each.high for index, each in enumerate(intervals) if index != largest]
    return ratios[largest] if intervals[largest].low > max(1.0, *others) else None


def _checked(name: str, values: ArrayLike, axes: int) -> Values:
    """`values` as an array of so many `axes`. Raises ValueError when they are not that, empty or not finite."""
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != axes or array.size == 0:
        raise ValueError(f"{name}: shape {array.shape}, expected {axes} axes that are not empty")
    if not np.all(np.isfinite(array)):
        raise ValueError(f"{name}: not every value is a finite number")
    return array


def _same_shape(first: str, ours: Values, second: str, theirs: Values) -> None:
    if ours.shape != theirs.shape:
        raise ValueError(f"{second}: shape {theirs.shape}, expected {ours.shape} as of {first}")
