"""The writer of large matrices: its runs are read as finished ones, and their page is made."""

import json
from pathlib import Path

import pytest

from deploy.cli.main import run_command
from deploy.matrix.expand import expand, load_matrix
from deploy.report.read import read_matrix
from shared.envs.registry import make_envs
from shared.metrics import metrics_files, read_metrics
from shared.metrics_catalogue import find_metric
from shared.plan import make_plan
from tests.deploy.report import large

RUN = "ant_big_maze-c4-s0"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A matrix of one run with two learners, which trains for a few updates."""
    folder = tmp_path_factory.mktemp("large") / "matrix"
    large.main([str(folder), "--collectors", "1", "--learners", "2", "--seeds", "1", "--env-steps", "1e6"])
    return folder


@pytest.mark.slow
def test_metrics_are_those_of_a_run(folder: Path) -> None:
    (run,) = expand(load_matrix(folder / "matrix.yaml"))
    plan = make_plan(run.experiment, make_envs(run.experiment).training.spec)
    rows = {name: read_metrics(folder / RUN, name) for name in metrics_files(folder / RUN)}
    learners = {f"learner-{name}" for name in ("active", "d4", "d8")}
    assert rows.keys() == {"collector-0", "evaluator", "replay", "snapshots", "start", "memory", *learners}
    assert {len(rows[name]) for name in learners} == {plan.updates}
    assert len(rows["collector-0"]) == plan.unrolls
    assert len(rows["evaluator"]) == 3 * len(plan.evaluation_updates)
    assert len(rows["evaluator"][0]["episodes"]["goal"]) == 128
    for name, held in rows.items():
        kind = name.partition("-")[0]
        assert [key for row in held for key in row if key != "episodes" and find_metric(kind, key) is None] == []


@pytest.mark.slow
def test_a_page_is_made(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(["report", str(folder)]) == 0
    printed = capsys.readouterr()
    assert printed.err == ""
    assert "1 of 1 runs" in printed.out
    assert f"{RUN}: behaviour of d8:" in printed.out  # there are no checkpoints
    assert {each.part for each in read_matrix(folder).missing} == set()
    cells = json.loads((folder / "report" / "report.json").read_text())["envs"][0]["cells"]
    assert [cell["learner_depth"] for cell in cells] == [4, 8]
    assert all(0 < cell["time_at_goal"]["value"] < 1000 for cell in cells)
    assert (folder / "report.html").stat().st_size < 25e6
