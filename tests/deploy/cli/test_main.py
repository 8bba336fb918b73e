"""Errors of `fathom run` in one line with the field and the remedy, and the lists of `fathom envs`."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from deploy.cli.envs import page
from deploy.cli.main import run_command
from deploy.run.setup import explain_failure
from shared.envs.registry import env_entries
from shared.metrics import MetricsWriter

ROOT = Path(__file__).parents[3]
DEMO = str(ROOT / "deploy" / "experiments" / "point_u_maze.yaml")

MISTAKES = {
    "depth": (["--collector.depth", "6"], "collector.depth: depth 6 is not a positive multiple of 4"),
    "a learner's depth": (["--learners.deep.depth", "7"], "learners.deep.depth: depth 7"),
    "type": (["--learners.deep.width", "x"], "learners.deep.width: input should be a valid integer"),
    "choice": (["--replay.pace", "fast"], "replay.pace: input should be 'lockstep' or 'free'"),
    "environment": (["--env", "point_u_mase"], "did you mean 'point_u_maze'"),
    "evaluation": (["--evaluation.envs", "ant"], "evaluation.envs: ant has state_size 29, point_u_maze has 4"),
    "evaluations": (
        ["--evaluation.envs", "[point_u_maze, ant]"],
        "evaluation.envs: ant has state_size 29, point_u_maze has 4",
    ),
    "evaluated twice": (["--evaluation.envs", "[ant, ant]"], "evaluation.envs: ant is named twice; name each once"),
    "old name": (["--evaluation.env", "ant"], "--evaluation.env: is now called --evaluation.envs; use that name"),
    "backend": (["--env-options.backend", "mjx"], "env_options.backend: this environment has no such option"),
    "stream": (["--stream", "/nowhere"], "/nowhere: no such folder; name the folder of a recorded stream"),
    "stream's pace": (["--stream", "/nowhere", "--replay.pace", "free"], "replay.pace: a stream is fed as fast as"),
    "stream of a stream": (["--stream", "/nowhere", "--record", "true"], "record: what comes from a stream is on disk"),
    "together": (["--together"], "--together: only learners in one process can update together; add --in-process"),
    "same batches": (
        ["--replay.same-batches", "true"],
        "replay.same_batches: the replay server draws for each learner",
    ),
    "sampling": (
        ["--replay.sampling", "every_environment"],
        "replay.sampling: the replay server draws from all windows of a learner alike; add --in-process",
    ),
    "windows": (
        ["--in-process", "--replay.sampling", "every_environment", "--collector.environments", "48"],
        "replay.sampling: every_environment takes equally many windows of all 48 environments, and an update has 64",
    ),
    "deterministic": (
        ["--deterministic"],
        "--deterministic: the replay server's draws differ in every distributed run",
    ),
    "unknown option": (["--collector.dept", "8"], "--collector.dept: no such option"),
    "unknown learner": (["--learners.dep.depth", "8"], "it has: active, shallow, deep"),
    "batch": (["--algorithm.batch-size", "100000"], "algorithm.batch_size: 100000 is more than the 12736 rows"),
    "replay": (["--replay.steps-per-environment", "100"], "replay.steps_per_environment: 100 steps hold 0 windows"),
    "budget": (["--budget.env-steps", "10"], "budget.env_steps: 10 steps end before the first update; use at least"),
}


@pytest.mark.parametrize(("options", "line"), MISTAKES.values(), ids=MISTAKES.keys())
def test_a_mistake_gives_a_one_line_error_and_starts_nothing(
    options: list[str], line: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_command(["run", DEMO, "--run-dir", str(tmp_path / "run"), *options]) == 2
    printed = capsys.readouterr()
    assert line in printed.err
    assert len(printed.err.strip().splitlines()) == 1
    assert printed.out == ""
    assert not (tmp_path / "run").exists()


@pytest.mark.processes
def test_together_is_refused_on_two_devices(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "deploy.cli", "run", DEMO, "--run-dir", str(tmp_path / "run")]
    environ = {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": "--xla_force_host_platform_device_count=2"}
    ended = subprocess.run(
        [*command, "--in-process", "--together"], cwd=ROOT, env=environ, capture_output=True, text=True, timeout=60
    )
    assert ended.returncode == 2
    assert "--together: learners update together on one device, here are 2; show one" in ended.stderr
    assert not (tmp_path / "run").exists()


def test_overwrite_removes_runs_only(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "thesis.tex").touch()
    assert run_command(["run", DEMO, "--run-dir", str(tmp_path), "--overwrite"]) == 2
    assert "holds no run" in capsys.readouterr().err
    assert (tmp_path / "thesis.tex").exists()


def test_an_error_names_a_taken_port(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as other:
        other.bind(("", 0))
        other.listen()
        port = other.getsockname()[1]
        command = ["run", DEMO, "--run-dir", str(tmp_path / "run"), "--replay.port", str(port)]
        assert run_command(command) == 1
    assert f"replay.port: port {port} is taken" in capsys.readouterr().err
    assert json.loads((tmp_path / "run" / "status.json").read_text())["state"] == "failed"


@pytest.mark.processes
def test_an_error_names_a_missing_replay_environment(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FATHOM_REVERB_PYTHON", str(tmp_path / "no-python"))
    assert run_command(["run", DEMO, "--run-dir", str(tmp_path / "run")]) == 1
    assert "FATHOM_REVERB_PYTHON" in capsys.readouterr().err


def test_an_error_names_a_disk_that_is_too_small(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["run", DEMO, "--run-dir", str(tmp_path / "run"), "--learners.deep.width", "300000"]
    assert run_command(command) == 2
    assert "MB free, this run writes about" in capsys.readouterr().err


def test_an_error_names_a_full_disk(tmp_path: Path) -> None:
    writer = MetricsWriter(tmp_path)
    (tmp_path / "metrics" / "learner-deep.jsonl").symlink_to("/dev/full")
    with pytest.raises(OSError, match="No space left") as error:
        writer.write("learner-deep", {"updates": 1})
    assert "No space left on device; make room" in explain_failure(error.value, tmp_path)


def test_envs_as_json_lists_every_environment(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(["envs", "--json"]) == 0
    envs = {row["env"]: row for row in json.loads(capsys.readouterr().out)}
    assert len(envs) >= 40
    assert sum(row["paper"] for row in envs.values()) == 10
    maze = {"state": 29, "goal": 2, "action": 8, "episode": 1000, "backend": "spring", "radius": 0.5, "paper": True}
    assert envs["ant_u4_maze"] | maze == envs["ant_u4_maze"]


def test_envs_as_a_table_has_a_line_for_each_environment(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(["envs"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 1 + len(env_entries())
    assert [line.split()[0] for line in lines if " yes " in line] == [e.env_id for e in env_entries() if e.paper]


def test_the_environments_page_is_made_from_the_registry() -> None:
    assert (ROOT / "docs" / "environments.md").read_text() == page(), "docs/environments.md is stale; run make docs"
