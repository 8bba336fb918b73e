"""Whole runs as a user starts them: real Ray processes, a real Reverb server, the `fathom` command."""

import json
import os
import re
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
from shared.plan import Plan, make_plan
from shared.replay.audit import account, read_audit
from shared.stream.read import open_stream

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
HANGING = """
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from shared.config import EnvOptions
from shared.envs.registry import make_env

ASKED = Path(__file__).with_name("hang")


def hang_if_asked(zero: np.ndarray) -> np.ndarray:
    if ASKED.exists():
        ASKED.unlink()
        time.sleep(10_000)
    return zero


class HangingMaze:
    def __init__(self, options: EnvOptions) -> None:
        maze = make_env("point_u_maze", options)
        self.maze, self.spec, self.step, self.cell, self.distance = maze, maze.spec, maze.step, maze.cell, maze.distance

    def reset(self, key: jax.Array):
        state = self.maze.reset(key)
        zero = jax.pure_callback(hang_if_asked, jax.ShapeDtypeStruct((), jnp.float32), 0 * state.state[0],
                                 vmap_method="expand_dims")
        return state._replace(state=state.state + zero)
"""


class Run:
    """`fathom run` in a process of its own, and every process that it starts."""

    def __init__(self, folder: Path, *options: str, module: tuple[str, str] | None = None) -> None:
        """`module`: a file that the run may import, and what is in it."""
        folder.mkdir()
        if module is not None:
            (folder / module[0]).write_text(module[1])
        self.experiment = folder / "experiment.yaml"
        self.experiment.write_text(EXPERIMENT)
        self.run_dir = folder / "run"
        self.started: set[psutil.Process] = set()
        self.said = ""
        command = [sys.executable, "-m", "deploy.cli", "run", str(self.experiment), "--run-dir", str(self.run_dir)]
        self.process = subprocess.Popen(
            [*command, *options],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
            env=os.environ | {"WANDB_MODE": "offline", "PYTHONPATH": str(folder)},
        )

    def wait_for_updates(self) -> None:
        """Until the passive learner has made an update."""
        deadline = time.monotonic() + DEADLINE_S
        while not read_metrics(self.run_dir, "learner-deep"):
            assert self.process.poll() is None, self.process.communicate()
            assert time.monotonic() < deadline
            time.sleep(0.5)
        self.look()

    def look(self) -> None:
        """Remembers every process that lives."""
        self.started.update(psutil.Process(self.process.pid).children(recursive=True))

    def find(self, what: str) -> psutil.Process:
        """The run's process whose command line contains `what`."""
        return self.all(what)[0]

    def all(self, what: str) -> list[psutil.Process]:
        self.look()
        return [p for p in self.started if any(what in part for part in _of(p, p.cmdline))]

    def find_role(self, role: str) -> psutil.Process:
        """The process that keeps the role's log open."""
        self.look()
        log = str(self.run_dir / "logs" / f"stacks-{role}.log")
        return next(p for p in self.started if log in [file.path for file in _of(p, p.open_files)])

    def wait_for_recovery(self, role: str) -> None:
        deadline = time.monotonic() + DEADLINE_S
        while role not in [row["role"] for row in read_metrics(self.run_dir, "recovery")]:
            assert self.process.poll() is None, self.process.communicate()
            assert time.monotonic() < deadline
            time.sleep(0.2)
        self.look()

    @property
    def plan(self) -> Plan:
        experiment = load_experiment(self.run_dir / "config.yaml")
        return make_plan(experiment, make_env(experiment.env).spec)

    def end(self) -> tuple[int, str]:
        """Waits for the end; exit status and standard error."""
        said, errors = self.process.communicate(timeout=DEADLINE_S)
        self.said = " ".join(said.split())
        return self.process.returncode, errors

    def left_over(self, seconds: float = 20) -> list[str]:
        """The run's processes that still live after `seconds`."""
        _, alive = psutil.wait_procs(self.started, timeout=seconds)
        return [" ".join(process.cmdline()) for process in alive]

    def summary(self) -> dict:
        return json.loads((self.run_dir / "summary.json").read_text())

    def status(self) -> dict:
        return json.loads((self.run_dir / "status.json").read_text())


def _of(process: psutil.Process, what: Callable[[], list]) -> list:
    """Nothing of a process that is gone."""
    try:
        return what()
    except psutil.NoSuchProcess:
        return []


def _stop(process: psutil.Process) -> None:
    process.send_signal(signal.SIGSTOP)


DEATHS = [
    pytest.param("ray::LearnerActor", psutil.Process.kill, "learner-", id="learner", marks=pytest.mark.chaos),
    pytest.param("serve.py", psutil.Process.kill, "the replay server (pid", id="replay server"),
    pytest.param("ray::CollectorActor", _stop, "collector-0", id="stopped collector"),
]


@pytest.mark.timeout(2 * DEADLINE_S)
@pytest.mark.parametrize(("process", "kill", "named"), DEATHS)
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


@pytest.mark.timeout(3 * DEADLINE_S)
def test_a_run_outlives_its_collector_a_learner_and_the_replay_server(tmp_path: Path) -> None:
    run = Run(tmp_path / "run", "--record", "true", "--replay.audit", "true", "--budget.env-steps", "120_000")
    run.wait_for_updates()
    killed: dict[str, int] = {}
    for role in ("collector-0", "learner-deep", "replay server"):
        victim = run.find("serve.py") if role == "replay server" else run.find_role(role)
        victim.kill()
        run.wait_for_recovery(role)
        killed[role] = victim.pid
    assert run.end() == (0, "")
    for role, pid in killed.items():
        assert re.search(rf"{role} \(pid {pid}\) [^;]*; starting it again", run.said), run.said
        assert re.search(rf"{role} works again after [\d.]+ s", run.said), run.said
    assert run.left_over() == []
    assert [row["role"] for row in read_metrics(run.run_dir, "recovery")] == list(killed)
    _check_windows(run)


@pytest.mark.chaos
@pytest.mark.timeout(3 * DEADLINE_S)
def test_a_collector_may_die_while_the_next_server_starts(tmp_path: Path) -> None:
    """Its next process puts in what the one before had promised."""
    run = Run(tmp_path / "run", "--record", "true", "--replay.audit", "true", "--budget.env-steps", "120_000")
    run.wait_for_updates()
    server = run.find("serve.py")
    server.kill()
    while (there := run.all("serve.py")) in ([], [server]):
        time.sleep(0.1)
    assert server not in there
    run.find_role("collector-0").kill()
    run.wait_for_recovery("collector-0")
    run.wait_for_recovery("replay server")
    assert run.end() == (0, "")
    assert run.left_over() == []
    _check_windows(run)


def _check_windows(run: Run) -> None:
    """Against the stream: what the last server counts and all of them confirmed, and what was trained on."""
    plan, replay = run.plan, read_metrics(run.run_dir, "replay")[-1]
    counted = sum(replay[f"{name}/inserted"] - replay["behind"] for name in ("active", "deep"))
    ints = ((number, columns.ints) for number, columns in open_stream(run.run_dir / "stream").shard(0))
    confirmed = read_audit(run.run_dir / "audit")
    result = account([ints], plan.environments, 2, plan.chunks_per_window, confirmed, {replay["life"]: counted})
    assert (result.lost, result.twice) == (0, 0)
    for name in ("active", "deep"):
        assert replay[f"{name}/inserted"] == result.windows
        assert read_metrics(run.run_dir, f"learner-{name}")[-1]["updates"] == plan.updates


@pytest.mark.timeout(2 * DEADLINE_S)
def test_a_role_that_hangs_leaves_its_stacks_and_starts_again(tmp_path: Path) -> None:
    """An environment whose host code never returns, once."""
    envs = ("--env", "hanging:HangingMaze", "--evaluation.env", "point_u_maze")
    folder = tmp_path / "run"
    run = Run(folder, *envs, "--supervision.progress-seconds", "10", module=("hanging.py", HANGING))
    run.wait_for_updates()
    (folder / "hang").touch()
    run.wait_for_recovery("collector-0")
    assert not (folder / "hang").exists()
    assert run.end() == (0, "")
    assert re.search(r"collector-0 has made no progress for \d+ s; starting it again", run.said), run.said
    assert "in hang_if_asked" in (run.run_dir / "logs" / "stacks-collector-0.log").read_text()
    assert set(run.status()["updates"].values()) == {run.status()["updates_planned"]}
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


@pytest.mark.timeout(2 * DEADLINE_S)
def test_two_runs_at_once_learn_and_never_meet(tmp_path: Path) -> None:
    # The last one: what it compiles, the others have left in the cache, and two at once would compile it twice.
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
