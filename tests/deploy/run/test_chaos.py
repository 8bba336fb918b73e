"""Faults in real runs: every role is killed and stopped repeatedly, and no window is lost or held twice.

    FAULTS=50 make test-chaos

Ray's memory monitor ends processes, too. SIGHUP, as of a closed terminal, ends a run, and the test resumes the run. The
runs are those of a matrix, of which a report is made. The test prints `faults: N, survived: N, lost: N, twice: N`, and
the seconds that each role took to recover.
"""

import json
import math
import os
import random
import signal
import statistics
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from itertools import cycle
from pathlib import Path
from typing import NamedTuple

import psutil
import pytest
import yaml

from deploy.cli.main import run_command
from deploy.matrix.expand import MatrixConfig, expand, write_matrix
from shared.config_file import load_experiment
from shared.envs.registry import make_env
from shared.metrics import Row, read_metrics
from shared.plan import Plan, make_plan
from shared.replay.audit import Account, account, read_audit
from shared.stream.read import open_stream

FAULTS = int(os.environ.get("FAULTS", "26"))
SEED = int(os.environ.get("CHAOS_SEED", "0"))
START_S = 120.0
RECOVERY_S = 120.0
RUN_S = 900.0
SPARE_GB = 5.0  # memory beyond what is in use at the start, from which on Ray's monitor ends processes
MATRIX = MatrixConfig.model_validate(
    {
        "envs": ["point_u_maze"],
        "collector_depths": [4],
        "learner_depths": [8],
        "seeds": list(range(20)),
        "experiment": {
            "collector": {"width": 64, "actors": 2, "environments": 32, "unroll_length": 50},
            "algorithm": {"batch_size": 256, "windows_per_update": 64, "minibatches_per_update": 40},
            "replay": {"steps_per_environment": 2500, "prefill_steps": 250, "audit": True},
            "evaluation": {"episodes": 64, "count": 6},
            "supervision": {"heartbeat_seconds": 6, "restarts_per_hour": 100},
            "budget": {"env_steps": 240_000},
            "record": True,
        },
    }
)
RUNS = expand(MATRIX)
LEARNERS = ("active", "d8")
COLLECTORS = ("collector-0", "collector-1")


class Target(NamedTuple):
    """A role, and the text by which the command line of its process is found."""

    role: str
    process: str


COLLECTOR_0, COLLECTOR_1 = (Target(role, "ray::CollectorActor") for role in COLLECTORS)
EVALUATOR = Target("evaluator", "ray::EvaluatorActor")
ACTIVE_LEARNER, PASSIVE_LEARNER = (Target(f"learner-{name}", "ray::LearnerActor") for name in LEARNERS)
SERVER, SERVER_ACTOR = Target("replay server", "serve.py"), Target("replay server", "ray::ReplayServerActor")
STORE = Target("parameter store", "ray::ParamStoreActor")
DRIVER = Target("driver", "")
MEMORY = Target("out of memory", "")


class Fault(NamedTuple):
    """`signal` is sent to the target's process; none: Ray's memory monitor ends a process of its choice."""

    target: Target
    signal: signal.Signals | None


ROUNDS = (
    (COLLECTOR_0, COLLECTOR_1, ACTIVE_LEARNER, PASSIVE_LEARNER, EVALUATOR, SERVER, STORE),
    (COLLECTOR_0, COLLECTOR_1, ACTIVE_LEARNER, PASSIVE_LEARNER, EVALUATOR, SERVER_ACTOR, STORE),
)
"""Targets of one round, each role once. Rounds alternate between the replay server's process and its actor."""
SPECIAL = (Fault(MEMORY, None), Fault(DRIVER, signal.SIGHUP))


def make_faults(rng: random.Random, count: int) -> list[Fault]:
    """Returns `count` faults in random order, made in rounds: one of kills, one of stops, two of special faults."""
    faults: list[Fault] = []
    for number, targets in zip(range(count), cycle(ROUNDS), strict=False):
        how = (signal.SIGKILL, signal.SIGSTOP)[number // 2 % 2 ^ number % 2]
        faults += [*(Fault(target, how) for target in targets), *SPECIAL]
    faults = faults[:count]
    rng.shuffle(faults)
    return faults


class Run:
    """`fathom run` in a process of its own."""

    def __init__(self, out: Path, seed: int) -> None:
        self.run_dir = out / RUNS[seed].name
        self.log = out / f"{RUNS[seed].name}.log"
        self._experiment = out / f"{RUNS[seed].name}.yaml"
        self._experiment.write_text(yaml.safe_dump(RUNS[seed].experiment.model_dump(mode="json")))
        self.started: set[psutil.Process] = set()
        self.drivers: list[float] = []
        """Start of every driver, in seconds since 1970; the first one began the run, the others have resumed it."""
        self.start()

    def start(self) -> None:
        """Begins or resumes the run. The audit of each driver has a folder of its own: servers are numbered anew."""
        if self.drivers:
            (self.run_dir / "audit").rename(self.run_dir / f"audit-{len(self.drivers) - 1}")
        self.drivers.append(time.time())
        memory = psutil.virtual_memory()
        threshold = (memory.total - memory.available + SPARE_GB * 1e9) / memory.total
        with open(self.log, "a") as log:
            self.process = subprocess.Popen(
                [
                    sys.executable,
                    "-m",
                    "deploy.cli",
                    "run",
                    str(self._experiment),
                    "--run-dir",
                    str(self.run_dir),
                    "--resume",
                ],
                stdout=log,
                stderr=log,
                start_new_session=True,
                env=os.environ
                | {"RAY_memory_usage_threshold": f"{threshold:.3f}", "RAY_memory_monitor_refresh_ms": "250"},
            )

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

    def recoveries(self, target: Target) -> int:
        """Returns how often the target has recovered, or any role from the memory monitor."""
        if target == MEMORY:
            return sum("out of memory" in row["cause"] for row in self.rows("recovery"))
        return sum(row["role"] == target.role for row in self.rows("recovery"))

    def updates(self) -> int:
        """Returns the updates of the slowest learner."""
        return min((rows[-1]["updates"] if rows else 0) for rows in (self.rows(f"learner-{name}") for name in LEARNERS))

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
    """Causes the fault and waits for the recovery; returns the seconds in between.

    Returns None if the role did not recover. The run has survived the fault only if it has ended without the role.
    """
    if fault.target == DRIVER:
        return hang_up(run)
    before = run.recoveries(fault.target)
    began = time.monotonic()
    with memory_pressure() if fault.target == MEMORY else nullcontext():
        if fault.signal is not None:
            # The memory monitor may end several processes; the fault before counts as survived with the first recovery.
            assert run.wait(lambda: run.find(fault.target) is not None, RECOVERY_S), run.log.read_text()
            process = run.find(fault.target)
            assert process is not None, fault
            process.send_signal(fault.signal)
        else:
            assert run.wait(lambda: "out of memory" in run.log.read_text(), RECOVERY_S), run.log.read_text()
    recovered = run.wait(lambda: run.recoveries(fault.target) > before, RECOVERY_S)
    return time.monotonic() - began if recovered else None


@contextmanager
def memory_pressure() -> Iterator[None]:
    """Takes as much memory as brings Ray's monitor to end a process."""
    program = f"import time; taken = b'1' * int({SPARE_GB + 1} * 1e9); time.sleep({RECOVERY_S})"
    greedy = subprocess.Popen([sys.executable, "-c", program])
    try:
        yield
    finally:
        greedy.kill()
        greedy.wait()


def hang_up(run: Run) -> float | None:
    """Sends the signal of a closed terminal; returns the seconds until the run has resumed and trains."""
    began = time.monotonic()
    run.process.send_signal(signal.SIGHUP)
    status = run.process.wait(RECOVERY_S)
    if status == 0:  # it was about to end
        return None
    assert status == 128 + signal.SIGHUP, run.log.read_text()
    state = json.loads((run.run_dir / "status.json").read_text())
    assert (state["state"], state["reason"]) == ("interrupted", "stopped by SIGHUP")
    run.start()
    before = run.updates()
    resumed = run.wait(lambda: run.updates() > before, START_S)
    return time.monotonic() - began if resumed else None


def check_completed(run: Run) -> Account:
    """Asserts that the run has completed its plan, and returns the account of its windows."""
    assert run.process.wait(RUN_S) == 0, run.log.read_text()
    _, alive = psutil.wait_procs(run.started, timeout=20)
    assert alive == []
    plan = run.plan
    summary = json.loads((run.run_dir / "summary.json").read_text())
    for name in LEARNERS:
        rows = run.rows(f"learner-{name}")
        assert rows[-1]["updates"] == plan.updates
        assert_counters_grow(rows, "updates", "gradient_steps")
        counted, wanted = run.rows("replay")[-1][f"{name}/sampled"], plan.updates * plan.windows_per_update
        assert counted <= wanted + 2 * plan.windows_per_update
        assert counted >= wanted or "the last counts of replay are missing" in run.log.read_text()
    for role in COLLECTORS:
        assert_counters_grow(run.rows(role), "index", "unrolls", "env_steps", "windows")
    evaluated = [(row["learner"], row["updates"]) for row in run.rows("evaluator")]
    assert len(evaluated) == len(set(evaluated))
    assert {(name, plan.updates) for name in LEARNERS} <= set(evaluated)
    best = max(learner["last_time_at_goal"] for learner in summary["learners"].values())
    assert best > 3 * summary["untrained_time_at_goal"]
    return count_windows(run)


def assert_counters_grow(rows: list[Row], *names: str) -> None:
    for name in names:
        values = [row[name] for row in rows]
        assert values == sorted(values), name


def count_windows(run: Run) -> Account:
    """Compares the windows of the stream with the items of all servers of all drivers."""
    stream, plan, replay = open_stream(run.run_dir / "stream"), run.plan, run.rows("replay")
    shards = [((number, columns.ints) for number, columns in stream.shard(index)) for index in range(len(COLLECTORS))]
    folders = [run.run_dir / f"audit-{number}" for number in range(len(run.drivers) - 1)] + [run.run_dir / "audit"]
    confirmed: dict[int, set[int]] = {}
    counted: dict[int, int] = {}
    for driver, folder in enumerate(folders):
        start, end = (*run.drivers, math.inf)[driver : driver + 2]
        rows = [row for row in replay if start <= row["time"] < end]
        for incarnation, keys in read_audit(folder).items():
            server = 1000 * driver + incarnation
            confirmed[server] = keys
            # A dead server may have counted windows that it never confirmed, so its last row is left out.
            own = [row for row in rows if row["incarnation"] == incarnation]
            for row in own[-1:] if own and own[-1] is replay[-1] else own[-2:-1]:
                counted[server] = sum(row[f"{name}/inserted"] - row["already_inserted"] for name in LEARNERS)
    environments = plan.environments // len(COLLECTORS)
    result = account(shards, environments, len(LEARNERS), plan.chunks_per_window, confirmed, counted)
    assert {replay[-1][f"{name}/inserted"] for name in LEARNERS} == {result.windows}
    return result


@pytest.mark.chaos
@pytest.mark.timeout(3600)
def test_runs_survive_every_fault_and_lose_no_window(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    rng = random.Random(SEED)
    faults = make_faults(rng, FAULTS)
    seconds: dict[str, list[float]] = defaultdict(list)
    lost = twice = windows = runs = 0
    failed: list[Fault] = []
    remaining, out = list(faults), tmp_path / "matrix"
    out.mkdir()
    write_matrix(MATRIX, out / "matrix.yaml")
    began = time.monotonic()
    while remaining:
        run = Run(out, seed=runs)
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
            how = fault.signal.name if fault.signal else "memory monitor"
            report(capfd, f"{how} {fault.target.process.removeprefix('ray::')} ({fault.target.role}): {took:.1f} s")
        result = check_completed(run)
        lost, twice, windows = lost + result.lost, twice + result.twice, windows + result.windows
    survived = len(faults) - len(failed)
    report(capfd, f"\n{windows} windows, {runs} runs, {time.monotonic() - began:.0f} s")
    report(capfd, f"faults: {len(faults)}, survived: {survived}, lost: {lost}, twice: {twice}\n")
    report(capfd, f"{'role':<16} {'faults':>6} {'median s':>9} {'max s':>7}")
    for role, taken in sorted(seconds.items()):
        report(capfd, f"{role:<16} {len(taken):>6} {statistics.median(taken):>9.1f} {max(taken):>7.1f}")
    assert (survived, lost, twice) == (len(faults), 0, 0)
    assert run_command(["report", str(out)]) == 0
    page = (out / "report.html").read_text()
    report(capfd, f"report of {runs} runs and {len(RUNS) - runs} that were never started: {len(page):,} characters")
    assert f"{runs} of {len(RUNS)} runs done" in page


def report(capfd: pytest.CaptureFixture[str], line: str) -> None:
    with capfd.disabled():
        print(line, flush=True)
