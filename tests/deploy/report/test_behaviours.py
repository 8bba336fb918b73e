"""Behaviour along depth, from episodes with outcomes chosen by hand."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.compute as pc
import pytest
from pyarrow import feather

from deploy.report.analyse import make_report
from deploy.report.behaviours import split
from deploy.report.contents import Behaviour
from deploy.report.files import write_files
from deploy.report.read import read_matrix
from deploy.report.records import MatrixRecord, Outcomes
from deploy.report.statistics import clear_step, depth_ratios


@pytest.fixture(scope="module")
def record(all_runs: Path) -> MatrixRecord:
    return read_matrix(all_runs)


@pytest.fixture(scope="module")
def behaviour(record: MatrixRecord) -> Behaviour:
    return make_report(record).envs[0].behaviour


def test_a_depth_unlocks_a_goal(behaviour: Behaviour) -> None:
    steps = {(each.axis, each.held): each for each in behaviour.changes}
    assert steps.keys() == {
        ("learner", 4), ("learner", 16), ("collector", 4), ("collector", 16), ("active", None),
    }  # fmt: skip
    unlocks = steps["learner", 4]
    assert (unlocks.shallower, unlocks.deeper) == (4, 16)
    assert (unlocks.unlocked, unlocks.lost, unlocks.goals) == (1, 0, 2)
    assert unlocks.success.mean == 0.5
    assert unlocks.split_at_shallower == 1
    assert np.isnan(unlocks.split_at_deeper)  # every episode reaches its goal
    assert unlocks.verdict == "more goals reached"
    same = steps["collector", 16]
    assert (same.unlocked, same.success.mean, same.verdict) == (0, 0, "no clear change")


def test_success_is_counted_by_the_goals_cell(behaviour: Behaviour) -> None:
    assert behaviour.walls is not None
    places = {(each.collector_depth, each.learner_depth, each.active): each for each in behaviour.goals}
    assert len(places) == 6
    shallow, deep = places[16, 4, False], places[16, 16, False]
    assert shallow.places == deep.places == ((1, 3), (3, 1))
    assert shallow.names == ("1,3", "3,1")
    np.testing.assert_array_equal(shallow.success, [1, 0])
    np.testing.assert_array_equal(deep.success, [1, 1])
    np.testing.assert_array_equal(deep.episodes, [12, 12])  # of two evaluations of three seeds


def test_without_a_maze_success_is_counted_by_distance(record: MatrixRecord) -> None:
    class Open:
        spec = record.envs["point_u_maze"].spec

    changed = dataclasses.replace(record, envs={"point_u_maze": Open()})
    behaviour = make_report(changed).envs[0].behaviour
    assert behaviour.walls is None
    goals = next(each for each in behaviour.goals if (each.collector_depth, each.learner_depth) == (4, 4))
    assert goals.names == ("1-2", "2-4", "4-8")
    np.testing.assert_array_equal(goals.success, [1, 1, 0])


def test_older_runs_have_no_changes(record: MatrixRecord) -> None:
    trials = [dataclasses.replace(trial, outcomes=None, behaviour={}) for trial in record.trials]
    behaviour = make_report(dataclasses.replace(record, trials=trials)).envs[0].behaviour
    assert (behaviour.measures, behaviour.changes, behaviour.goals) == ((), (), ())
    assert {jump.measure for jump in behaviour.jumps} == {"time_at_goal"}


def test_a_learner_without_episodes_has_no_changes(write_runs: Callable[..., Path]) -> None:
    folder = write_runs()
    for path in folder.glob("*/episodes.arrow"):
        table = feather.read_table(path)
        feather.write_feather(table.filter(pc.field("learner") != "d16"), path)
    record = read_matrix(folder)
    assert {trial.learner for trial in record.trials if trial.outcomes is None} == {"d16"}
    assert {each.axis for each in make_report(record).envs[0].behaviour.changes} == {"collector", "active"}


def test_measures_are_means_of_the_last_evaluations(behaviour: Behaviour) -> None:
    assert behaviour.measures == ("path_length",)
    deep = next(each for each in behaviour.cells if (each.collector_depth, each.learner_depth) == (4, 16))
    assert deep.measures["path_length"].value == 16
    assert not any(jump.step.critical for jump in behaviour.jumps)  # of two depths


def three_depths(record: MatrixRecord, values: dict[int, float]) -> list[str]:
    """Returns the measures that jump if path lengths at learner depths 4, 16 and 64 are these, with noise of a seed."""
    matrix = record.matrix.model_copy(update={"learner_depths": (4, 16, 64)})
    deepest = [dataclasses.replace(trial, learner_depth=64) for trial in record.trials if trial.learner_depth == 16]
    trials = [
        dataclasses.replace(trial, behaviour={"path_length": values[trial.learner_depth] * (1 + 0.01 * trial.seed)})
        for trial in (*record.trials, *(trial for trial in deepest if not trial.active))
    ]
    changed = dataclasses.replace(record, matrix=matrix, trials=trials)
    jumps = make_report(changed).envs[0].behaviour.jumps
    return [
        f"{jump.axis} {jump.held} {jump.step.shallower}-{jump.step.deeper}"
        for jump in jumps
        if jump.measure == "path_length" and jump.step.critical
    ]


def test_a_jump_stands_clear_upwards_or_downwards(record: MatrixRecord) -> None:
    assert three_depths(record, {4: 10.0, 16: 11.0, 64: 30.0}) == ["learner 4 16-64", "learner 16 16-64"]
    assert three_depths(record, {4: 30.0, 16: 10.0, 64: 9.0}) == ["learner 4 4-16", "learner 16 4-16"]
    assert three_depths(record, {4: 10.0, 16: 10.0, 64: 10.0}) == []


def test_a_fall_is_clear_only_below_all_other_steps() -> None:
    def values(*centres: float) -> dict[int, list[float]]:
        return {4 * 4**index: [centre, 1.1 * centre, 0.9 * centre] for index, centre in enumerate(centres)}

    clear = clear_step(depth_ratios(values(30, 10, 9)))
    assert clear is not None
    assert (clear.shallower, clear.deeper) == (4, 16)
    assert clear_step(depth_ratios(values(30, 10))) is None
    assert clear_step(depth_ratios({4: [9.0], 16: [3.0], 64: [2.9]})) is None  # one seed has no interval


def test_split_is_the_share_of_variance_that_goals_explain() -> None:
    assert split([np.array([50, 50]), np.array([50, 0])]) == 1
    assert split([np.array([50, 25]), np.array([50, 25])]) == 0
    assert np.isnan(split([np.array([50, 50]), np.array([50, 50])]))
    rng = np.random.default_rng(0)
    rates = rng.beta(2, 2, size=4000)  # of variance 1/20, around 1/2: a fifth of the variance of success, 1/4
    counts = np.stack([np.full(4000, 20), rng.binomial(20, rates)], axis=1)
    assert split(counts) == pytest.approx(0.2, abs=0.01)
    uneven = rng.integers(2, 40, size=4000)
    assert split(np.stack([uneven, rng.binomial(uneven, rates)], axis=1)) == pytest.approx(0.2, abs=0.01)


def test_a_goal_with_few_episodes_is_left_out(record: MatrixRecord) -> None:
    outcomes = Outcomes(np.array([[1.0, 3.0]] * 5 + [[3.0, 1.0]]), np.array([2.0] * 5 + [4.0]), np.ones(6, bool))
    trials = [dataclasses.replace(trial, outcomes=outcomes) for trial in record.trials if trial.seed == 0]
    behaviour = make_report(dataclasses.replace(record, trials=trials)).envs[0].behaviour
    assert {each.names for each in behaviour.goals} == {("1,3",)}


def test_behaviours_are_written_as_tables_and_figures(record: MatrixRecord, tmp_path: Path) -> None:
    written = {path.name for path in write_files(make_report(record), tmp_path)}
    assert {"behaviour_cells.csv", "behaviour_jumps.csv", "behaviour_changes.csv", "goals.csv"} <= written
    assert {f"point_u_maze-goals.{suffix}" for suffix in ("png", "svg", "pdf")} <= written
    goals = (tmp_path / "goals.csv").read_text().splitlines()
    assert goals[0] == "env,objective,collector_depth,learner_depth,active,goal,reached,episodes"
    assert 'point_u_maze,contrastive,4,4,False,"3,1",0.0,12' in goals
    assert (
        (tmp_path / "behaviour_cells.csv")
        .read_text()
        .splitlines()[1]
        .startswith("point_u_maze,contrastive,4,4,False,4.0,")
    )
