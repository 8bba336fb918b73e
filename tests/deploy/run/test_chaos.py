"""Faults in real runs: every role is killed and stopped repeatedly, and no window is lost or held twice.

    FAULTS=50 make test-chaos

Prints `faults: N, survived: N, lost: N, twice: N`, and the seconds that each role took to recover.
"""

import json
import os
import random
import signal
import statistics
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from itertools import cycle
from pathlib import Path
from typing import NamedTuple

import psutil
import pytest

from shared.config_file import load_experiment
from shared.envs.registry import make_env
from shared.metrics import Row, read_metrics
from shared.plan import Plan, make_plan
from shared.replay.audit import Account, account, read_audit
from shared.stream.format import shard_folder
from shared.stream.read import open_stream

FAULTS = int(os.environ.get("FAULTS", "24"))
SEED = int(os.environ.get("CHAOS_SEED", "0"))
START_S = 120.0
RECOVERY_S = 120.0
RUN_S = 900.0
EXPERIMENT = """
env: point_u_maze
collector: {depth: 4, width: 64, environments: 64, unroll_length: 50}
learners:
  deep: {depth: 8, width: 64, seed: 1}
algorithm: {batch_size: 256, windows_per_update: 64, minibatches_per_update: 40}
replay: {steps_per_environment: 2500, prefill_steps: 250, audit: true}
evaluation: {episodes: 64, count: 6}
supervision: {heartbeat_seconds: 6, restarts_per_hour: 100}
budget: {env_steps: 240_000}
record: true
"""


class Target(NamedTuple):
    """A role, and the text by which the command line of its process is found."""

    role: str
    process: str


COLLECTOR, EVALUATOR = Target("collector-0", "ray::CollectorActor"), Target("evaluator", "ray::EvaluatorActor")
ACTIVE_LEARNER = Target("learner-active", "ray::LearnerActor")
PASSIVE_LEARNER = Target("learner-deep", "ray::LearnerActor")
SERVER, SERVER_ACTOR = Target("replay server", "serve.py"), Target("replay server", "ray::ReplayServerActor")
STORE = Target("parameter store", "ray::ParamStoreActor")


class Fault(NamedTuple):
    target: Target
    signal: signal.Signals


ROUNDS = (
    (COLLECTOR, ACTIVE_LEARNER, PASSIVE_LEARNER, EVALUATOR, SERVER, STORE),
    (COLLECTOR, ACTIVE_LEARNER, PASSIVE_LEARNER, EVALUATOR, SERVER_ACTOR, STORE),
)
"""Targets of one round, each role once. Rounds alternate between the replay server's process and its actor."""


def make_faults(rng: random.Random, count: int) -> list[Fault]:
    """Returns `count` faults in random order, made in rounds: two of kills, then two of stops, and so on."""
    faults: list[Fault] = []
    for number, targets in zip(range(count // 6 + 1), cycle(ROUNDS), strict=False):
        how = signal.SIGKILL if number // 2 % 2 == 0 else signal.SIGSTOP
        faults += [Fault(target, how) for target in targets]
    faults = faults[:count]
    rng.shuffle(faults)
    return faults


class Run:
    """`fathom run` in a process of its own."""

    def __init__(self, folder: Path, seed: int) -> None:
        folder.mkdir()
        experiment = folder / "experiment.yaml"
        experiment.write_text(EXPERIMENT + f"seed: {seed}\n")
        self.run_dir = folder / "run"
        self.log = folder / "log"
        with open(self.log, "w") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "deploy.cli", "run", str(experiment), "--run-dir", str(self.run_dir)],
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self.started: set[psutil.Process] = set()

    def descendants(self) -> list[psutil.Process]:
        found = psutil.Process(self.process.pid).children(recursive=True)
        self.started.update(found)
        return found

    def find(self, target: Target) -> psutil.Process | None:
        """Returns the target's process. Learners have the same process name; the open log file distinguishes them."""
        for process in self.descendants():
            try:
                if not any(target.process in part for part in process.cmdline()):
                    continue
                if target.process != "ray::LearnerActor" or any(
                    file.path.endswith(f"stacks-{target.role}.log") for file in process.open_files()
                ):
                    return process
            except (psutil.NoSuchProcess, psutil.AccessDenied):
                continue
        return None

    def rows(self, role: str) -> list[Row]:
        return read_metrics(self.run_dir, role)

    def recoveries(self, role: str) -> int:
        return sum(row["role"] == role for row in self.rows("recovery"))

    def updates(self) -> int:
        """Returns the updates of the slowest learner."""
        return min((rows[-1]["updates"] if rows else 0) for rows in map(self.rows, ("learner-active", "learner-deep")))

    def wait(self, condition: Callable[[], bool], seconds: float) -> bool:
        """Waits until `condition` is true; returns false after `seconds`, or when the run has ended."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline and self.process.poll() is None:
            if condition():
                return True
            time.sleep(0.2)
        return False

    def wait_until_training(self) -> None:
        assert self.wait(lambda: self.updates() > 0, START_S), self.log.read_text()

    @property
    def plan(self) -> Plan:
        experiment = load_experiment(self.run_dir / "config.yaml")
        return make_plan(experiment, make_env(experiment.env).spec)


def inject(run: Run, fault: Fault) -> float | None:
    """Sends the fault's signal and waits for the recovery; returns the seconds from the signal to the recovery.

    Returns None if the role did not recover. The run has survived the fault only if it has ended without the role.
    """
    process = run.find(fault.target)
    assert process is not None, fault
    before = run.recoveries(fault.target.role)
    sent = time.monotonic()
    process.send_signal(fault.signal)
    recovered = run.wait(lambda: run.recoveries(fault.target.role) > before, RECOVERY_S)
    return time.monotonic() - sent if recovered else None


def check_completed(run: Run) -> Account:
    """Asserts that the run has completed its plan, and returns the account of its windows."""
    assert run.process.wait(RUN_S) == 0, run.log.read_text()
    _, alive = psutil.wait_procs(run.started, timeout=20)
    assert alive == []
    plan, names = run.plan, ("active", "deep")
    summary = json.loads((run.run_dir / "summary.json").read_text())
    for name in names:
        rows = run.rows(f"learner-{name}")
        assert rows[-1]["updates"] == plan.updates
        assert_counters_grow(rows, "updates", "gradient_steps")
        counted, wanted = run.rows("replay")[-1][f"{name}/sampled"], plan.updates * plan.windows_per_update
        assert counted <= wanted + 2 * plan.windows_per_update
        assert counted >= wanted or "the last counts of replay are missing" in run.log.read_text()
    assert_counters_grow(run.rows("collector-0"), "index", "unrolls", "env_steps", "windows")
    evaluated = [(row["learner"], row["updates"]) for row in run.rows("evaluator")]
    assert len(evaluated) == len(set(evaluated))
    assert {(name, plan.updates) for name in names} <= set(evaluated)
    best = max(learner["time_at_goal"] for learner in summary["learners"].values())
    assert best > 3 * summary["untrained_time_at_goal"]
    return count_windows(run.run_dir, plan, run.rows("replay"))


def assert_counters_grow(rows: list[Row], *names: str) -> None:
    for name in names:
        values = [row[name] for row in rows]
        assert values == sorted(values), name


def count_windows(run_dir: Path, plan: Plan, replay: list[Row]) -> Account:
    stream = open_stream(run_dir / "stream")
    assert shard_folder(run_dir / "stream", 0).is_dir()
    ints = ((number, columns.ints) for number, columns in stream.shard(0))
    last = replay[-1]["incarnation"]
    counted = {}
    for incarnation in {row["incarnation"] for row in replay}:
        # A dead server may have counted windows that it never confirmed, so its last row is left out.
        rows = [row for row in replay if row["incarnation"] == incarnation][: None if incarnation == last else -1]
        for row in rows[-1:]:
            inserted = (row[f"{name}/inserted"] - row["already_inserted"] for name in ("active", "deep"))
            counted[incarnation] = sum(inserted)
    result = account([ints], plan.environments, 2, plan.chunks_per_window, read_audit(run_dir / "audit"), counted)
    assert replay[-1]["active/inserted"] == replay[-1]["deep/inserted"] == result.windows
    return result


@pytest.mark.chaos
@pytest.mark.timeout(3600)
def test_runs_survive_every_fault_and_lose_no_window(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    rng = random.Random(SEED)
    faults = make_faults(rng, FAULTS)
    seconds: dict[str, list[float]] = defaultdict(list)
    lost = twice = windows = runs = 0
    failed: list[Fault] = []
    remaining = list(faults)
    began = time.monotonic()
    while remaining:
        run = Run(tmp_path / f"run-{runs}", seed=runs)
        runs += 1
        run.wait_until_training()
        while remaining and run.updates() < 0.8 * run.plan.updates:
            time.sleep(rng.uniform(0, 3))
            fault = remaining.pop()
            took = inject(run, fault)
            if took is None:
                if run.process.poll() != 0:
                    failed.append(fault)
                break
            seconds[fault.target.role].append(took)
            report(
                capfd,
                f"{fault.signal.name} {fault.target.process.removeprefix('ray::')} ({fault.target.role}): {took:.1f} s",
            )
        result = check_completed(run)
        lost, twice, windows = lost + result.lost, twice + result.twice, windows + result.windows
    survived = len(faults) - len(failed)
    report(capfd, f"\n{windows} windows, {runs} runs, {time.monotonic() - began:.0f} s")
    report(capfd, f"faults: {len(faults)}, survived: {survived}, lost: {lost}, twice: {twice}\n")
    report(capfd, f"{'role':<16} {'faults':>6} {'median s':>9} {'max s':>7}")
    for role, taken in sorted(seconds.items()):
        report(capfd, f"{role:<16} {len(taken):>6} {statistics.median(taken):>9.1f} {max(taken):>7.1f}")
    assert (survived, lost, twice) == (len(faults), 0, 0)


def report(capfd: pytest.CaptureFixture[str], line: str) -> None:
    with capfd.disabled():
        print(line, flush=True)
