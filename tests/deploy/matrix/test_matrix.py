import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import yaml

from deploy.cli import run_command
from deploy.matrix.config import MatrixConfig, expand, load_matrix
from deploy.matrix.plan import plan_matrix
from deploy.matrix.results import COLUMNS
from shared.config import ConfigError

MATRIX = {
    "environments": ["point_u_maze"],
    "collector_depths": [4],
    "learner_depths": [4, 8],
    "seeds": [0, 1],
    "experiment": {
        "env_options": {"episode_length": 20},
        "collector": {"width": 8, "environments": 4, "unroll_length": 5},
        "algorithm": {"batch_size": 16, "windows_per_update": 8, "minibatches_per_update": 4},
        "replay": {"steps_per_environment": 400, "prefill_steps": 40},
        "evaluation": {"episodes": 8, "count": 2},
        "budget": {"env_steps": 400},
    },
}


def written(folder: Path, **changes: object) -> Path:
    path = folder / "matrix.yaml"
    path.write_text(yaml.safe_dump({**MATRIX, **changes}))
    return path


def test_every_combination_is_one_run_with_all_learners() -> None:
    axes = {"environments": ["point_u_maze", "ant"], "collector_depths": [4, 16], "seeds": [0, 3]}
    runs = expand(MatrixConfig.model_validate({**MATRIX, **axes, "evaluation_environments": {"ant": "ant_u_maze"}}))
    assert [run.name for run in runs][:4] == [f"point_u_maze-c{depth}-s{seed}" for depth in (4, 16) for seed in (0, 3)]
    assert len(runs) == 8
    last = runs[-1].experiment
    assert (last.env, last.evaluation.env, last.collector.depth, last.seed) == ("ant", "ant_u_maze", 16, 3)
    sizes = {name: (learner.depth, learner.width) for name, learner in last.learners.items()}
    assert sizes == {"d4": (4, 8), "d8": (8, 8)}
    assert all(learner.seed != last.collector.seed for learner in last.learners.values())
    assert runs[0].experiment.evaluation.env is None


def test_the_plan_adds_up() -> None:
    matrix = MatrixConfig.model_validate(MATRIX)
    planned = plan_matrix(matrix.model_copy(update={"experiment": matrix.experiment | {"record": True}}))
    rows, totals = planned["rows"], planned["totals"]
    assert [(row["learner"], row["depth"]) for row in rows] == 2 * [("active", 4), ("d4", 4), ("d8", 8)]
    assert totals["runs"] == 2
    assert totals["cells"] == 4
    assert totals["env_steps"] == 2 * 400
    # 20 unrolls make (20 - 5 + 1) x 4 windows, the first 24 (the error buffer) are not trained on, 8 make an update.
    assert {row["gradient_steps"] for row in rows} == {(16 * 4 - 24) // 8 * 4}
    assert totals["gradient_steps"] == 6 * 20
    assert totals["stream_bytes"] == 800 * 4 * (4 + 2 + 3)
    assert rows[0]["parameters"] == rows[1]["parameters"] < rows[2]["parameters"]
    assert rows[0]["memory_bytes"] == 16 * rows[0]["parameters"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seeds": []}, "seeds: is empty; name at least one"),
        ({"learner_depths": [4, 8, 4]}, "learner_depths: 4 is there twice; name each once"),
        ({"learner_depths": [6]}, "learners.d6.depth: depth 6 is not a positive multiple of 4"),
        ({"experiment": {"seed": 1}}, "experiment.seed: the matrix sets it; leave it out"),
        ({"experiment": {"collector": {"depth": 4}}}, "experiment.collector.depth: the matrix sets it; leave it out"),
        ({"experiment": {"bugdet": {}}}, "bugdet: unknown key; known here: env, "),
        ({"depths": [4]}, "depths: unknown key; known here: environments, collector_depths"),
        ({"evaluation_environments": {"ant": "ant"}}, "evaluation_environments.ant: not among the environments"),
    ],
)
def test_a_mistake_is_one_line(changes: dict, message: str, tmp_path: Path) -> None:
    path = written(tmp_path, **changes)
    with pytest.raises(ConfigError) as error:
        load_matrix(path)
    assert f"{path}: {message}" in str(error.value)
    assert len(set(str(error.value).splitlines())) == 1


def test_runs_fail_alone_and_are_made_up_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, out = written(tmp_path), tmp_path / "out"
    command = ["matrix", str(path), "--out", str(out), "--in-process"]
    blocked = out / "point_u_maze-c4-s1"
    assert run_command(["matrix", str(path), "--dry-run", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["totals"]["cells"] == 4
    assert not out.exists()

    out.mkdir()
    (out / "matrix.yaml").write_text(path.read_text())
    blocked.mkdir()
    (blocked / "thesis.tex").touch()  # which no run may replace
    assert run_command(command) == 1
    printed = capsys.readouterr()
    assert "1 of 2 runs failed: point_u_maze-c4-s1" in printed.err
    assert "exit status 2; see" in printed.out
    assert "holds no run" in (out / "point_u_maze-c4-s1.log").read_text()
    assert json.loads((out / "summary.json").read_text())["missing"] == ["point_u_maze-c4-s1"]

    (blocked / "thesis.tex").unlink()
    assert run_command(command) == 0
    printed = capsys.readouterr()
    assert "point_u_maze-c4-s0: done before" in printed.out
    with open(out / "summary.csv", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert tuple(rows[0]) == COLUMNS
    assert [(row["learner_depth"], row["seed"]) for row in rows] == [("4", "0"), ("8", "0"), ("4", "1"), ("8", "1")]
    assert {row["gradient_steps"] for row in rows} == {"20"}
    assert all(float(row["coverage"]) > 0 for row in rows)
    assert len(json.loads((out / "summary.json").read_text())["active"]) == 2

    started = time.monotonic()
    assert run_command(command) == 0
    assert capsys.readouterr().out.count("done before") == 2
    assert time.monotonic() - started < 10

    other = written(tmp_path, learner_depths=[4, 16])
    assert run_command(["matrix", str(other), "--out", str(out)]) == 2
    assert "holds a matrix with other learner_depths; name another folder" in capsys.readouterr().err
    assert run_command(["matrix", str(path), "--out", str(blocked)]) == 2
    assert "is not empty and holds no matrix; name another folder" in capsys.readouterr().err


def test_ctrl_c_ends_the_runs_too(tmp_path: Path) -> None:
    path, out = written(tmp_path), tmp_path / "out"
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
