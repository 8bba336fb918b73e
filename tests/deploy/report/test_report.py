"""Numbers of the report on a matrix, and the files that hold them."""

import csv
import json
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from deploy.cli.main import run_command
from deploy.matrix.expand import load_matrix
from deploy.matrix.results import collect_results
from deploy.report import charts, text
from deploy.report.analyse import EXPLORING, EXPRESSING, TOGETHER, make_report
from deploy.report.contents import EnvironmentReport
from deploy.report.files import write_files
from deploy.report.objectives import gain_differences, objective_gains
from deploy.report.read import read_matrix
from deploy.report.statistics import Interval, estimate, paired_difference, paired_known

ROOT = Path(__file__).parents[3]
WriteRuns = Callable[..., Path]


def report_on(folder: Path) -> EnvironmentReport:
    return make_report(read_matrix(folder)).envs[0]


@pytest.fixture(scope="module")
def whole(all_runs: Path) -> EnvironmentReport:
    """Report on a matrix with all runs done."""
    return report_on(all_runs)


def test_cells_hold_the_mean_of_the_last_evaluations_of_all_seeds(whole: EnvironmentReport) -> None:
    cells = {(cell.collector_depth, cell.learner_depth): cell for cell in whole.cells}
    # Seeds 0, 1 and 2 add 0, 1 and 2 steps; the interquartile mean cuts none of three seeds.
    assert {place: cell.time_at_goal.value for place, cell in cells.items()} == {
        (4, 4): 5, (4, 16): 6, (16, 4): 7, (16, 16): 13,
    }  # fmt: skip
    assert cells[16, 16].time_at_goal == estimate([12, 13, 14])
    assert cells[4, 4].success_rate.value == pytest.approx(5 / 20)
    assert cells[4, 4].last.value == 1.25 * 5
    # 0, 3.75 and 6.25 steps at 0, 280 and 400 environment steps.
    assert cells[4, 4].area.value == pytest.approx((280 * 1.875 + 120 * 5) / 400)
    assert [cell.learner_depth for cell in whole.active] == [4, 16]
    assert {cell.time_at_goal.value for cell in whole.active} == {1.0}


def test_gains_separate_exploring_from_expressing(whole: EnvironmentReport) -> None:
    gains = {gain.cause: gain.difference for gain in whole.gains}
    assert gains[EXPRESSING].mean == pytest.approx((1 + 6) / 2)
    assert gains[EXPLORING].mean == pytest.approx((2 + 7) / 2)
    assert gains[TOGETHER].mean == pytest.approx(6 - 1)
    assert gains[TOGETHER].wins == 3


def test_learners_are_compared_seed_by_seed(write_runs: WriteRuns) -> None:
    report = report_on(write_runs(skip=("point_u_maze-c16-s1",)))
    found = [(each.collector_depth, each.deeper, each.shallower, each.time_at_goal.mean) for each in report.neighbours]
    assert found == [(4, 16, 4, 1), (16, 16, 4, 6)]
    deep = report.neighbours[1].time_at_goal
    assert (deep.seeds, deep.wins, deep.interval) == (2, 2, Interval(6, 6))  # seeds differ equally at both depths


def test_differences_pair_equal_seeds() -> None:
    found = paired_known(np.array([3.0, 5.0, 9.0]), np.array([4.0, 1.0, np.nan]))
    assert (found.seeds, found.wins, found.mean) == (2, 1, 1.5)
    assert paired_known(np.array([3.0, np.nan]), np.array([np.nan, 1.0])) is None


def test_critical_depths_along_every_axis(whole: EnvironmentReport) -> None:
    steps = {(each.axis, each.held): each.step for each in whole.critical}
    assert set(steps) == {("learner", 4), ("learner", 16), ("collector", 4), ("collector", 16), ("active", None)}
    assert steps["learner", 16].ratio == pytest.approx(13 / 7)
    assert steps["collector", 4].ratio == pytest.approx(7 / 5)
    assert steps["active", None].ratio == 1


@pytest.fixture(scope="module")
def compared(objectives: Path) -> EnvironmentReport:
    """Report on a matrix with two objectives."""
    return report_on(objectives)


def test_one_objective_has_nothing_to_be_compared_with(whole: EnvironmentReport) -> None:
    assert (whole.objectives, whole.several, whole.mixed, whole.varied) == (("contrastive",), False, False, False)
    assert (whole.objective_gains, whole.gain_differences) == ((), ())
    assert {each.objective for each in (*whole.cells, *whole.active, *whole.curves, *whole.costs)} == {"contrastive"}


def test_every_objective_has_its_cells_and_gains(compared: EnvironmentReport) -> None:
    assert compared.objectives == ("contrastive", "survival")
    cells = {(each.objective, each.collector_depth, each.learner_depth): each for each in compared.cells}
    assert len(cells) == 2 * 2 * 2
    assert cells["survival", 16, 16].time_at_goal == estimate([12, 18])
    assert {each.objective for each in compared.active} == {"contrastive"}
    gains = {(each.objective, each.collector_depth): each for each in compared.objective_gains}
    assert len(gains) == 2 * 3  # also the means over collector depths
    assert (gains["survival", 4].shallower, gains["survival", 4].deeper) == (4, 16)
    assert gains["survival", 4].difference == paired_difference([5, 7.5], [4, 6])
    assert gains["contrastive", 16].difference.mean == 6
    assert gains["survival", None].difference == paired_difference([8.5, 12.75], [5, 7.5])
    assert gains["survival", None].at_shallower == estimate([5, 7.5])


def test_gains_of_objectives_are_compared_seed_by_seed(compared: EnvironmentReport) -> None:
    found = {each.collector_depth: each for each in compared.gain_differences}
    assert {(each.objective, each.other) for each in found.values()} == {("survival", "contrastive")}
    assert found[4].difference == paired_difference([1, 1.5], [1, 1])
    assert (found[4].difference.mean, found[4].difference.wins, found[4].difference.ties) == (0.25, 1, 1)
    assert found[4].difference.interval == Interval(0, 0.5)
    assert found[None].difference == paired_difference([3.5, 5.25], [3.5, 3.5])


def test_a_seed_without_all_four_learners_is_left_out_of_a_comparison() -> None:
    unknown = float("nan")
    finals = {"a": np.array([[[1.0, 1, 1], [2, 2, 2]]]), "b": np.array([[[1, 1, unknown], [4, 5, 6]]])}
    (difference,) = gain_differences(finals, [4], [4, 16])
    assert difference.difference == paired_difference([3, 4], [1, 1])
    assert [each.difference.seeds for each in objective_gains(finals, [4], [4, 16])] == [3, 2]
    assert objective_gains({"a": finals["a"]}, [4], [4, 16]) == ()
    assert gain_differences({name: final[:, :1] for name, final in finals.items()}, [4], [4]) == ()


def test_fairness_names_what_objectives_cannot_have_alike(compared: EnvironmentReport) -> None:
    rows = [row for row in compared.fairness if row.run == "point_u_maze-c4-s0"]
    assert [(row.objective, row.learner_depth, row.discount, row.chunk, row.critic_layers) for row in rows] == [
        ("contrastive", 4, 0.99, 1, 4),
        ("contrastive", 4, 0.99, 1, 4),
        ("contrastive", 16, 0.99, 1, 16),
        ("survival", 4, 0.999, 2, 4),
        ("survival", 16, 0.999, 2, 16),
    ]
    marks = {row.objective: row.mark for row in rows}
    assert marks == {"contrastive": "", "survival": "chunk of 2, its collector's is 1"}


def test_variants_of_an_objective_go_by_their_own_names(variants: Path) -> None:
    report = report_on(variants)
    assert report.objectives == ("contrastive", "chunks")
    assert len({(each.objective, each.collector_depth, each.learner_depth) for each in report.cells}) == 2 * 2 * 2
    assert {each.objective for each in report.active} == {"contrastive"}
    assert {(each.objective, each.other) for each in report.gain_differences} == {("chunks", "contrastive")}
    rows = collect_results(variants, load_matrix(variants / "matrix.yaml"))
    assert [row["objective"] for row in rows["cells"][:4]] == ["contrastive"] * 2 + ["chunks"] * 2


def test_depth_curves_have_a_line_for_each_objective(compared: EnvironmentReport) -> None:
    drawn = charts.depth_curves(compared)
    assert list(drawn) == ["collector depth 4", "collector depth 16"]
    contrastive, survival = drawn["collector depth 4"]
    assert (contrastive.name, survival.name) == ("contrastive", "survival")
    assert contrastive.colour != survival.colour
    np.testing.assert_array_equal(survival.x, [4, 16])
    np.testing.assert_array_equal(survival.y, [5, 6.25])
    np.testing.assert_array_equal(survival.ends, [[4, 5], [6, 7.5]])
    titles = [f"{each}, collector depth {depth}" for each in compared.objectives for depth in (4, 16)]
    assert [*charts.learning_curves(compared, by_steps=True)][:4] == titles


def test_files_compare_objectives(objectives: Path, tmp_path: Path) -> None:
    written = {path.name for path in write_files(make_report(read_matrix(objectives)), tmp_path)}
    assert {"objective_gains.csv", "gain_differences.csv", "point_u_maze-depth_curves.png"} <= written
    assert "point_u_maze-matrix.png" not in written
    with open(tmp_path / "gain_differences.csv", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [(row["objective"], row["other"], row["collector_depth"], row["difference_mean"]) for row in rows] == [
        ("survival", "contrastive", "4", "0.25"),
        ("survival", "contrastive", "16", "1.5"),
        ("survival", "contrastive", "", "0.875"),
    ]
    made = json.loads((tmp_path / "report.json").read_text())["envs"][0]
    assert len(made["objective_gains"]) == 6
    for path in tmp_path.glob("*.png"):
        assert len(np.unique(np.asarray(Image.open(path).convert("L")))) > 20


def test_curves_by_steps_and_by_wall_clock(whole: EnvironmentReport) -> None:
    curve = whole.curves[0]
    np.testing.assert_allclose(curve.steps, [0, 280, 400])
    np.testing.assert_allclose(curve.by_steps.centre, [0, 0.75 * 5, 1.25 * 5])
    np.testing.assert_allclose(curve.by_steps.low, [0, 0.75 * 4, 1.25 * 4])
    # The last of five updates ends after a minute; evaluations come after the second (24 s) and the last.
    np.testing.assert_allclose(curve.seconds, [0, 30, 60], atol=0.1)
    assert curve.by_seconds is not None
    np.testing.assert_allclose(curve.by_seconds.centre, [0, 3.75 + 2.5 * 6 / 36, 6.25], atol=0.05)


def test_coverage_of_all_points_of_a_run(whole: EnvironmentReport) -> None:
    shallow, deep = whole.explored
    assert (shallow.coverage.value, deep.coverage.value) == pytest.approx((0.2, 0.8))  # 4 and 16 of 20 cells
    np.testing.assert_allclose(deep.by_steps.centre[:3], [0.05, 0.1, 0.15])
    np.testing.assert_allclose(deep.steps[[0, -1]], [20, 400])


@pytest.mark.parametrize(
    ("change", "mark"),
    [
        ({"gradient_steps": 16}, "16 gradient steps, most have 20"),
        ({"samples_per_insert": 0.9}, "0.900 samples per insert, its stream's median is 1.000"),
        # 2 x 24 windows of 4 environments, 5 steps each: ages may lie 60 steps apart.
        ({"sample_age": 161.0}, "sample age 161, its stream's median is 100"),
        ({"sample_age": 159.0}, ""),
    ],
)
def test_learners_that_were_treated_differently_are_marked(change: dict, mark: str, write_runs: WriteRuns) -> None:
    report = report_on(write_runs(changes={("point_u_maze-c4-s2", "d16"): change}))
    marked = [row for row in report.fairness if row.mark]
    assert [(row.run, row.learner_depth, row.mark) for row in marked] == (
        [("point_u_maze-c4-s2", 16, mark)] if mark else []
    )
    marks = {(cell.collector_depth, cell.learner_depth): cell.marks for cell in report.cells if cell.marks}
    assert marks == ({(4, 16): (f"seed 2: {mark}",)} if mark else {})


def test_half_done_matrix_lists_missing_runs(write_runs: WriteRuns) -> None:
    folder = write_runs()
    quarter = {"env_steps": 200, "budget": 400, "updates": {"active": 5, "d4": 0}, "updates_planned": 5}
    for name, status in {
        "point_u_maze-c4-s0": {"state": "failed", "reason": "out of memory", **quarter},
        "point_u_maze-c4-s1": {"state": "running", "reason": "", **quarter},
    }.items():
        (folder / name / "status.json").write_text(json.dumps(status))
    (folder / "point_u_maze-c4-s2" / "status.json").write_text('{"state": "do')
    for path in folder.glob("point_u_maze-c4-*/summary.json"):
        path.unlink()
    report = make_report(read_matrix(folder))
    assert [(each.run, each.part, each.reason) for each in report.missing] == [
        ("point_u_maze-c4-s0", "", "failed at 25 %: out of memory"),
        ("point_u_maze-c4-s1", "", "running, 25 %"),
        ("point_u_maze-c4-s2", "", "begun, but its status.json cannot be read"),
    ]
    assert (report.done, report.runs) == (3, 6)
    assert {cell.collector_depth for cell in report.envs[0].cells} == {16}
    assert [gain.cause for gain in report.envs[0].gains] == []  # every gain needs a missing cell


def test_files_have_the_numbers_of_the_page(write_runs: WriteRuns, capsys: pytest.CaptureFixture[str]) -> None:
    missing = tuple(f"point_u_maze-c16-s{seed}" for seed in range(3))
    folder = write_runs(skip=missing, changes={("point_u_maze-c4-s0", "d16"): {"gradient_steps": 16}})
    assert run_command(["report", str(folder)]) == 0
    printed = capsys.readouterr().out
    assert "point_u_maze-c16-s1: not started" in printed
    assert "3 of 6 runs" in printed

    made = json.loads((folder / "report" / "report.json").read_text())
    assert made["envs"][0]["cells"][0]["time_at_goal"]["value"] == 5
    assert made["provenance"][0]["versions"]["jax"]
    with open(folder / "report" / "cells.csv", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [(row["learner_depth"], row["time_at_goal_value"], row["time_at_goal_low"]) for row in rows] == [
        ("4", "5.0", "4.0"),
        ("16", "6.0", "5.0"),
    ]
    tables = {path.stem for path in (folder / "report").glob("*.csv")}
    assert tables >= {"cells", "active", "comparisons", "critical_depths", "coverage", "costs", "fairness", "curves"}
    pictures = sorted((folder / "report").glob("*.png"))
    assert len(pictures) == 5
    for path in pictures:
        assert len(np.unique(np.asarray(Image.open(path).convert("L")))) > 20
        assert ElementTree.parse(path.with_suffix(".svg")).getroot().tag.endswith("svg")


@pytest.mark.processes
def test_a_report_imports_what_it_needs_alone(write_runs: WriteRuns) -> None:
    folder = write_runs(skip=("point_u_maze-c16-*", "point_u_maze-c4-s[12]"))  # points, and one seed
    probe = (
        "import sys\n"
        "from deploy.cli.main import run_command\n"
        f"assert run_command(['report', {str(folder)!r}]) == 0\n"
        "assert not {'brax', 'mujoco', 'rliable'} & sys.modules.keys()\n"
    )
    result = subprocess.run([sys.executable, "-c", probe], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
    assert (folder / "report.html").exists()


def test_a_folder_without_a_matrix_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(["report", str(tmp_path)]) == 2
    assert "holds no matrix; name a folder that `fathom matrix` filled" in " ".join(capsys.readouterr().err.split())


def test_numbers_as_text() -> None:
    assert [text.number(each) for each in (0.0, 0.123, 9.996, 12.34, 99.96, 1234.5, -2.5, float("inf"), 4000)] == [
        "0.00", "0.12", "10.0", "12.3", "100", "1,234", "−2.50", "∞", "4,000",
    ]  # fmt: skip
    assert text.with_interval(estimate([1.0])) == "1.00"
    assert text.with_interval(estimate([1.0, 2.0])) == "1.50 [1.00, 2.00]"
