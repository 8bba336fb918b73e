"""A matrix that is evaluated in two environments: its results, the report's sections, and what it is compared by."""

import csv
from pathlib import Path

import numpy as np
import pytest
import yaml

from deploy.cli.main import run_command
from deploy.report.analyse import make_report
from deploy.report.page import write_page
from deploy.report.read import read_matrix
from deploy.run.episodes import evaluated_in, read_episodes
from tests.deploy.matrix.cases import MATRIX

pytestmark = pytest.mark.processes
LAYOUTS = ["point_u_maze_eval", "point_u_maze"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("matrix")
    path = folder / "matrix.yaml"
    path.write_text(yaml.safe_dump(MATRIX | {"evaluation_envs": {"point_u_maze": LAYOUTS}}))
    assert run_command(["matrix", str(path), "--in-process", "--parallel", "2", "--out", str(folder / "out")]) == 0
    return folder / "out"


def test_each_environment_has_a_section_of_its_own(folder: Path, tmp_path: Path) -> None:
    record = read_matrix(folder)
    assert [each for each in record.missing if "behaviour" not in each.part] == []
    report = make_report(record)
    first, second = report.envs
    assert (first.title, second.title) == ("point_u_maze", "point_u_maze, evaluated in point_u_maze")
    assert [(each.evaluated_in, each.headline) for each in report.envs] == [(LAYOUTS[0], True), (LAYOUTS[1], False)]
    assert len(first.cells) == len(second.cells) == 2
    assert first.explored
    assert (second.explored, second.costs) == ((), ())
    assert {score.env for score in report.aggregates.scores} == {"point_u_maze"}  # the headline's alone
    reached = [each.behaviour.goals[0].places for each in report.envs]
    assert set(reached[0]) < set(reached[1])  # goals at the far side, and everywhere
    page = write_page(report, tmp_path / "report.html").read_text()
    for part in (f"Evaluated in {LAYOUTS[0]}.", "that of their training", "by environment of the evaluation"):
        assert part in page


def test_results_have_a_column_for_each_environment(folder: Path) -> None:
    with open(folder / "summary.csv") as file:
        rows = list(csv.DictReader(file))
    record = read_matrix(folder)
    places = {True: "time_at_goal", False: "time_at_goal in point_u_maze"}
    for trial in record.trials:
        if not trial.active:
            place = str(trial.seed), str(trial.learner_depth)
            (row,) = (row for row in rows if (row["seed"], row["learner_depth"]) == place)
            assert float(row[places[trial.headline]]) == pytest.approx(trial.final)


def test_episodes_are_told_apart(folder: Path) -> None:
    """Goals of the evaluation's layout lie at the far side, at x = 3; those of the training's lie everywhere."""
    episodes = read_episodes(folder / "point_u_maze-c4-s0")
    goals = [np.array(evaluated_in(episodes, env)["goal"].to_pylist()) for env in (None, "point_u_maze")]
    assert len(goals[0]) == len(goals[1]) == len(episodes) / 2
    assert goals[0][:, 0].min() > 2.5 > goals[1][:, 0].min()
