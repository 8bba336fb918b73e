"""Execution of matrices: each run is a process of its own."""

import csv
import io
import json
import os
import shutil
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import psutil
import pytest
import yaml

from deploy.cli.main import run_command
from deploy.matrix.expand import MatrixConfig, expand
from deploy.matrix.expand import write_matrix as save_matrix
from deploy.matrix.results import COLUMNS
from deploy.run.provenance import write_config
from deploy.run.run_dir import lock_folder
from learner.learner import Learner
from shared import checkpoint
from shared.config_file import load_experiment
from shared.envs.registry import make_envs
from shared.metrics import read_metrics
from shared.plan import make_plan
from tests.deploy.matrix.cases import replace_in_config

MakeMatrix = Callable[..., MatrixConfig]
WriteMatrix = Callable[..., Path]

pytestmark = pytest.mark.processes


class Printed(NamedTuple):
    status: int
    out: str
    err: str


def fathom_matrix(matrix: MatrixConfig, out: Path, *options: str) -> Printed:
    """Runs `fathom matrix`; returns its status and its output."""
    path = out.with_name("input.yaml")
    save_matrix(matrix, path)
    printed, errors = io.StringIO(), io.StringIO()
    with redirect_stdout(printed), redirect_stderr(errors):
        status = run_command(["matrix", str(path), "--out", str(out), *options])
    return Printed(status, printed.getvalue(), errors.getvalue())


def cells(out: Path) -> list[dict[str, str]]:
    with open(out / "summary.csv", encoding="utf-8") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module", autouse=True)
def no_ray() -> Iterator[None]:
    """Makes `import ray` fail: runs in one process need no Ray, and neither does a matrix that is done."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "ray", None)
        yield


class Grown(NamedTuple):
    """A matrix of two seeds that was executed twice, two runs at a time.

    The first time it has depth 4 alone, and seed 1 fails. Then depth 8 is added before depth 4, and nothing fails: seed
    1, which had not come to a snapshot, begins again with depth 4, and depth 8 waits for its stream.
    """

    out: Path
    matrix: MatrixConfig
    first: Printed
    first_summary: dict[str, Any]
    first_status: str  # of seed 0
    second: Printed


@pytest.fixture(scope="module")
def grown(make_matrix: MakeMatrix, tmp_path_factory: pytest.TempPathFactory) -> Grown:
    out = tmp_path_factory.mktemp("matrix") / "out"
    few, more = (make_matrix(learner_depths=depths, record=True) for depths in ([4], [8, 4]))
    options = ("--dir-mode", "0750", "--parallel", "2", "--in-process")
    blocked = out / "point_u_maze-c4-s1"
    blocked.mkdir(parents=True)
    write_config(blocked, expand(few)[1].experiment)
    save_matrix(few, out / "matrix.yaml")
    with lock_folder(blocked, "--run-dir"):
        first = fathom_matrix(few, out, *options)
    first_summary = json.loads((out / "summary.json").read_text())
    first_status = (out / "point_u_maze-c4-s0" / "status.json").read_text()
    second = fathom_matrix(more, out, *options)
    return Grown(out, more, first, first_summary, first_status, second)


def test_a_failed_run_does_not_stop_the_others(grown: Grown) -> None:
    assert grown.first.status == 1
    assert "1 of 2 runs are not done: point_u_maze-c4-s1" in grown.first.err
    blocked = grown.out / "point_u_maze-c4-s1"
    assert (
        f"failed (--run-dir: another `fathom` that is still going writes to {blocked}; wait for it" in grown.first.out
    )
    assert grown.first_summary["missing"] == ["point_u_maze-c4-s1"]
    assert stat.S_IMODE((grown.out / "point_u_maze-c4-s0").stat().st_mode) == 0o750


def test_failed_runs_are_repeated(grown: Grown) -> None:
    assert grown.second.status == 0
    assert "point_u_maze-c4-s0: done before" in grown.second.out
    assert (grown.out / "point_u_maze-c4-s0" / "status.json").read_text() == grown.first_status
    rows = cells(grown.out)
    assert tuple(rows[0]) == COLUMNS
    # Rows of an added depth are in the order of the matrix.
    assert [(row["learner_depth"], row["seed"]) for row in rows] == [("8", "0"), ("4", "0"), ("8", "1"), ("4", "1")]
    assert {row["gradient_steps"] for row in rows} == {"20"}
    assert all(float(row["coverage"]) > 0 for row in rows)
    assert len(json.loads((grown.out / "summary.json").read_text())["active"]) == 2


def test_runs_that_are_done_are_skipped(grown: Grown) -> None:
    logs = {path: path.stat().st_mtime_ns for path in grown.out.glob("*.log")}
    printed = fathom_matrix(grown.matrix, grown.out)
    assert (printed.status, printed.out.count("done before")) == (0, len(logs))
    assert {path: path.stat().st_mtime_ns for path in grown.out.glob("*.log")} == logs
    assert sorted(path.stem for path in logs) == [f"point_u_maze-c4-{run}" for run in ("s0", "s0-d8", "s1", "s1-d8")]


def test_a_depth_is_not_added_to_an_incomplete_stream(grown: Grown, make_matrix: MakeMatrix) -> None:
    manifest = grown.out / "point_u_maze-c4-s0" / "stream" / "manifest.json"
    aside = manifest.rename(manifest.with_name("aside"))
    try:
        printed = fathom_matrix(make_matrix(learner_depths=[8, 4, 12], record=True), grown.out)
    finally:
        aside.rename(manifest)
    assert printed.status == 2
    assert "12 was added, but" in printed.err
    assert "12" not in (grown.out / "matrix.yaml").read_text()  # nothing was started


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_two_matrices_never_share_a_folder(grown: Grown) -> None:
    before = (grown.out / "summary.json").stat().st_mtime_ns
    with lock_folder(grown.out, "--out"):
        printed = fathom_matrix(grown.matrix, grown.out, "--in-process")
    assert printed.status == 2
    assert printed.err.startswith("fathom: --out: another `fathom` that is still going writes to ")
    assert (grown.out / "summary.json").stat().st_mtime_ns == before


def test_a_done_run_is_erased_only_by_overwrite(grown: Grown, tmp_path: Path) -> None:
    out = tmp_path / "out"
    shutil.copytree(grown.out, out)
    name = "point_u_maze-c4-s0"
    replace_in_config(out / name, "batch_size: 16", "batch_size: 8")
    before = files(out / name)
    printed = fathom_matrix(grown.matrix, out, "--in-process")
    assert printed.status == 1
    reason = "with another configuration (algorithm.batch_size was 8 "
    assert f"{name}: kept and not executed, its folder holds a finished run {reason}" in printed.out
    assert f"1 of 3 runs are not done: {name}" in printed.err
    assert json.loads((out / "summary.json").read_text())["missing"] == [name]
    assert files(out / name) == before

    printed = fathom_matrix(grown.matrix, out, "--in-process", "--overwrite")
    assert printed.status == 0
    assert f"{name}: replaced, its folder holds a finished run with another configuration" in printed.out
    assert printed.out.count(": started") == 1
    assert load_experiment(out / name / "config.yaml") == expand(grown.matrix)[0].experiment


def test_a_done_run_without_its_summary_or_status_is_no_traceback(grown: Grown, tmp_path: Path) -> None:
    out = tmp_path / "out"
    shutil.copytree(grown.out, out)
    (out / "point_u_maze-c4-s0" / "summary.json").write_text("{")
    (out / "point_u_maze-c4-s1" / "status.json").write_text("{")
    printed = fathom_matrix(grown.matrix, out)
    assert printed.status == 1
    assert printed.err.splitlines() == [
        "fathom: point_u_maze-c4-s0: its summary.json cannot be read; its results are left out",
        "fathom: 1 of 4 runs are not done: point_u_maze-c4-s0",
    ]
    assert [row["wall_seconds"] for row in cells(out) if row["learner_depth"] == "4"] == [""]


def state_of(run_dir: Path, matrix: MatrixConfig, name: str) -> Any:
    """Returns the trained state of learner `name` of the first run."""
    experiment = expand(matrix)[0].experiment
    spec = make_envs(experiment).training.spec
    like = Learner(experiment, make_plan(experiment, spec), spec, name).state
    return checkpoint.load(run_dir / "checkpoints" / name, like)._replace(key=np.zeros(()))  # NumPy has no keys


def test_an_added_depth_equals_one_that_was_there_from_the_start(grown: Grown, tmp_path: Path) -> None:
    out, matrix, once = grown.out, grown.matrix, tmp_path / "once"
    added = out / "point_u_maze-c4-s0-d8"
    path = tmp_path / "experiment.yaml"
    path.write_text(yaml.safe_dump(expand(matrix)[0].experiment.model_dump(mode="json")))
    assert run_command(["run", str(path), "--run-dir", str(once), "--in-process"]) == 0

    states = [state_of(run_dir, matrix, "d8") for run_dir in (added, once)]
    jax.tree.map(np.testing.assert_array_equal, *states)
    evaluated = [
        [(row["updates"], row["time_at_goal"], row["success_rate"]) for row in rows if row["learner"] == "d8"]
        for rows in (read_metrics(added, "evaluator"), read_metrics(once, "evaluator"))
    ]
    assert evaluated[0] == evaluated[1]
    assert len(evaluated[0]) == 3

    # Nothing was collected again.
    assert read_metrics(added, "collector-0") == []
    assert len(read_metrics(added, "feeder-0")) == 20
    rows = {row["learner_depth"]: row for row in cells(out) if row["seed"] == "0"}
    for name in ("coverage", "gradient_steps", "samples_per_insert"):
        assert rows["8"][name] == rows["4"][name]


def test_an_objective_is_added_on_the_stream_of_a_matrix_without_the_axis(
    grown: Grown, make_matrix: MakeMatrix, tmp_path: Path
) -> None:
    out, name = tmp_path / "out", "point_u_maze-c4-s0"
    shutil.copytree(grown.out / name, out / name)
    save_matrix(make_matrix(learner_depths=[4], seeds=[0], record=True), out / "matrix.yaml")
    more = make_matrix(learner_depths=[4], seeds=[0], objectives=["cloning", "contrastive"], record=True)
    printed = fathom_matrix(more, out, "--in-process")
    assert (printed.status, printed.err) == (0, "")
    assert f"{name}: done before" in printed.out
    assert f"{name}-cloning-d4: started on a recorded stream" in printed.out
    found = [(row["objective"], row["learner_depth"], row["gradient_steps"]) for row in cells(out)]
    assert found == [("cloning", "4", "20"), ("contrastive", "4", "20")]
    assert run_command(["report", str(out)]) == 0
    summary = json.loads((out / f"{name}-cloning-d4" / "summary.json").read_text())["learners"]["cloning-d4"]
    assert (summary["objective"], summary["critic_layers"], summary["chunk"]) == ("cloning", 0, 1)


def test_ctrl_c_ends_the_runs(write_matrix: WriteMatrix, tmp_path: Path) -> None:
    path, out = write_matrix(learner_depths=[4]), tmp_path / "out"
    command = [sys.executable, "-m", "deploy.cli", "matrix", str(path), "--out", str(out), "--in-process"]
    process = subprocess.Popen([*command, "--parallel", "2"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while len(list(out.glob("*/config.yaml"))) < 2:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.1)
    started = psutil.Process(process.pid).children(recursive=True)
    os.kill(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=100)
    assert (process.returncode, errors) == (130, "fathom: interrupted\n")
    assert psutil.wait_procs(started, timeout=20)[1] == []
    states = [json.loads(path.read_text())["state"] for path in out.glob("*/status.json")]
    assert set(states) <= {"interrupted", "done"}
