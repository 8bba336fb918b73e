"""Whole runs as a user starts them: real Ray processes, a real Reverb server, the `fathom` command."""

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import psutil
import pytest

from deploy.recovery.snapshots import read_position
from shared.config_file import load_experiment
from shared.envs.registry import make_envs
from shared.metrics import read_metrics
from shared.plan import Plan, make_plan
from shared.replay.audit import account, read_audit
from shared.stream.read import open_stream

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("own_envs")]
DEADLINE_S = 200
POLL_S = 0.1
ENDLESS = 100_000_000  # environment steps of a run that does not end by itself
EXPERIMENT = f"""
env: point_u_maze
env_options: {{episode_length: 20}}
collector: {{depth: 4, width: 8, environments: 16, unroll_length: 10}}
algorithm: {{batch_size: 16, windows_per_update: 16, minibatches_per_update: 4}}
replay: {{steps_per_environment: 400, prefill_steps: 40}}
evaluation: {{episodes: 8, count: 2}}
snapshots: {{count: 1}}
supervision: {{heartbeat_seconds: 6}}
budget: {{env_steps: {ENDLESS}}}
"""
WITH_PASSIVE = f"""{EXPERIMENT}
learners:
  deep: {{depth: 8, width: 8, seed: 1}}
"""
LEARNING = """
env: field:Field
collector: {depth: 4, width: 16, environments: 16, unroll_length: 10}
learners:
  deep: {depth: 8, width: 16, seed: 1}
algorithm:
  {discount: 0.9, batch_size: 64, windows_per_update: 16, minibatches_per_update: 4,
   actor_learning_rate: 0.003, critic_learning_rate: 0.003, alpha_learning_rate: 0.003}
replay: {steps_per_environment: 1000, prefill_steps: 20}
evaluation: {episodes: 64, count: 3}
snapshots: {count: 1}
budget: {env_steps: 11_200}
"""
WANDB = ("--wandb.project", "fathom")  # starts processes, which must end with the run
SERVER = "replay server"
PACED_STEPS = 16 * 10 * 160  # environment steps of a run that is slow until its faults are over


class Run:
    """`fathom run` in a process of its own, and every process that it starts."""

    def __init__(
        self,
        folder: Path,
        *options: str,
        experiment: str = EXPERIMENT,
        cluster: psutil.Process | None = None,
    ) -> None:
        """`cluster`: the process from which the run's actors descend; None if they descend from the driver."""
        folder.mkdir(exist_ok=True)
        self.experiment = folder / "experiment.yaml"
        self.experiment.write_text(experiment)
        self.run_dir = folder / "run"
        self.cluster = cluster
        self.started: set[psutil.Process] = set()
        self.output = ""
        command = [sys.executable, "-m", "deploy.cli", "run", str(self.experiment), "--run-dir", str(self.run_dir)]
        self.process = subprocess.Popen(
            [*command, *options],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
            env=os.environ | {"WANDB_MODE": "offline"},
        )
        RUNS.append(self)

    def wait_until(self, condition: Callable[[], bool], seconds: float = DEADLINE_S) -> None:
        deadline = time.monotonic() + seconds
        while not condition():
            assert self.process.poll() is None, self.process.communicate()
            assert time.monotonic() < deadline
            time.sleep(POLL_S)
        self.note_processes()

    def wait_for_row(self, role: str = "learner-deep") -> None:
        """Waits until the role, by default the passive learner, has reported its first call."""
        self.wait_until(lambda: bool(read_metrics(self.run_dir, role)))

    def wait_for_recovery(self, role: str, earlier: int) -> None:
        """Waits until the role has recovered from a fault. `earlier`: number of recoveries before the fault."""
        self.wait_until(lambda: len(self.recovered) > earlier)
        assert self.recovered[earlier:] == [role]

    @property
    def recovered(self) -> list[str]:
        return [row["role"] for row in read_metrics(self.run_dir, "recovery")]

    def note_processes(self) -> None:
        """Adds the processes that are alive now to `started`."""
        with contextlib.suppress(psutil.NoSuchProcess):
            self.started.update(psutil.Process(self.process.pid).children(recursive=True))
        if self.cluster is not None:
            workers = self.cluster.children(recursive=True)
            self.started.update(p for p in workers if any(map(_belongs_to_a_run, _unless_gone(p.cmdline))))

    def find_all(self, text: str) -> list[psutil.Process]:
        """Returns the processes, of this run and of others on its cluster, whose command line contains `text`."""
        self.note_processes()
        return [p for p in self.started if any(text in part for part in _unless_gone(p.cmdline))]

    def find_role(self, role: str) -> psutil.Process:
        """Returns the role's process in this run: the process that keeps the role's log open."""
        self.note_processes()
        name = "replay_server.log" if role == SERVER else f"stacks-{role}.log"
        log = str(self.run_dir / "logs" / name)
        return next(p for p in self.started if log in [file.path for file in _unless_gone(p.open_files)])

    @property
    def plan(self) -> Plan:
        experiment = load_experiment(self.run_dir / "config.yaml")
        return make_plan(experiment, make_envs(experiment).training.spec)

    def end(self) -> tuple[int, str]:
        """Waits until the driver ends; returns its exit status and standard error."""
        output, errors = self.process.communicate(timeout=DEADLINE_S)
        self.output = " ".join(output.split())
        return self.process.returncode, errors

    def left_over(self, seconds: float = 20) -> list[str]:
        """Returns the command lines of the run's processes that are still alive after `seconds`."""
        _, alive = psutil.wait_procs(self.started, timeout=seconds)
        return [" ".join(_unless_gone(process.cmdline)) for process in alive]

    def summary(self) -> dict:
        return json.loads((self.run_dir / "summary.json").read_text())

    def status(self) -> dict:
        return json.loads((self.run_dir / "status.json").read_text())


RUNS: list[Run] = []
"""Runs that the current test has started."""


@pytest.fixture(autouse=True)
def no_run_left(pace_dir: Path) -> Iterator[None]:
    """Removes the pace files after a test, and kills drivers that a failed test left: many of them would never end."""
    yield
    for file in pace_dir.iterdir():
        file.unlink()
    for run in RUNS:
        run.process.kill()
        run.process.wait(DEADLINE_S)
    RUNS.clear()


def _unless_gone(query: Callable[[], list]) -> list:
    """Returns the answer to a query about a process; empty if the process is gone."""
    try:
        return query()
    except psutil.NoSuchProcess:
        return []


def _belongs_to_a_run(part: str) -> bool:
    """Returns true for a part of the command line of an actor or of a replay server."""
    return ("ray::" in part and "Actor" in part) or part.endswith("serve.py")


class Fault(NamedTuple):
    """A signal that kills or stops a role's process."""

    role: str
    signal: signal.Signals


KILLED_LEARNER = Fault("learner-active", signal.SIGKILL)
KILLED_SERVER = Fault(SERVER, signal.SIGKILL)
STOPPED_COLLECTOR = Fault("collector-0", signal.SIGSTOP)


@pytest.mark.timeout(3 * DEADLINE_S)
@pytest.mark.parametrize(
    "faults",
    [
        pytest.param([KILLED_LEARNER], id="killed learner", marks=pytest.mark.chaos),
        pytest.param([STOPPED_COLLECTOR, KILLED_SERVER], id="stopped collector, killed replay server"),
    ],
)
def test_without_restarts_a_fault_ends_the_run_and_the_error_names_the_role(
    faults: list[Fault], shared_cluster: psutil.Process, tmp_path: Path
) -> None:
    """Starts one run per fault: the next run starts while the heartbeat of a stopped process times out."""
    faulted = []
    for number, fault in enumerate(faults):
        run = Run(tmp_path / str(number), "--supervision.restarts-per-hour", "0", cluster=shared_cluster)
        run.wait_for_row("collector-0")
        process = run.find_role(fault.role)
        process.send_signal(fault.signal)
        faulted.append((run, process, fault.role, time.time()))
    for run, process, role, sent in faulted:
        status, errors = run.end()
        assert (run.run_dir / "status.json").stat().st_mtime - sent < 60
        assert status == 1
        assert len(errors.strip().splitlines()) == 1
        assert f"{role} (pid {process.pid})" in errors
        assert run.status()["state"] == "failed"
        assert run.status()["reason"] in errors
        assert run.left_over() == []


def _paced_run(folder: Path, cluster: psutil.Process, pace_dir: Path, *options: str) -> Run:
    """Starts a recorded, audited run that ends soon after `pace_dir` no longer holds the file `slow`."""
    (pace_dir / "slow").touch()
    env = ("--env", "paced:PacedMaze", "--evaluation.envs", "point_u_maze", "--budget.env-steps", str(PACED_STEPS))
    audited = ("--record", "true", "--replay.audit", "true")
    return Run(folder, *env, *audited, *options, experiment=WITH_PASSIVE, cluster=cluster)


@pytest.mark.timeout(3 * DEADLINE_S)
def test_a_run_outlives_a_hang_and_the_deaths_of_a_collector_a_learner_and_the_replay_server(
    shared_cluster: psutil.Process, pace_dir: Path, tmp_path: Path, uncatalogued: Callable[[Path], dict]
) -> None:
    run = _paced_run(tmp_path / "run", shared_cluster, pace_dir, "--supervision.progress-seconds", "5")
    slow, hang = pace_dir / "slow", pace_dir / "hang"
    run.wait_for_row()
    hang.touch()
    run.wait_for_recovery("collector-0", 0)
    assert not hang.exists()
    killed: dict[str, int] = {}
    for earlier, role in enumerate(("collector-0", "learner-deep", SERVER), start=1):
        process = run.find_role(role)
        process.kill()
        run.wait_for_recovery(role, earlier)
        killed[role] = process.pid
    slow.unlink()
    assert run.end() == (0, "")
    assert re.search(r"collector-0 has made no progress for \d+ s; starting it again", run.output), run.output
    assert "in pause_if_asked" in (run.run_dir / "logs" / "stacks-collector-0.log").read_text()
    for role, pid in killed.items():
        assert re.search(rf"{role} \(pid {pid}\) [^;]*; starting it again", run.output), run.output
        assert re.search(rf"{role} works again after [\d.]+ s", run.output), run.output
    assert run.left_over() == []
    assert run.recovered == ["collector-0", *killed]
    assert uncatalogued(run.run_dir) == {}
    assert set(run.status()["updates"].values()) == {run.status()["updates_planned"]}
    _check_windows(run)


@pytest.mark.chaos
@pytest.mark.timeout(3 * DEADLINE_S)
def test_a_new_replay_server_and_a_collector_may_die_while_the_server_starts(
    shared_cluster: psutil.Process, pace_dir: Path, tmp_path: Path
) -> None:
    """No window is lost although the dead collector had announced a refill and not inserted it."""
    run = _paced_run(tmp_path / "run", shared_cluster, pace_dir)
    run.wait_for_row()
    servers = [run.find_role(SERVER)]
    for _ in range(2):
        servers[-1].kill()
        while not (started := [process for process in run.find_all("serve.py") if process not in servers]):
            time.sleep(POLL_S)
        servers += started
    run.find_role("collector-0").kill()
    run.wait_until(lambda: {"collector-0", SERVER} <= set(run.recovered))
    (pace_dir / "slow").unlink()
    assert run.end() == (0, "")
    assert run.recovered.count(SERVER) == 1  # the second server never answered
    assert run.left_over() == []
    _check_windows(run)


def _check_windows(run: Run) -> None:
    """Asserts that no window of the stream was lost or held twice by a server, and that all updates were made."""
    plan, replay = run.plan, read_metrics(run.run_dir, "replay")[-1]
    counted = sum(replay[f"{name}/inserted"] - replay["already_inserted"] for name in ("active", "deep"))
    ints = ((number, columns.ints) for number, columns in open_stream(run.run_dir / "stream").shard(0))
    confirmed = read_audit(run.run_dir / "audit")
    result = account([ints], plan.environments, 2, plan.chunks_per_window, confirmed, {replay["incarnation"]: counted})
    assert (result.lost, result.twice) == (0, 0)
    for name in ("active", "deep"):
        assert replay[f"{name}/inserted"] == result.windows
        assert read_metrics(run.run_dir, f"learner-{name}")[-1]["updates"] == plan.updates


@pytest.mark.timeout(3 * DEADLINE_S)
def test_a_snapshot_holds_all_windows_of_its_learners_although_a_collector_stands_still(
    shared_cluster: psutil.Process, tmp_path: Path
) -> None:
    """While one of two collectors stands still, the other inserts all windows, far more than its own share."""
    options = ("--collector.actors", "2", "--supervision.heartbeat_seconds", "600")
    snapshots = ("--budget.env_steps", "1_600_000", "--snapshots.count", "500", "--snapshots.keep", "500")
    run = Run(tmp_path / "run", *options, *snapshots, cluster=shared_cluster)

    def newest(role: str, name: str) -> int:
        return read_metrics(run.run_dir, role)[-1][name]

    def complete() -> list[Path]:
        return [path.parent for path in (run.run_dir / "snapshots").glob("*/snapshot.json")]

    def made_by(snapshot: Path) -> int:
        """Returns the windows that the first collector had made when the learner made the snapshot's last update."""
        learner = read_metrics(run.run_dir, "learner-active")
        end = max(row["time"] for row in learner if row["updates"] <= int(snapshot.name))
        return max(row["windows"] for row in read_metrics(run.run_dir, "collector-0") if row["time"] <= end)

    def share(snapshot: Path) -> float:
        return (made := made_by(snapshot)) / (made + read_position(snapshot / "collector-1").windows.made)

    for role in ("collector-0", "collector-1", "learner-active"):
        run.wait_for_row(role)
    standing = run.find_role("collector-1")
    standing.suspend()
    run.wait_until(lambda: newest("collector-0", "windows") > 4 * newest("collector-1", "windows"))
    updates = newest("learner-active", "updates")
    planned = next(later for later in run.plan.snapshot_updates if later > updates)
    run.wait_until(lambda: newest("learner-active", "updates") > planned)
    standing.resume()
    run.wait_until(lambda: any(share(snapshot) > 0.6 for snapshot in complete()))
    os.killpg(run.process.pid, signal.SIGINT)
    assert run.end()[0] == 130
    for snapshot in complete():
        assert read_position(snapshot / "collector-0").windows.made >= made_by(snapshot)


@pytest.mark.timeout(2 * DEADLINE_S)
def test_ctrl_c_ends_the_run_in_order(tmp_path: Path) -> None:
    run = Run(tmp_path / "run", *WANDB, experiment=WITH_PASSIVE)
    run.wait_for_row()
    os.killpg(run.process.pid, signal.SIGINT)
    assert run.end() == (130, "fathom: interrupted\n")
    assert run.status()["state"] == "interrupted"
    assert run.left_over() == []


@pytest.mark.timeout(2 * DEADLINE_S)
def test_nothing_outlives_a_killed_driver(tmp_path: Path) -> None:
    run = Run(tmp_path / "run", *WANDB)
    run.wait_for_row("learner-active")
    run.process.kill()
    run.process.communicate(timeout=DEADLINE_S)
    assert run.left_over() == []


@pytest.mark.timeout(2 * DEADLINE_S)
@pytest.mark.parametrize("server", ["raylet", pytest.param("gcs_server", marks=pytest.mark.chaos)])
def test_a_run_whose_own_cluster_dies_ends_with_one_line(server: str, tmp_path: Path) -> None:
    run = Run(tmp_path / "run")
    run.wait_for_row("learner-active")
    (process,) = (child for child in psutil.Process(run.process.pid).children() if child.name() == server)
    process.kill()
    killed = time.time()
    status, errors = run.end()
    expected = f"fathom: Ray's {server} (pid {process.pid}) died (killed, crashed, or out of memory), and no role can"
    assert (status, errors.count("\n")) == (1, 1)
    assert errors.startswith(expected)
    assert (run.status()["state"], run.status()["reason"]) == ("failed", errors.strip().removeprefix("fathom: "))
    assert (run.run_dir / "status.json").stat().st_mtime - killed < 30  # Ray itself ends the driver after a minute
    assert run.left_over() == []


@pytest.mark.timeout(2 * DEADLINE_S)
def test_two_runs_on_one_cluster_learn_and_share_no_data(
    shared_cluster: psutil.Process, pace_dir: Path, tmp_path: Path
) -> None:
    """Runs in both paces share one cluster; then a learner of another depth trains on the stream of one of them."""
    slow, hold = pace_dir / "slow", pace_dir / "hold"
    slow.touch()
    paced = ("--env", "paced:PacedField", "--evaluation.envs", "field:Field")
    runs = {
        pace: Run(tmp_path / pace, "--record", "true", *options, experiment=LEARNING, cluster=shared_cluster)
        for pace, options in {"lockstep": (), "free": ("--replay.pace", "free", *paced)}.items()
    }
    for run in runs.values():
        run.wait_for_row()
    _check_that_a_passive_learner_runs_ahead(runs["free"], hold)
    slow.unlink()
    for pace, run in runs.items():
        assert run.end() == (0, "")
        summary, plan = run.summary(), run.plan
        counts = read_metrics(run.run_dir, "replay")[-1]
        for name, learner in summary["learners"].items():
            assert learner["gradient_steps"] == plan.gradient_steps
            assert learner["samples_per_insert"] == pytest.approx(1.0, rel=0.05)
            assert learner["sample_age"] > 0
            # The table holds exactly this run's windows: the other run inserted none, and none was lost.
            assert counts[f"{name}/inserted"] == plan.windows
            assert (run.run_dir / "checkpoints" / name).is_dir()
        best = max(learner["last_time_at_goal"] for learner in summary["learners"].values())
        assert best > 3 * summary["untrained_time_at_goal"], pace
        assert summary["env_steps"] == plan.env_steps
        assert summary["collector"]["policy_lag"] >= 0
        assert (run.run_dir / "learning_curve.png").stat().st_size > 10_000
        assert run.status()["state"] == "done"
        updates = [row["updates"] for row in read_metrics(run.run_dir, "evaluator") if row["learner"] == "deep"]
        assert updates == list(plan.evaluation_updates)
    for run in runs.values():
        assert run.left_over() == []
    _train_on_stream(tmp_path / "fed", runs["lockstep"].run_dir, shared_cluster)


def _check_that_a_passive_learner_runs_ahead(run: Run, hold: Path) -> None:
    """Asserts that a passive learner makes all its updates while the collector, and so the collector learner, waits."""
    updates = run.plan.updates
    hold.touch()
    try:
        run.wait_until(lambda: read_metrics(run.run_dir, "learner-deep")[-1]["updates"] == updates, seconds=60)
        assert all(row["updates"] < updates for row in read_metrics(run.run_dir, "learner-active"))
    finally:
        hold.unlink()


def _train_on_stream(folder: Path, recorded: Path, cluster: psutil.Process) -> None:
    """Trains a learner of another depth on the stream of a run, without a collector."""
    stream = ("--stream", str(recorded / "stream"))
    run = Run(folder, *stream, "--learners.deep.depth", "12", experiment=LEARNING, cluster=cluster)
    run.wait_for_row()
    assert run.find_all("ray::LearnerActor")
    assert not run.find_all("ray::CollectorActor")
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
