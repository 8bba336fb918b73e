"""Statistics of the report by hand and against SciPy."""

import warnings
from collections.abc import Callable
from functools import partial

import numpy as np
import pytest
from numpy.typing import ArrayLike
from scipy import stats

from deploy.report import statistics
from deploy.report.statistics import Estimate, Interval, Statistic
from deploy.report.text import verdict

SCIPY_IQM = partial(stats.trim_mean, proportiontocut=0.25)


def interval_of(values: ArrayLike, statistic: Statistic = statistics.interquartile_mean) -> Interval:
    ends = statistics.interval(values, statistic)
    assert ends is not None
    return ends


def width(ends: Interval | None) -> float:
    assert ends is not None
    return ends.high - ends.low


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([7], 7),
        ([1, 3], 2),
        ([1, 3, 11], 5),  # fewer than 4: none is left out
        ([100, 2, 4, -50], 3),
        ([1, 2, 3, 4, 1000], 3),  # 5 // 4: one at each end
        ([9, 1, 8, 2, 7, 3, 6, 4], 5),  # 3, 4, 6 and 7
    ],
)
def test_interquartile_mean_by_hand(values: list[float], expected: float) -> None:
    assert statistics.interquartile_mean(values) == expected


@pytest.mark.parametrize("seeds", range(1, 14))
def test_interquartile_mean_is_scipys_trimmed_mean(seeds: int) -> None:
    values = np.random.default_rng(seeds).normal(size=(3, seeds))
    assert statistics.interquartile_mean(values[0]) == pytest.approx(SCIPY_IQM(values[0]))
    np.testing.assert_allclose(statistics.interquartile_mean(values, axis=1), SCIPY_IQM(values, axis=1))
    np.testing.assert_allclose(statistics.interquartile_mean(values, axis=0), SCIPY_IQM(values, axis=0))


@pytest.mark.parametrize(
    ("ours", "scipys"), [(np.mean, np.mean), (np.median, np.median), (statistics.interquartile_mean, SCIPY_IQM)]
)
@pytest.mark.parametrize("seeds", [2, 5, 20])
def test_the_interval_is_scipys_percentile_bootstrap(ours: Statistic, scipys: Statistic, seeds: int) -> None:
    values = np.random.default_rng(seeds).exponential(size=seeds)
    expected = stats.bootstrap(
        (values,),
        scipys,
        method="percentile",
        n_resamples=statistics.RESAMPLES,
        rng=np.random.default_rng(statistics.BOOTSTRAP_SEED),
    ).confidence_interval
    ends = interval_of(values, ours)
    assert (ends.low, ends.high) == pytest.approx((expected.low, expected.high))


@pytest.mark.parametrize("seeds", [2, 5, 12])
def test_resamples_are_those_of_all_draws_one_by_one(seeds: int) -> None:
    values = np.random.default_rng(seeds).exponential(size=seeds)
    draws = np.random.default_rng(statistics.BOOTSTRAP_SEED).integers(seeds, size=(statistics.RESAMPLES, seeds))
    one_by_one = [values[draw].mean() for draw in draws]
    np.testing.assert_array_equal(statistics._resampled(values, np.mean), one_by_one)


def test_the_interval_of_few_seeds_by_hand() -> None:
    # A resample holds only the lowest value in 1 of 4 cases (2 seeds) and 1 of 27 (3 seeds), both more than 2.5 %.
    assert interval_of([1, 5], np.mean) == Interval(1, 5)
    assert interval_of([1, 5, 6], np.mean) == Interval(1, 6)
    assert statistics.interval([3], np.mean) is None


def test_the_interval_without_spread_has_no_width() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert interval_of([0, 0, 0, 0, 0]) == Interval(0, 0)
        assert interval_of([2.5, 2.5]) == Interval(2.5, 2.5)


def test_the_interval_is_reproducible_and_scales_with_units() -> None:
    values = np.random.default_rng(0).normal(size=6)
    first = interval_of(values)
    assert interval_of(values) == first
    scaled = interval_of(10 * values + 3)
    assert (scaled.low, scaled.high) == pytest.approx((10 * first.low + 3, 10 * first.high + 3))


@pytest.mark.parametrize(
    ("seeds", "statistic", "expected"),
    [(5, np.mean, 0.84), (20, np.mean, 0.93), (20, statistics.interquartile_mean, 0.95)],
)
def test_the_interval_covers_the_true_mean_as_documented(seeds: int, statistic: Statistic, expected: float) -> None:
    samples = np.random.default_rng(1).normal(loc=3, size=(300, seeds))
    covered = np.mean([each.low <= 3 <= each.high for each in (interval_of(sample, statistic) for sample in samples)])
    assert covered == pytest.approx(expected, abs=0.05)  # standard error at most 0.021


def test_estimate() -> None:
    values = [1.0, 2.0, 4.0, 30.0]
    assert statistics.estimate(values) == Estimate(3.0, interval_of(values), 4)
    assert statistics.estimate([2.0]) == Estimate(2.0, None, 1)


def test_area_under_curve_by_hand() -> None:
    assert statistics.area_under_curve([0, 10], [0, 8]) == 4
    assert statistics.area_under_curve([0, 10, 40], [2, 4, 4]) == pytest.approx((30 + 120) / 40)
    assert statistics.area_under_curve([500, 600, 900], [7, 7, 7]) == pytest.approx(7)


def test_area_under_a_straight_line_does_not_depend_on_the_evaluations() -> None:
    assert statistics.area_under_curve([0, 1, 50, 100], [0, 1, 50, 100]) == pytest.approx(50)


def test_paired_difference_by_hand() -> None:
    difference = statistics.paired_difference([3, 5, 4, 2], [1, 4, 4, 5])
    assert (difference.mean, difference.wins, difference.ties, difference.seeds) == (0, 2, 1, 4)
    assert difference.interval == interval_of([2, 1, 0, -3], np.mean)
    assert statistics.paired_difference([3], [1]).interval is None


def test_the_seeds_needed_are_those_of_students_test() -> None:
    few = np.array([27.0, 44, -1, 34, 44])
    needed = statistics.seeds_needed(few)
    assert needed == statistics.paired_difference(few, np.zeros(5)).needed == 4
    for seeds in (needed - 1, needed):
        mean, error = few.mean(), few.std(ddof=1) / np.sqrt(seeds)
        low, _ = stats.t.interval(0.95, seeds - 1, loc=mean, scale=error)
        assert (low > 0) == (seeds == needed)
    assert statistics.seeds_needed(-few) == needed
    assert statistics.seeds_needed([1, 1]) == 2  # no spread at all
    assert statistics.seeds_needed([1, 100]) == 10
    assert statistics.seeds_needed([1, -1]) is statistics.seeds_needed([0, 0]) is statistics.seeds_needed([7]) is None


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ([27, 44, -1, 34, 44], "The interval lies above zero."),
        ([-30, -29, -31, -30], "The interval lies below zero."),
        (
            [30, 5, 40],
            "The interval lies above zero; by Student's, which is wider, that takes about 5 seeds at this mean and "
            "spread.",
        ),
        ([30, -5, 40], "The interval holds zero; to tell it from zero takes about 8 seeds at this mean and spread."),
        ([1, -1], "The interval holds zero; to tell it from zero takes more than 1,000 seeds at this mean and spread."),
        ([5], "One seed has no interval."),
    ],
)
def test_a_verdict_says_how_many_seeds_it_takes(values: list[float], sentence: str) -> None:
    assert verdict(statistics.paired_difference(values, [0] * len(values))) == sentence


def test_pairing_removes_variation_shared_by_seeds() -> None:
    noise = np.random.default_rng(0).normal(size=(3, 8))
    theirs, ours = 10 * noise[0] + noise[1], 10 * noise[0] + noise[2] + 3
    paired = statistics.paired_difference(ours, theirs)
    shuffled = statistics.paired_difference(np.roll(ours, 3), theirs)
    assert paired.mean == pytest.approx(shuffled.mean)
    assert width(paired.interval) < width(shuffled.interval) / 4
    assert paired.interval is not None
    assert paired.interval.low > 0
    assert shuffled.interval is not None
    assert shuffled.interval.low < 0


def test_depth_ratios_by_hand() -> None:
    first, second = statistics.depth_ratios({16: [32, 64, 96], 4: [1, 2, 3], 8: [2, 4, 6]})
    assert (first.shallower, first.deeper, first.ratio, first.interval) == (4, 8, 2, Interval(2, 2))
    # Every seed has the ratio 16, and so has every resample: the same seeds are drawn at both depths.
    assert (second.shallower, second.deeper, second.ratio, second.interval) == (8, 16, 16, Interval(16, 16))
    assert (first.critical, second.critical) == (False, True)
    assert first.note == second.note == ""


def test_ratio_intervals_are_scipys_paired_bootstrap() -> None:
    shallower, deeper = np.random.default_rng(0).exponential(size=(2, 9))
    expected = stats.bootstrap(
        (deeper, shallower),
        lambda ours, theirs, axis: SCIPY_IQM(ours, axis=axis) / SCIPY_IQM(theirs, axis=axis),
        paired=True,
        vectorized=True,
        method="percentile",
        n_resamples=statistics.RESAMPLES,
        rng=np.random.default_rng(statistics.BOOTSTRAP_SEED),
    ).confidence_interval
    (ratio,) = statistics.depth_ratios({1: shallower, 2: deeper})
    assert ratio.interval is not None
    assert (ratio.interval.low, ratio.interval.high) == pytest.approx((expected.low, expected.high))


def test_pairing_narrows_ratios_of_correlated_seeds() -> None:
    noise = np.random.default_rng(0).uniform(0.9, 1.1, size=(2, 8))
    seed_effect = np.linspace(1, 9, 8)
    (paired,) = statistics.depth_ratios({4: seed_effect * noise[0], 8: 2 * seed_effect * noise[1]})
    (shuffled,) = statistics.depth_ratios({4: seed_effect * noise[0], 8: 2 * np.roll(seed_effect * noise[1], 4)})
    assert width(paired.interval) < width(shuffled.interval) / 4


def critical(values: dict[int, list[float]]) -> list[int]:
    return [each.deeper for each in statistics.depth_ratios(values) if each.critical]


def test_the_critical_depth_lies_above_all_others() -> None:
    jump = {4: [10.0, 11, 9, 10], 8: [11.0, 10, 10, 12], 16: [50.0, 60, 55, 52], 32: [60.0, 58, 61, 57]}
    assert critical(jump) == [16]
    even = {4: [10.0, 11, 9, 10], 8: [20.0, 24, 17, 21], 16: [45.0, 40, 36, 47], 32: [80.0, 99, 78, 90]}
    assert critical(even) == []
    uncertain = jump | {16: [10.0, 60, 11, 52]}
    assert critical(uncertain) == []


def test_ratios_that_cannot_be_compared_or_lie_below_one_are_not_critical() -> None:
    assert critical({4: [1.0, 1, 1], 8: [9.0, 9, 9]}) == []  # a single ratio
    assert critical({4: [1.0], 8: [1.0], 16: [9.0]}) == []  # a single seed
    assert critical({4: [100.0, 100], 8: [90.0, 90], 16: [9.0, 9]}) == []  # the largest is 0.9
    assert critical({4: [0.0, 0], 8: [1.0, 1], 16: [9.0, 9]}) == []  # the step from 0 to 1 may be the largest
    assert statistics.depth_ratios({}) == statistics.depth_ratios({4: [1.0]}) == []


def test_a_ratio_to_zero_is_undefined_with_a_note() -> None:
    first, second = statistics.depth_ratios({4: [0, 0, 0, 5], 8: [2, 2, 2, 2], 16: [0, 0, 0, 0]})
    assert (first.ratio, first.interval) == (None, None)
    assert first.note == "undefined: the interquartile mean at depth 4 is 0"
    assert (second.ratio, second.interval, second.note) == (0, Interval(0, 0), "")


def test_resamples_with_a_zero_denominator_leave_the_interval_open() -> None:
    (open_above,) = statistics.depth_ratios({4: [0, 2], 8: [4, 4]})  # resamples: 4 / 0, 4 / 1, 4 / 2
    assert (open_above.ratio, open_above.interval) == (4, Interval(2, np.inf))
    (unknown,) = statistics.depth_ratios({4: [0, 2], 8: [0, 4]})  # resamples: 0 / 0, 2 / 1, 4 / 2
    assert (unknown.ratio, unknown.interval) == (2, Interval(0, np.inf))


def test_a_ratio_of_one_seed_has_no_interval() -> None:
    (ratio,) = statistics.depth_ratios({4: [2], 8: [6]})
    assert (ratio.ratio, ratio.interval, ratio.critical, ratio.note) == (3, None, False, "")


def test_curve_band_is_the_interval_of_each_evaluation() -> None:
    curves = np.random.default_rng(0).normal(size=(5, 3))
    band = statistics.curve_band(curves)
    for evaluation in range(3):
        values = curves[:, evaluation]
        assert band.centre[evaluation] == statistics.interquartile_mean(values)
        assert Interval(band.low[evaluation], band.high[evaluation]) == interval_of(values)


def test_the_band_of_one_curve_has_no_ends() -> None:
    band = statistics.curve_band([[1, 2, 3]])
    np.testing.assert_array_equal(band.centre, [1, 2, 3])
    assert np.isnan([band.low, band.high]).all()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: statistics.interquartile_mean([]), r"values: shape \(0,\), expected 1 axes"),
        (lambda: statistics.interquartile_mean([[1, 2]]), r"values: shape \(1, 2\), expected 1 axes"),
        (lambda: statistics.interval([1, np.nan], np.mean), "values: not every value is a finite number"),
        (lambda: statistics.estimate(3), r"values: shape \(\)"),
        (lambda: statistics.area_under_curve([0, 1], [1, 2, 3]), r"values: shape \(3,\), expected \(2,\) as of steps"),
        (lambda: statistics.area_under_curve([5], [1]), "steps: one evaluation"),
        (lambda: statistics.area_under_curve([0, 5, 5], [1, 1, 1]), "steps: must ascend"),
        (lambda: statistics.paired_difference([1, 2], [1]), r"theirs: shape \(1,\), expected \(2,\) as of ours"),
        (lambda: statistics.depth_ratios({4: [1, 2], 8: [1]}), r"depth 8: shape \(1,\), expected \(2,\) as of depth 4"),
        (lambda: statistics.depth_ratios({4: [1, -2]}), "depth 4: has values below 0"),
        (lambda: statistics.curve_band([1, 2]), r"curves: shape \(2,\), expected 2 axes"),
    ],
)
def test_the_error_names_the_wrong_input(call: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
