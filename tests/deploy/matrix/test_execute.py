import csv
import json
import os
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import psutil
import pytest
import yaml

from deploy.cli import run_command
from deploy.matrix.config import MatrixConfig, expand
from deploy.matrix.results import COLUMNS
from learner.learner import Learner
from shared import checkpoint
from shared.envs.registry import make_envs
from shared.metrics import read_metrics
from shared.plan import make_plan

WriteMatrix = Callable[..., Path]


def cells(out: Path) -> list[dict[str, str]]:
    with open(out / "summary.csv", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_runs_fail_alone_and_are_made_up_for(
    write_matrix: WriteMatrix,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)  # neither needed in one process, nor where all is done
    path, out = write_matrix(), tmp_path / "out"
    command = ["matrix", str(path), "--out", str(out), "--dir-mode", "0750", "--in-process"]
    blocked = out / "point_u_maze-c4-s1"
    out.mkdir()
    (out / "matrix.yaml").write_text(path.read_text())
    blocked.mkdir()
    (blocked / "thesis.tex").touch()  # which no run may replace
    assert run_command(command) == 1
    printed = capsys.readouterr()
    assert "1 of 2 runs failed: point_u_maze-c4-s1" in printed.err
    assert f"failed (--run-dir: {blocked} holds no run, so --overwrite will not remove it" in printed.out
    assert json.loads((out / "summary.json").read_text())["missing"] == ["point_u_maze-c4-s1"]
    assert stat.S_IMODE((out / "point_u_maze-c4-s0").stat().st_mode) == 0o750

    (blocked / "thesis.tex").unlink()
    assert run_command(command) == 0
    printed = capsys.readouterr()
    assert "point_u_maze-c4-s0: done before" in printed.out
    rows = cells(out)
    assert tuple(rows[0]) == COLUMNS
    assert [(row["learner_depth"], row["seed"]) for row in rows] == [("4", "0"), ("8", "0"), ("4", "1"), ("8", "1")]
    assert {row["gradient_steps"] for row in rows} == {"20"}
    assert all(float(row["coverage"]) > 0 for row in rows)
    assert len(json.loads((out / "summary.json").read_text())["active"]) == 2

    started = time.monotonic()
    assert run_command(command[:-1]) == 0
    assert capsys.readouterr().out.count("done before") == 2
    assert time.monotonic() - started < 10

    assert run_command(["matrix", str(write_matrix(learner_depths=[4, 8, 12])), "--out", str(out)]) == 2
    assert "12 was added, but" in capsys.readouterr().err
    assert "12" not in (out / "matrix.yaml").read_text()  # nothing was begun


def state_of(run_dir: Path, matrix: MatrixConfig, name: str) -> Any:
    """The trained state of the first run's learner `name`."""
    experiment = expand(matrix)[0].experiment
    spec = make_envs(experiment).training.spec
    like = Learner(experiment, make_plan(experiment, spec), spec, name).state
    return checkpoint.load(run_dir / "checkpoints" / name, like)._replace(key=np.zeros(()))  # NumPy knows no keys


def run_whole(matrix: MatrixConfig, run_dir: Path) -> None:
    """The matrix's first run, with all learners from the start."""
    path = run_dir.with_name("experiment.yaml")
    path.write_text(yaml.safe_dump(expand(matrix)[0].experiment.model_dump(mode="json")))
    assert run_command(["run", str(path), "--run-dir", str(run_dir), "--in-process"]) == 0


def test_an_added_depth_is_what_it_would_have_been_from_the_start(
    write_matrix: WriteMatrix, make_matrix: Callable[..., MatrixConfig], tmp_path: Path
) -> None:
    few, more = ({"learner_depths": depths, "seeds": [0], "record": True} for depths in ([4], [8, 4]))
    out, once = tmp_path / "out", tmp_path / "once"
    base, added = out / "point_u_maze-c4-s0", out / "point_u_maze-c4-s0-d8"
    out.mkdir()
    (out / "matrix.yaml").write_text(write_matrix(**few).read_text())
    run_whole(make_matrix(**few), base)
    finished = (base / "status.json").read_text()
    assert run_command(["matrix", str(write_matrix(**more)), "--out", str(out), "--in-process"]) == 0
    assert (base / "status.json").read_text() == finished

    run_whole(make_matrix(**more), once)
    states = [state_of(run_dir, make_matrix(**more), "d8") for run_dir in (added, once)]
    jax.tree.map(np.testing.assert_array_equal, *states)
    evaluated = [
        [(row["updates"], row["time_at_goal"], row["success_rate"]) for row in rows if row["learner"] == "d8"]
        for rows in (read_metrics(added, "evaluator"), read_metrics(once, "evaluator"))
    ]
    assert evaluated[0] == evaluated[1]
    assert len(evaluated[0]) == 3

    # Nothing was collected again, and its row stands where the matrix names the depth.
    assert read_metrics(added, "collector-0") == []
    assert len(read_metrics(added, "stream-0")) == 20
    rows = cells(out)
    assert [row["learner_depth"] for row in rows] == ["8", "4"]
    for name in ("coverage", "gradient_steps", "samples_per_insert"):
        assert rows[0][name] == rows[1][name]


def test_ctrl_c_ends_the_runs_too(write_matrix: WriteMatrix, tmp_path: Path) -> None:
    path, out = write_matrix(), tmp_path / "out"
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
