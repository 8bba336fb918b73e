"""Faults in real runs: every role killed and stopped, again and again, and nothing is lost.

    FAULTS=50 make test-chaos

Prints what it did: `faults: N, survived: N, lost: N, twice: N`, and how long roles took to work again.
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


class Victim(NamedTuple):
    """A role, and what is in its process' name."""

    role: str
    process: str


COLLECTOR, EVALUATOR = Victim("collector-0", "ray::CollectorActor"), Victim("evaluator", "ray::EvaluatorActor")
ACTIVE, PASSIVE = Victim("learner-active", "ray::LearnerActor"), Victim("learner-deep", "ray::LearnerActor")
SERVER, KEEPER = Victim("replay server", "serve.py"), Victim("replay server", "ray::ReplayServerActor")
STORE = Victim("parameter store", "ray::ParamStoreActor")


class Fault(NamedTuple):
    victim: Victim
    signal: signal.Signals


ROUND = (COLLECTOR, ACTIVE, PASSIVE, EVALUATOR, SERVER, STORE), (COLLECTOR, ACTIVE, PASSIVE, EVALUATOR, KEEPER, STORE)
"""Each role once; two rounds of kills and two of stops make 24."""


def make_faults(rng: random.Random, count: int) -> list[Fault]:
    """Every role is killed and stopped equally often, in a random order."""
    faults: list[Fault] = []
    for number, victims in zip(range(count // 6 + 1), cycle(ROUND), strict=False):
        how = signal.SIGKILL if number // 2 % 2 == 0 else signal.SIGSTOP
        faults += [Fault(victim, how) for victim in victims]
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

    def find(self, victim: Victim) -> psutil.Process | None:
        """The victim's process; learners are told apart by the file that they keep open."""
        for process in self.descendants():
            try:
                if not any(victim.process in part for part in process.cmdline()):
                    continue
                if victim.process != "ray::LearnerActor" or any(
                    file.path.endswith(f"stacks-{victim.role}.log") for file in process.open_files()
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
        """Of the learner that is behind."""
        return min((rows[-1]["updates"] if rows else 0) for rows in map(self.rows, ("learner-active", "learner-deep")))

    def wait(self, what: Callable[[], bool], seconds: float) -> bool:
        """Whether `what` comes true while the run goes on."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline and self.process.poll() is None:
            if what():
                return True
            time.sleep(0.2)
        return False

    def wait_until_it_trains(self) -> None:
        assert self.wait(lambda: self.updates() > 0, START_S), self.log.read_text()

    @property
    def plan(self) -> Plan:
        experiment = load_experiment(self.run_dir / "config.yaml")
        return make_plan(experiment, make_env(experiment.env).spec)


def strike(run: Run, fault: Fault) -> float | None:
    """Does it, and waits until the role works again: the seconds that took, from the fault on.

    None if it never did: then the run must have come to its end without the role, or it has not survived.
    """
    process = run.find(fault.victim)
    assert process is not None, fault
    before = run.recoveries(fault.victim.role)
    struck = time.monotonic()
    process.send_signal(fault.signal)
    recovered = run.wait(lambda: run.recoveries(fault.victim.role) > before, RECOVERY_S)
    return time.monotonic() - struck if recovered else None


def settle(run: Run) -> Account:
    """That the run has ended well, and what became of its windows."""
    assert run.process.wait(RUN_S) == 0, run.log.read_text()
    _, alive = psutil.wait_procs(run.started, timeout=20)
    assert alive == []
    plan, names = run.plan, ("active", "deep")
    summary = json.loads((run.run_dir / "summary.json").read_text())
    for name in names:
        rows = run.rows(f"learner-{name}")
        assert rows[-1]["updates"] == plan.updates
        counters_only_grow(rows, "updates", "gradient_steps")
        counted, wanted = run.rows("replay")[-1][f"{name}/sampled"], plan.updates * plan.windows_per_update
        assert counted <= wanted + 2 * plan.windows_per_update
        assert counted >= wanted or "the last counts of replay are missing" in run.log.read_text()
    counters_only_grow(run.rows("collector-0"), "index", "unrolls", "env_steps", "windows")
    evaluated = [(row["learner"], row["updates"]) for row in run.rows("evaluator")]
    assert len(evaluated) == len(set(evaluated))
    assert {(name, plan.updates) for name in names} <= set(evaluated)
    best = max(learner["time_at_goal"] for learner in summary["learners"].values())
    assert best > 3 * summary["untrained_time_at_goal"]
    return count_windows(run.run_dir, plan, run.rows("replay"))


def counters_only_grow(rows: list[Row], *names: str) -> None:
    for name in names:
        values = [row[name] for row in rows]
        assert values == sorted(values), name


def count_windows(run_dir: Path, plan: Plan, replay: list[Row]) -> Account:
    stream = open_stream(run_dir / "stream")
    assert shard_folder(run_dir / "stream", 0).is_dir()
    ints = ((number, columns.ints) for number, columns in stream.shard(0))
    last = replay[-1]["incarnation"]
    counted = {}
    for life in {row["incarnation"] for row in replay}:
        # The newest count of a server that died may be ahead of the confirmations that it still sent.
        rows = [row for row in replay if row["incarnation"] == life][: None if life == last else -1]
        for row in rows[-1:]:
            counted[life] = sum(row[f"{name}/inserted"] - row["already_inserted"] for name in ("active", "deep"))
    result = account([ints], plan.environments, 2, plan.chunks_per_window, read_audit(run_dir / "audit"), counted)
    assert replay[-1]["active/inserted"] == replay[-1]["deep/inserted"] == result.windows
    return result


@pytest.mark.chaos
@pytest.mark.timeout(3600)
def test_every_role_may_die_and_nothing_is_lost(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    rng = random.Random(SEED)
    faults = make_faults(rng, FAULTS)
    seconds: dict[str, list[float]] = defaultdict(list)
    lost = twice = windows = runs = 0
    failed: list[Fault] = []
    waiting = list(faults)
    began = time.monotonic()
    while waiting:
        run = Run(tmp_path / f"run-{runs}", seed=runs)
        runs += 1
        run.wait_until_it_trains()
        while waiting and run.updates() < 0.8 * run.plan.updates:
            time.sleep(rng.uniform(0, 3))
            fault = waiting.pop()
            took = strike(run, fault)
            if took is None:
                if run.process.poll() != 0:
                    failed.append(fault)
                break
            seconds[fault.victim.role].append(took)
            told(
                capfd,
                f"{fault.signal.name} {fault.victim.process.removeprefix('ray::')} ({fault.victim.role}): {took:.1f} s",
            )
        result = settle(run)
        lost, twice, windows = lost + result.lost, twice + result.twice, windows + result.windows
    survived = len(faults) - len(failed)
    told(capfd, f"\n{windows} windows, {runs} runs, {time.monotonic() - began:.0f} s")
    told(capfd, f"faults: {len(faults)}, survived: {survived}, lost: {lost}, twice: {twice}\n")
    told(capfd, f"{'role':<16} {'faults':>6} {'median s':>9} {'max s':>7}")
    for role, taken in sorted(seconds.items()):
        told(capfd, f"{role:<16} {len(taken):>6} {statistics.median(taken):>9.1f} {max(taken):>7.1f}")
    assert (survived, lost, twice) == (len(faults), 0, 0)


def told(capfd: pytest.CaptureFixture[str], line: str) -> None:
    with capfd.disabled():
        print(line, flush=True)
