"""`fathom bench end-to-end`: a short run in both modes, errors, and rates and shares by hand."""

import json
import math
from pathlib import Path

import psutil
import pytest

from deploy.bench.end_to_end import DEFAULT, QUICK, rate, share, within
from deploy.cli.main import run_command
from shared.config_file import parse_experiment
from shared.envs.registry import make_envs
from shared.plan import make_plan

WAITS = {
    "collector_waiting_replay_full",
    "collector_waiting_weights",
    "learner_waiting_replay_starved",
    "learner_waiting_replay_starved_most",
    "learner_waiting_publish",
    "learner_waiting_keeping_its_state",
}
ROW = WAITS | {
    "mode",
    "env_steps_per_second",
    "gradient_steps_per_second",
    "seconds_to_first_update",
    "wall_seconds",
    "learner_updating",
}
COMPARED = {
    "faster",
    "speedup",
    "learner_waiting_share",
    "data_plentiful",
    "policy_steps_per_second",
    "collector_steps_per_second",
    "collector_ratio",
}
RESULT = {
    "env",
    "num_envs",
    "depth",
    "width",
    "batch",
    "minibatches",
    "budget",
    "rows",
} | COMPARED


@pytest.mark.ray
@pytest.mark.timeout(600)
def test_a_quick_run_in_both_modes(capsys: pytest.CaptureFixture[str]) -> None:
    before = {child.pid for child in psutil.Process().children(recursive=True)}
    assert run_command(["bench", "end-to-end", "--quick", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result.keys() == RESULT
    assert all(row.keys() == ROW for row in result["rows"])
    distributed, in_process = result["rows"]
    assert (distributed["mode"], in_process["mode"]) == ("distributed", "in_process")
    for row in (distributed, in_process):
        figures = {name: value for name, value in row.items() if name not in WAITS | {"mode"}}
        assert all(math.isfinite(value) and value > 0 for value in figures.values())
        assert row["seconds_to_first_update"] < row["wall_seconds"]
    assert all(0 <= distributed[wait] <= 1 for wait in WAITS)
    assert all(in_process[wait] is None for wait in WAITS)
    assert result["learner_waiting_share"] == distributed["learner_waiting_replay_starved_most"]
    assert (result["faster"] == "distributed") == (result["speedup"] > 1)
    assert math.isfinite(result["collector_ratio"])
    left = {child.pid for child in psutil.Process().children(recursive=True)} - before
    assert not left


@pytest.mark.processes
@pytest.mark.slow
def test_one_process_alone_starts_neither_ray_nor_reverb(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in ("ray", "grpc", "uv"):
        (tmp_path / f"{name}.py").write_text(f"raise ImportError('{name} is not needed')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    assert run_command(["bench", "end-to-end", "--quick", "--modes", "in_process", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result.keys() == RESULT
    assert [row["mode"] for row in result["rows"]] == ["in_process"]
    assert {name for name in RESULT if result[name] is None} == COMPARED


def test_a_matrix_is_measured_in_both_modes(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(["bench", "end-to-end", "--matrix", "--modes", "in_process"]) == 2
    assert "--modes: --matrix measures both" in capsys.readouterr().err


@pytest.mark.parametrize("values", [DEFAULT, QUICK])
def test_default_and_quick_experiments_have_a_steady_state(values: dict) -> None:
    experiment = parse_experiment(values)
    assert make_plan(experiment, make_envs(experiment).training.spec).updates >= 15


def test_a_mistake_in_the_experiment_starts_no_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    experiment = tmp_path / "experiment.yaml"
    experiment.write_text("env: point_u_maze\ncollector: {depth: 6}\n")
    assert run_command(["bench", "end-to-end", str(experiment)]) == 2
    assert "collector.depth: depth 6 is not a positive multiple of 4" in capsys.readouterr().err


@pytest.mark.processes
def test_the_error_of_a_failed_run_is_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    experiment = tmp_path / "experiment.yaml"
    experiment.write_text("env: point_u_maze\nbudget: {env_steps: 10}\n")
    assert run_command(["bench", "end-to-end", str(experiment)]) == 1
    assert "the distributed run failed: algorithm.minibatches_per_update" in capsys.readouterr().err


def test_rates_and_shares_by_hand() -> None:
    rows = [
        {"time": 10.0, "seconds": 5.0, "env_steps": 100, "wait/weights": 1.0},
        {"time": 12.0, "seconds": 2.0, "env_steps": 200, "wait/weights": 0.5},
        {"time": 18.0, "seconds": 6.0, "env_steps": 260},
        {"time": 19.0, "seconds": 1.0, "env_steps": 900, "wait/weights": 1.0},
    ]
    inside = within(rows, 10.0, 18.0)
    assert inside == rows[:3]
    assert rate(inside, "env_steps") == pytest.approx((260 - 100) / (18 - 10))
    assert share(inside, "wait/weights") == pytest.approx((0.5 * 2 + 0.0 * 6) / (2 + 6))
