"""Runs of an environment that yields nothing to train on: each ends soon, with one line that names the mistake."""

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest

from deploy.cli.main import run_command
from shared.metrics import metrics_files, read_metrics
from shared.roles import EVALUATOR

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("own_envs")]
BUDGET = 6_400  # environment steps, 40 unrolls
EXPERIMENT = f"""
env: ENV
evaluation: {{episodes: 8, count: 1, env: EVALUATION}}
collector: {{depth: 4, width: 8, environments: 16, unroll_length: 10}}
algorithm: {{batch_size: 16, windows_per_update: 16, minibatches_per_update: 4}}
replay: {{steps_per_environment: 400, prefill_steps: 40}}
budget: {{env_steps: {BUDGET}}}
"""
STEP = (
    "state[1] is not finite after step 1 of an episode (environment 0 of {}); {}; make its step return finite "
    "numbers; with simulated physics, try a smaller env_options.physics_dt"
)
CASES = {
    "evaluation": (
        "field:Field",
        "broken:BrokenStep",
        f"evaluation.envs: broken:BrokenStep: {STEP.format('the evaluator', 'all 8 episodes of an evaluation broke')}",
    ),
    "episodes of one step": (
        "broken:Impatient",
        "null",
        "env: broken:Impatient: all 1,600 episodes of the newest 10 unrolls of collector-0 ended with their first "
        "step, so no row has a later one as its goal; set terminated only where an episode ends by itself",
    ),
}


def write_experiment(folder: Path, env: str, evaluation: str) -> str:
    path = folder / "experiment.yaml"
    path.write_text(EXPERIMENT.replace("ENV", env).replace("EVALUATION", evaluation))
    return str(path)


@pytest.mark.slow
@pytest.mark.parametrize(("env", "evaluation", "line"), CASES.values(), ids=CASES)
def test_a_broken_environment_ends_an_in_process_run_with_one_line(
    env: str, evaluation: str, line: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    experiment, run_dir = write_experiment(tmp_path, env, evaluation), tmp_path / "run"
    assert run_command(["run", experiment, "--run-dir", str(run_dir), "--in-process"]) == 1
    assert capsys.readouterr().err == f"fathom: {line}\n"
    status = json.loads((run_dir / "status.json").read_text())
    assert (status["state"], status["reason"]) == ("failed", line)
    assert status["env_steps"] < BUDGET
    rows = [row for role in metrics_files(run_dir) for row in read_metrics(run_dir, role)]
    assert rows or evaluation != "null"  # the first evaluation may end the run before the first unroll
    assert bool(read_metrics(run_dir, EVALUATOR)) == (evaluation == "null")
    assert all(math.isfinite(value) for row in rows for value in row.values() if isinstance(value, float))


def test_a_broken_environment_ends_a_distributed_run_with_one_line(tmp_path: Path, shared_cluster: object) -> None:
    experiment, run_dir = write_experiment(tmp_path, "broken:BrokenStep", "field:Field"), tmp_path / "run"
    ended = subprocess.run(
        [sys.executable, "-m", "deploy.cli", "run", experiment, "--run-dir", str(run_dir)],
        capture_output=True,
        text=True,
        timeout=200,
    )
    cost = "such steps have cost 80 windows, and the run makes up for 64 at most"
    reason = f"collector-0 failed: EnvironmentBroken: env: broken:BrokenStep: {STEP.format('collector-0', cost)}"
    assert (ended.returncode, ended.stderr) == (1, f"fathom: {reason}\n")
    assert json.loads((run_dir / "status.json").read_text())["env_steps"] < BUDGET
    assert "starting it again" not in ended.stdout
