"""Whole runs as a user starts them: real Ray processes, a real Reverb server, the `fathom` command."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from shared.config import load_experiment
from shared.envs.registry import make_env
from shared.metrics import read_metrics
from shared.plan import make_plan

DEADLINE_S = 200
EXPERIMENT = """
env: point_u_maze
collector: {depth: 4, width: 64, environments: 64, unroll_length: 50}
learners:
  deep: {depth: 8, width: 64, seed: 1}
algorithm: {batch_size: 256, windows_per_update: 64, minibatches_per_update: 40}
replay: {steps_per_environment: 2500, prefill_steps: 250}
evaluation: {episodes: 64, count: 3}
supervision: {heartbeat_seconds: 6}
budget: {env_steps: 80_000}
"""
WANDB = ("--wandb.project", "fathom")  # whose processes have to go, too


class Run:
    """`fathom run` in a process of its own, and every process that it starts."""

    def __init__(self, folder: Path, *options: str) -> None:
        folder.mkdir()
        self.experiment = folder / "experiment.yaml"
        self.experiment.write_text(EXPERIMENT)
        self.run_dir = folder / "run"
        self.started: set[psutil.Process] = set()
        command = [sys.executable, "-m", "deploy.cli", "run", str(self.experiment), "--run-dir", str(self.run_dir)]
        self.process = subprocess.Popen(
            [*command, *options],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
            env=os.environ | {"WANDB_MODE": "offline"},
        )

    def wait_for_updates(self) -> None:
        """Until the passive learner has made an update."""
        deadline = time.monotonic() + DEADLINE_S
        while not read_metrics(self.run_dir, "learner-deep"):
            assert self.process.poll() is None, self.process.communicate()
            assert time.monotonic() < deadline
            time.sleep(0.5)
        self.started = set(psutil.Process(self.process.pid).children(recursive=True))

    def find(self, what: str) -> psutil.Process:
        """The run's process whose command line contains `what`."""
        return next(p for p in self.started if any(what in part for part in p.cmdline()))

    def end(self) -> tuple[int, str]:
        """Waits for the end; exit status and standard error."""
        _, errors = self.process.communicate(timeout=DEADLINE_S)
        return self.process.returncode, errors

    def left_over(self, seconds: float = 20) -> list[str]:
        """The run's processes that still live after `seconds`."""
        _, alive = psutil.wait_procs(self.started, timeout=seconds)
        return [" ".join(process.cmdline()) for process in alive]

    def summary(self) -> dict:
        return json.loads((self.run_dir / "summary.json").read_text())

    def status(self) -> dict:
        return json.loads((self.run_dir / "status.json").read_text())


@pytest.mark.timeout(2 * DEADLINE_S)
def test_two_runs_at_once_learn_and_never_meet(tmp_path: Path) -> None:
    runs = {pace: Run(tmp_path / pace, "--replay.pace", pace, "--record", "true") for pace in ("lockstep", "free")}
    for run in runs.values():
        run.wait_for_updates()
    for pace, run in runs.items():
        assert run.end() == (0, "")
        assert run.left_over() == []
        summary = run.summary()
        experiment = load_experiment(run.run_dir / "config.yaml")
        plan = make_plan(experiment, make_env(experiment.env).spec)
        counts = read_metrics(run.run_dir, "replay")[-1]
        for name, learner in summary["learners"].items():
            assert learner["gradient_steps"] == plan.gradient_steps
            assert learner["samples_per_insert"] == pytest.approx(1.0, rel=0.05)
            assert learner["sample_age"] > 0
            # Exactly this run's windows, in its own table: nobody else inserted, nothing was lost.
            assert counts[f"{name}/inserted"] == plan.windows
            assert (run.run_dir / "checkpoints" / name).is_dir()
        best = max(learner["time_at_goal"] for learner in summary["learners"].values())
        assert best > 3 * summary["untrained_time_at_goal"], pace
        assert summary["env_steps"] == plan.env_steps
        assert summary["collector"]["policy_lag"] >= 0
        assert (run.run_dir / "learning_curve.png").stat().st_size > 10_000
        assert run.status()["state"] == "done"
        updates = [row["updates"] for row in read_metrics(run.run_dir, "evaluator") if row["learner"] == "deep"]
        assert updates == list(plan.evaluation_updates)
    _feed_again(tmp_path / "fed", runs["lockstep"].run_dir)


def _feed_again(folder: Path, recorded: Path) -> None:
    """A learner of another depth on the stream of a run, with no environment stepped to collect."""
    run = Run(folder, "--stream", str(recorded / "stream"), "--learners.deep.depth", "12")
    run.wait_for_updates()
    assert not any("ray::CollectorActor" in part for process in run.started for part in process.cmdline())
    assert run.end() == (0, "")
    assert run.left_over() == []
    before, after = (json.loads((path / "summary.json").read_text()) for path in (recorded, run.run_dir))
    assert list(after["learners"]) == ["deep"]
    for name in ("gradient_steps", "samples_per_insert"):
        assert after["learners"]["deep"][name] == pytest.approx(before["learners"]["deep"][name], rel=0.05)
    for name in ("coverage", "coverage_entropy"):
        assert after["collector"][name] == before["collector"][name]
    assert after["env_steps"] == before["env_steps"]
    assert (
        read_metrics(run.run_dir, "replay")[-1]["deep/inserted"]
        == read_metrics(recorded, "replay")[-1]["deep/inserted"]
    )
    assert read_metrics(run.run_dir, "collector-0") == []


def _stop(process: psutil.Process) -> None:
    process.send_signal(signal.SIGSTOP)


DEATHS: dict[str, tuple[str, Callable[[psutil.Process], None], str]] = {
    "learner": ("ray::LearnerActor", psutil.Process.kill, "learner-"),
    "replay server": ("serve.py", psutil.Process.kill, "the replay server (pid"),
    "stopped collector": ("ray::CollectorActor", _stop, "collector-0"),
}


@pytest.mark.timeout(2 * DEADLINE_S)
@pytest.mark.parametrize(("process", "kill", "named"), DEATHS.values(), ids=DEATHS.keys())
def test_a_death_ends_the_run_with_its_name(
    process: str, kill: Callable[[psutil.Process], None], named: str, tmp_path: Path
) -> None:
    run = Run(tmp_path / "run", "--supervision.restarts-per-hour", "0")
    run.wait_for_updates()
    victim = run.find(process)
    kill(victim)
    killed = time.monotonic()
    status, errors = run.end()
    assert time.monotonic() - killed < 60
    assert status == 1
    assert len(errors.strip().splitlines()) == 1
    assert named in errors
    assert str(victim.pid) in errors
    assert run.status()["state"] == "failed"
    assert run.status()["reason"] in errors
    assert run.left_over() == []


@pytest.mark.timeout(2 * DEADLINE_S)
def test_ctrl_c_ends_the_run_in_order(tmp_path: Path) -> None:
    run = Run(tmp_path / "run", *WANDB)
    run.wait_for_updates()
    os.killpg(run.process.pid, signal.SIGINT)
    assert run.end() == (130, "fathom: interrupted\n")
    assert run.status()["state"] == "interrupted"
    assert run.left_over() == []


@pytest.mark.timeout(2 * DEADLINE_S)
def test_nothing_outlives_a_killed_driver(tmp_path: Path) -> None:
    run = Run(tmp_path / "run", *WANDB)
    run.wait_for_updates()
    run.process.kill()
    run.process.communicate(timeout=DEADLINE_S)
    assert run.left_over() == []
