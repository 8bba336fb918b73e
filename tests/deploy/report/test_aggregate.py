"""Numbers across environments and seeds: computed by hand, and by rliable."""

from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from rliable import library, metrics

from deploy.report.aggregate import RESAMPLES, THRESHOLDS, Aggregates, aggregate
from deploy.report.analyse import make_report
from deploy.report.profiles import profiles
from deploy.report.read import read_matrix
from deploy.report.records import Trial
from deploy.report.statistics import BOOTSTRAP_SEED, Interval, probability_of_improvement

LENGTHS = {"ant": 100, "arm": 10}
Finals = dict[tuple[str, int], float]  # time at goal by environment and seed
MakeTrials = Callable[..., list[Trial]]


@pytest.fixture(scope="module")
def whole(all_runs: Path) -> Aggregates:
    """Aggregates of a matrix with two collector depths, two learner depths and three seeds."""
    return make_report(read_matrix(all_runs)).aggregates


@pytest.fixture(scope="module")
def make_trials(all_runs: Path) -> MakeTrials:
    """Returns `make_trials(finals, learner_depth=4, **changes)`: trials with these times at goal."""
    template = next(trial for trial in read_matrix(all_runs).trials if not trial.active)

    def make(finals: Finals, learner_depth: int = 4, **changes: object) -> list[Trial]:
        changed = replace(template, learner_depth=learner_depth, **changes)
        return [replace(changed, env=env, seed=seed, final=final) for (env, seed), final in finals.items()]

    return make


def in_ant(finals: Iterable[float]) -> Finals:
    return {("ant", seed): final for seed, final in enumerate(finals)}


EIGHT = in_ant([0, 10, 20, 30]) | {("arm", seed): final for seed, final in enumerate([9, 4, 6, 5])}


def test_the_interquartile_mean_is_over_the_scores_of_all_environments_and_seeds(make_trials: MakeTrials) -> None:
    (found,) = aggregate(make_trials(EIGHT), LENGTHS).algorithms
    # Scores 0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6 and 0.9: the two lowest and the two highest are cut.
    assert found.iqm.value == pytest.approx((0.2 + 0.3 + 0.4 + 0.5) / 4)
    assert (found.envs, found.seeds, found.iqm.seeds) == (("ant", "arm"), (0, 1, 2, 3), 4)


def test_a_profile_is_the_share_of_runs_above_each_threshold(make_trials: MakeTrials) -> None:
    (found,) = aggregate(make_trials(EIGHT), LENGTHS).algorithms
    at = dict(zip(THRESHOLDS.tolist(), found.profile.centre.tolist(), strict=True))
    assert [at[tau] for tau in (0.0, 0.29, 0.3, 0.59, 0.89, 0.9, 1.0)] == [7 / 8, 5 / 8, 4 / 8, 2 / 8, 1 / 8, 0, 0]
    assert np.all(found.profile.low <= found.profile.centre)
    assert np.all(found.profile.centre <= found.profile.high)


def test_intervals_are_those_of_rliable_and_the_same_each_time(make_trials: MakeTrials) -> None:
    scores = np.random.default_rng(0).uniform(size=(5, 2))  # by seed and environment
    trials = make_trials(
        {(env, seed): scores[seed, place] * LENGTHS[env] for place, env in enumerate(LENGTHS) for seed in range(5)}
    )
    (first,) = aggregate(trials, LENGTHS).algorithms
    np.random.seed(BOOTSTRAP_SEED + 1)
    before = np.random.get_state()[1].copy()
    (second,) = aggregate(trials, LENGTHS).algorithms
    np.testing.assert_array_equal(np.random.get_state()[1], before)  # numpy's global generator is as it was
    assert first.iqm == second.iqm

    np.random.seed(BOOTSTRAP_SEED)
    values, ends = library.get_interval_estimates(
        {"": scores}, lambda x: np.array([metrics.aggregate_iqm(x)]), reps=RESAMPLES
    )
    assert first.iqm.interval is not None
    assert [first.iqm.value] == pytest.approx(values[""])
    assert [first.iqm.interval.low, first.iqm.interval.high] == pytest.approx(ends[""][:, 0])
    np.random.seed(BOOTSTRAP_SEED)
    profile, bands = library.create_performance_profile({"": scores}, THRESHOLDS, reps=RESAMPLES)
    np.testing.assert_allclose(first.profile.centre, profile[""])
    np.testing.assert_allclose([first.profile.low, first.profile.high], bands[""])


def test_two_seeds_have_the_interval_between_them(make_trials: MakeTrials) -> None:
    (found,) = aggregate(make_trials(in_ant([20, 40])), LENGTHS).algorithms
    assert found.iqm.interval == Interval(0.2, 0.4)  # a resample holds one seed alone in 1 of 4 cases, for each seed


def test_one_seed_has_no_interval(make_trials: MakeTrials) -> None:
    trials = make_trials({("ant", 3): 20, ("arm", 3): 4}) + make_trials({("ant", 3): 40, ("arm", 3): 1}, 16)
    found = aggregate(trials, LENGTHS)
    assert [(each.iqm.value, each.iqm.interval) for each in found.algorithms] == [
        (pytest.approx(0.3), None),
        (pytest.approx(0.25), None),
    ]
    assert np.isnan([found.algorithms[0].profile.low, found.algorithms[0].profile.high]).all()
    assert [(each.probability, each.interval) for each in found.improvements] == [(0.5, None)]


def test_probability_of_improvement_by_hand(make_trials: MakeTrials) -> None:
    shallow = make_trials(in_ant([10, 20, 30]))
    for deep, expected in (([40, 50, 60], 1), ([1, 2, 3], 0), ([10, 20, 30], 0.5), ([15, 20, 60], (1 + 1.5 + 3) / 9)):
        (found,) = aggregate(shallow + make_trials(in_ant(deep), 16), LENGTHS).improvements
        assert (found.deeper, found.shallower, found.axis, found.held) == (16, 4, "learner", 4)
        assert found.probability == pytest.approx(expected)
    (separated,) = aggregate(shallow + make_trials(in_ant([40, 50, 60]), 16), LENGTHS).improvements
    assert separated.interval == Interval(1, 1)


def test_probability_of_improvement_is_that_of_rliable() -> None:
    generator = np.random.default_rng(0)
    for _ in range(20):
        ours, theirs = generator.integers(6, size=(5, 3)) / 5, generator.integers(6, size=(4, 3)) / 5  # with ties
        assert probability_of_improvement(ours, theirs) == pytest.approx(
            metrics.probability_of_improvement(ours, theirs)
        )


def test_environments_count_alike_in_the_probability_of_improvement(make_trials: MakeTrials) -> None:
    shallow = make_trials({("ant", 0): 10, ("ant", 1): 10, ("arm", 0): 5, ("arm", 1): 5})
    deep = make_trials({("ant", 0): 99, ("ant", 1): 99, ("arm", 0): 4, ("arm", 1): 5}, 16)
    (found,) = aggregate(shallow + deep, LENGTHS).improvements
    assert found.probability == pytest.approx((1 + 0.25) / 2)


def test_learners_are_compared_in_the_environments_and_seeds_that_both_have(make_trials: MakeTrials) -> None:
    shallow = make_trials({("ant", 0): 10, ("ant", 1): 20, ("ant", 2): 30, ("arm", 0): 9, ("arm", 2): 9})
    deep = make_trials({("ant", 1): 25, ("ant", 2): 15, ("ant", 3): 90}, 16)
    found = aggregate(shallow + deep, LENGTHS)
    assert [(each.envs, each.seeds) for each in found.algorithms] == [(("ant", "arm"), (0, 2)), (("ant",), (1, 2, 3))]
    (improvement,) = found.improvements
    assert (improvement.envs, improvement.seeds) == (("ant",), (1, 2))
    assert improvement.probability == 0.25  # of 25 and 15 against 20 and 30, only 25 against 20
    assert found.uneven


def test_learners_without_a_common_run_are_not_compared(make_trials: MakeTrials) -> None:
    assert aggregate(make_trials({("ant", 0): 1}) + make_trials({("ant", 1): 2}, 16), LENGTHS).improvements == ()
    assert aggregate(make_trials({("ant", 0): 1}) + make_trials({("arm", 0): 2}, 16), LENGTHS).improvements == ()
    assert aggregate(make_trials({("ant", 0): 1, ("arm", 1): 1}), LENGTHS).algorithms == ()  # no seed in both
    assert aggregate([], LENGTHS) == Aggregates((), (), (), ())


def test_runs_without_a_score_are_left_out(make_trials: MakeTrials) -> None:
    trials = make_trials({("ant", 0): 10, ("ant", 1): np.nan, ("unknown", 0): 5})
    found = aggregate(trials, LENGTHS)
    assert [(each.env, each.seed, each.score) for each in found.scores] == [("ant", 0, 0.1)]
    assert found.left_out == ("unknown",)
    assert not found.uneven


def test_depths_are_compared_along_every_axis(whole: Aggregates) -> None:
    # Time at goal: (4, 4) 4 to 6, (4, 16) 5 to 7, (16, 4) 6 to 8, (16, 16) 12 to 14, collector learners 1.
    assert [(each.axis, each.held, each.probability) for each in whole.improvements] == [
        ("learner", 4, pytest.approx((1.5 + 2.5 + 3) / 9)),
        ("learner", 16, 1),
        ("collector", 4, pytest.approx((2.5 + 3 + 3) / 9)),
        ("collector", 16, 1),
        ("active", None, 0.5),
    ]
    assert {(each.deeper, each.shallower) for each in whole.improvements} == {(16, 4)}
    assert not whole.uneven


def test_rows_are_in_the_order_of_depths_whatever_seeds_they_have(make_trials: MakeTrials) -> None:
    seeds = {16: 1, 4: 2, 8: 3}  # by collector depth, in the order of the runs
    trials = [
        trial
        for collector, count in seeds.items()
        for learner in (16, 4)
        for trial in make_trials(in_ant([1] * (count if learner == 16 else 2)), learner, collector_depth=collector)
    ]
    found = aggregate(trials, LENGTHS)
    assert [(each.collector_depth, each.learner_depth, len(each.seeds)) for each in found.algorithms] == [
        *((4, 4, 2), (4, 16, 2), (8, 4, 2), (8, 16, 3), (16, 4, 2), (16, 16, 1)),
    ]
    assert [(each.axis, each.held, each.deeper, len(each.seeds)) for each in found.improvements] == [
        *(("learner", 4, 16, 2), ("learner", 8, 16, 2), ("learner", 16, 16, 1)),
        *(("collector", 4, 8, 2), ("collector", 4, 16, 2), ("collector", 16, 8, 2), ("collector", 16, 16, 1)),
    ]


def test_one_environment_has_the_means_of_its_cells(whole: Aggregates, all_runs: Path) -> None:
    (report,) = make_report(read_matrix(all_runs)).envs
    assert report.episode_length == 20
    assert [each.iqm.value * 20 for each in whole.algorithms] == pytest.approx(
        [cell.time_at_goal.value for cell in (*report.cells, *report.active)]
    )
    assert [each.name for each in whole.algorithms] == [
        *("contrastive-c4-d4", "contrastive-c4-d16", "contrastive-c16-d4", "contrastive-c16-d16"),
        *("contrastive-c4-active", "contrastive-c16-active"),
    ]


def test_profiles_have_a_chart_for_each_objective_and_collector_depth(whole: Aggregates, objectives: Path) -> None:
    charts = profiles(whole)
    assert list(charts) == ["collector depth 4", "collector depth 16", "collector learners: ordinary training"]
    shallow, deep = charts["collector depth 16"]
    assert (shallow.name, deep.name) == ("depth 4", "depth 16")
    # Scores 0.3, 0.35, 0.4 and 0.6, 0.65, 0.7.
    assert [line.y[[29, 30, 35, 60, 70]].tolist() for line in (shallow, deep)] == [
        pytest.approx([100, 200 / 3, 100 / 3, 0, 0]),
        pytest.approx([100, 100, 100, 200 / 3, 0]),
    ]
    assert shallow.colour == charts["collector depth 4"][0].colour != deep.colour
    several = profiles(make_report(read_matrix(objectives)).aggregates)
    assert list(several)[:3] == [
        "contrastive, collector depth 4",
        "contrastive, collector depth 16",
        "survival, collector depth 4",
    ]
