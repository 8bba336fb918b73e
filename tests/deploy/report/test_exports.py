"""Files for other tools, read back by these tools, and pictures for papers."""

import json
import re
import shutil
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from marl_eval.utils.data_processing_utils import create_matrices_for_rliable, data_process_pipeline
from marl_eval.utils.diagnose_data_errors import DiagnoseData
from matplotlib import pyplot

from deploy.report.analyse import make_report
from deploy.report.exports import SUITE, marl_eval, write_marl_eval
from deploy.report.files import write_files
from deploy.report.read import read_matrix
from deploy.report.records import MatrixRecord, Trial
from deploy.report.statistics import interquartile_mean

DOCS = Path(__file__).parents[3] / "docs/report.md"
WriteRuns = Callable[..., Path]


@pytest.fixture(scope="module")
def record(all_runs: Path) -> MatrixRecord:
    return read_matrix(all_runs)


@pytest.fixture(scope="module")
def files(all_runs: Path, record: MatrixRecord, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder `report` of a matrix with all runs done, in a folder like that of the documentation."""
    folder = tmp_path_factory.mktemp("working") / "runs/matrix/report"
    shutil.copytree(all_runs, folder.parent)
    write_files(make_report(record), folder)
    write_marl_eval(record, folder)
    return folder


@pytest.fixture
def snippets(files: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[dict[str, Any]]]:
    """Variables of each piece of Python in the documentation, after it ran beside `runs/matrix`."""
    monkeypatch.chdir(files.parents[2])
    found: list[dict[str, Any]] = [{}, {}, {}]
    codes = re.findall(r"```python\n(.*?)```", DOCS.read_text(encoding="utf-8"), re.DOTALL)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of colorcet, on its own imports
        for code, variables in zip(codes, found, strict=True):
            exec(code, variables)
    yield found
    pyplot.close("all")


@pytest.mark.slow
def test_the_documented_lines_give_the_numbers_of_the_report(
    snippets: list[dict[str, Any]], record: MatrixRecord, files: Path
) -> None:
    expected = {each.name: each.iqm for each in make_report(record).aggregates.algorithms}
    of_episodes, by_rliable, by_marl_eval = snippets
    assert len(of_episodes["episodes"]) == 4 * 3 * 3  # of three evaluations of three learners
    assert by_rliable["values"] == {name: [pytest.approx(iqm.value)] for name, iqm in expected.items()}
    ends = by_rliable["ends"]["contrastive-c16-d16"][:, 0]
    assert ends == pytest.approx([0.6, 0.7])
    for name, iqm in expected.items():
        assert interquartile_mean(by_marl_eval["scores"]["mean_score"][name].ravel()) == pytest.approx(iqm.value)
    assert (files.parents[2] / "profiles.pdf").stat().st_size > 5_000


def test_scores_have_a_row_for_each_run_of_each_algorithm(files: Path) -> None:
    rows = pd.read_csv(files / "scores.csv")
    assert len(rows) == 3 * (4 + 2)
    found = rows[(rows.algorithm == "contrastive-c16-d4") & (rows.seed == 1)].iloc[0].to_dict()
    assert found == {
        "algorithm": "contrastive-c16-d4", "objective": "contrastive", "collector_depth": 16, "learner_depth": 4,
        "active": False, "env": "point_u_maze", "seed": 1, "score": 7 / 20, "time_at_goal": 7, "last": 1.25 * 7,
        "success_rate": pytest.approx(7 / 20),
    }  # fmt: skip
    assert set(rows[rows.active].algorithm) == {"contrastive-c4-active", "contrastive-c16-active"}


def test_marl_eval_reads_our_numbers(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    raw = json.loads((files / "marl_eval.json").read_text())
    assert all(DiagnoseData(raw).check_data()[SUITE].values())
    matrices, curves = create_matrices_for_rliable(data_process_pipeline(raw, []), SUITE, [])
    assert "issue" not in capsys.readouterr().out
    np.testing.assert_allclose(matrices["mean_score"]["contrastive-c4-d16"], [[5 / 20], [6 / 20], [7 / 20]])
    np.testing.assert_allclose(matrices["mean_time_at_goal"]["contrastive-c16-d16"], [[12], [13], [14]])
    np.testing.assert_allclose(curves["mean_time_at_goal"]["contrastive-c4-d4"][2, 0], [0, 0.75 * 6, 1.25 * 6])
    first = raw[SUITE]["point_u_maze"]["contrastive-c4-d4"]["seed_2"]
    assert [first[f"step_{index}"]["step_count"] for index in range(3)] == [0, 280, 400]
    assert first["step_2"]["elapsed_time"] == pytest.approx(60, abs=0.1)
    assert set(first) == {"step_0", "step_1", "step_2", "absolute_metrics"}


def test_marl_eval_gets_what_all_runs_have(write_runs: WriteRuns) -> None:
    record = read_matrix(write_runs(skip=("point_u_maze-c16-s1",)))
    found = marl_eval(record.trials, record.episode_lengths)[SUITE]["point_u_maze"]
    assert {tuple(runs) for runs in found.values()} == {("seed_0", "seed_2")}
    assert len(found) == 6


def test_marl_eval_gets_algorithms_and_as_many_evaluations_as_all_environments_have(record: MatrixRecord) -> None:
    others = [replace(trial, env="other") for trial in record.trials if trial.learner_depth == 4]
    trials = [*record.trials, *(without_evaluation(trial, 1) for trial in others)]
    found = marl_eval(trials, record.episode_lengths | {"other": 40})[SUITE]
    algorithms = {name for tasks in found.values() for name in tasks}
    assert algorithms == {"contrastive-c4-d4", "contrastive-c16-d4", "contrastive-c4-active"}
    assert {env: [*tasks["contrastive-c4-d4"]["seed_0"]] for env, tasks in found.items()} == {
        env: ["step_0", "step_1", "absolute_metrics"] for env in ("other", "point_u_maze")
    }
    run = found["point_u_maze"]["contrastive-c4-d4"]["seed_0"]
    assert [run[step]["step_count"] for step in ("step_0", "step_1")] == [0, 400]  # the ends of training
    assert found["other"]["contrastive-c4-d4"]["seed_0"]["absolute_metrics"]["score"] == [4 / 40]


def without_evaluation(trial: Trial, index: int) -> Trial:
    names = "steps", "seconds", "time_at_goal"
    return replace(trial, **{name: np.delete(getattr(trial, name), index) for name in names})


def test_an_evaluation_that_one_run_lacks_is_left_out(record: MatrixRecord) -> None:
    trials = [without_evaluation(record.trials[0], 1), *record.trials[1:]]
    for runs in marl_eval(trials, record.episode_lengths)[SUITE]["point_u_maze"].values():
        assert [run["step_1"]["step_count"] for run in runs.values()] == [400] * 3


def test_an_unknown_wall_clock_is_left_out_of_all_runs(record: MatrixRecord) -> None:
    fed = replace(record.trials[-1], seconds=np.full(3, np.nan))
    content = marl_eval([*record.trials[:-1], fed], record.episode_lengths)
    assert "elapsed_time" not in json.dumps(content)
    assert "NaN" not in json.dumps(content)
    assert all(DiagnoseData(content).check_data()[SUITE].values())


def test_without_a_common_seed_there_is_nothing_for_marl_eval(record: MatrixRecord, tmp_path: Path) -> None:
    alone = [trial for trial in record.trials if trial.seed == (0 if trial.collector_depth == 4 else 1)]
    assert marl_eval(alone, record.episode_lengths) == marl_eval([], {}) == {}
    assert write_marl_eval(replace(record, trials=[]), tmp_path) == []
    assert [*tmp_path.iterdir()] == []


def test_pictures_are_equal_for_equal_results(record: MatrixRecord, files: Path, tmp_path: Path) -> None:
    write_files(make_report(record), tmp_path)
    for suffix in ("png", "svg", "pdf"):
        drawn = sorted(tmp_path.glob(f"*.{suffix}"))
        of_the_maze = [f"point_u_maze-{name}" for name in ("curves", "exploration_and_cost", "goals", "matrix")]
        assert [path.stem for path in drawn] == [*of_the_maze, "profiles"]
        assert all(path.read_bytes() == (files / path.name).read_bytes() for path in drawn)


def test_pdf_is_a_page_with_truetype_fonts_and_no_date(files: Path) -> None:
    for path in files.glob("*.pdf"):
        content = path.read_bytes()
        assert content.startswith(b"%PDF-")
        assert b"/FontFile2" in content  # TrueType; a Type 3 font has no file
        assert b"/Type3" not in content
        assert b"CreationDate" not in content
