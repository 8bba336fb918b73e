"""What the driver writes about a run: configuration, status, metrics, summary."""

import importlib.metadata
import json
import os
import platform
import shutil
import subprocess
import sys
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import filelock
import yaml

from deploy.access import OWNER_ONLY, make_folder
from deploy.snapshots import SNAPSHOTS, Snapshot
from deploy.states import KEPT
from deploy.wandb_log import Mirror
from shared.config import ConfigError, Experiment
from shared.disk import GB
from shared.envs.base import EnvSpec
from shared.metrics import MetricsWriter, Row, curves, read_metrics
from shared.networks import make_networks, network_size
from shared.plan import Plan
from shared.stream.format import bytes_of_stream
from shared.stream.write import PARTS_OF_A_TAIL

_LIBRARIES = ("jax", "jaxlib", "flax", "optax", "numpy", "brax", "mujoco", "ray", "grpcio", "orbax-checkpoint")
_VERSIONED = ("fathom-rl", *_LIBRARIES)
EVALUATOR, REPLAY, RECOVERY = "evaluator", "replay", "recovery"
STREAM, STATE = "stream", "state"  # of the collectors, of the learners; folders of a run directory
COUNTERS = {"learner": "updates", "collector": "number", "stream": "number"}
"""What counts up in a role's rows, by the first word of its name."""
COPIES_IN_CHECKPOINT = 3  # parameters and Adam's two moments
ROWS_KEPT = 8  # of each role in memory: what rates are taken over
METRICS_BYTES = 64 * 2**20


class RunFailed(RuntimeError):
    """A run that ended before its budget; one line that names the role and the cause."""


def learner_role(name: str) -> str:
    return f"learner-{name}"


def source_roles(experiment: Experiment) -> list[str]:
    """Where the data come from: one role for each collector, or for each shard of a stream."""
    source = "stream" if experiment.stream else "collector"
    return [f"{source}-{index}" for index in range(experiment.collector.actors)]


def prepare_run_dir(run_dir: Path, overwrite: bool, mode: int = OWNER_ONLY) -> Path:
    """An empty run directory; a new one has `mode`. Raises ConfigError where it holds what may not be replaced."""
    run_dir = Path(run_dir).absolute()
    if run_dir.exists() and any(run_dir.iterdir() if run_dir.is_dir() else [run_dir]):
        if not overwrite:
            raise ConfigError(f"--run-dir: {run_dir} is not empty; name another folder, or add --overwrite")
        if not (run_dir / "config.yaml").exists():
            raise ConfigError(f"--run-dir: {run_dir} holds no run, so --overwrite will not remove it; name another")
        shutil.rmtree(run_dir)
    try:
        make_folder(run_dir, mode)
    except OSError as error:
        raise ConfigError(f"--run-dir: {run_dir} cannot be made ({error.strerror}); name another folder") from error
    return run_dir


@contextmanager
def run_lock(run_dir: Path) -> Iterator[None]:
    """One process at a time runs in `run_dir`. Raises ConfigError where another one does."""
    run_dir.parent.mkdir(parents=True, exist_ok=True)
    lock = filelock.FileLock(run_dir.with_name(f".{run_dir.name}.lock"))
    try:
        lock.acquire(timeout=0)
    except filelock.Timeout as error:
        raise ConfigError(
            f"--run-dir: {run_dir} belongs to a run that goes on; wait for it, or name another"
        ) from error
    except OSError as error:
        raise ConfigError(f"--run-dir: {run_dir} cannot be made ({error.strerror}); name another folder") from error
    try:
        yield
    finally:
        lock.release()
        Path(lock.lock_file).unlink(missing_ok=True)


def check_space(run_dir: Path, experiment: Experiment, plan: Plan, spec: EnvSpec) -> None:
    """Raises ConfigError when what a run holds at once will not fit where `run_dir` lies, with the reserve left free.

    What an earlier life of the run has left there is part of it.
    """
    reserve = experiment.supervision.disk_reserve_gb * GB
    needed = _state_bytes(experiment, spec) + _stream_bytes(experiment, plan, spec) + METRICS_BYTES
    free, held = shutil.disk_usage(run_dir).free, _held_bytes(run_dir)
    if free + held < needed + reserve:
        raise ConfigError(
            f"--run-dir: {run_dir} has {free / 2**20:,.0f} MB free, this run writes about "
            f"{max(needed - held, 0) / 2**20:,.0f} MB and leaves {reserve / 2**20:,.0f} MB free "
            "(supervision.disk_reserve_gb); make room or name another folder"
        )


def _state_bytes(experiment: Experiment, spec: EnvSpec) -> float:
    """Of all learners: their checkpoints, their own states, and those in snapshots, one of which is being written."""
    networks = (make_networks(config, spec) for config in experiment.all_learners.values())
    parameters = sum(network_size(each, spec) for each in networks)
    snapshots = experiment.snapshots.keep + 1 if experiment.snapshots.count else 0
    return 4 * COPIES_IN_CHECKPOINT * parameters * (1 + KEPT + snapshots)


def _stream_bytes(experiment: Experiment, plan: Plan, spec: EnvSpec) -> float:
    """Uncompressed: a recording, to which snapshots add nothing, or its newest part, of which each has its own."""
    if experiment.stream:
        return 0
    whole = bytes_of_stream(plan.env_steps, spec.state_size, spec.action_size)
    if experiment.record:
        return whole
    unrolls = plan.stored_unrolls * (1 + 2 / PARTS_OF_A_TAIL)
    tails = experiment.snapshots.keep + 2 if experiment.snapshots.count else 1
    return min(whole, tails * whole * unrolls / plan.unrolls)


def _held_bytes(run_dir: Path) -> int:
    """Of all files below `run_dir`, those with several names counted once."""
    found = (path.stat() for path in run_dir.rglob("*") if path.is_file() and not path.is_symlink())
    return sum({status.st_ino: status.st_size for status in found}.values())


class RunRecord:
    """One run's directory while the run goes on, and the newest of everything for the console and the summary."""

    def __init__(self, run_dir: Path, experiment: Experiment, plan: Plan, snapshot: Snapshot | None = None) -> None:
        """`snapshot`: what the run goes on from, to which its directory was restored; none: it begins."""
        self.run_dir = Path(run_dir)
        self.experiment = experiment
        self.plan = plan
        self.snapshot = snapshot
        self.started = self._begun = time.time()
        self._rows: dict[str, deque[Row]] = {}
        self._evaluations: dict[str, list[Row]] = {name: [] for name in experiment.all_learners}
        self._before: dict[str, Any] = {"seconds": 0.0, "resumed": []}
        newest = self._go_on(snapshot) if snapshot else {}
        self._writer = MetricsWriter(self.run_dir, newest)
        write_config(self.run_dir, experiment)
        self._mirror = Mirror(self.run_dir) if experiment.wandb.project else None
        self.watchers: list[Callable[[str, Row], None]] = []
        """Each gets every role's rows as they are written."""

    def _go_on(self, snapshot: Snapshot) -> dict[str, int]:
        """Takes up what the run's earlier lives have told; the newest environment steps of every curve."""
        status = read_status(self.run_dir)
        seconds = status.get("seconds", 0.0)
        resumed = {"time": time.time(), "seconds": seconds, "updates": int(snapshot.folder.name)}
        self._before = {"seconds": seconds, "resumed": [*status.get("resumed", []), resumed]}
        self.started = status.get("started", self.started)
        newest: dict[str, int] = {}
        for path in (self.run_dir / "metrics").glob("*.jsonl"):
            role, rows = path.stem, read_metrics(self.run_dir, path.stem)
            self._rows[role] = deque(rows, maxlen=ROWS_KEPT)
            for row in rows:
                newest[curves(role, row)] = row.get("env_steps", 0)
                if role == EVALUATOR:
                    self._evaluations[row["learner"]].append(row)
        return newest

    def add(self, role: str, row: Row) -> None:
        """Writes one row of `role`, unless an earlier life of it has told the same. Raises OSError on a full disk."""
        if self._is_told(role, row):
            return
        self._rows.setdefault(role, deque(maxlen=ROWS_KEPT)).append(row)
        if role == EVALUATOR:
            self._evaluations[row["learner"]].append(row)
        self._writer.write(role, row)
        for watch in self.watchers:
            watch(role, row)

    def recovery(self, role: str, cause: str, seconds: float) -> None:
        """Notes that `role` works again, `seconds` after it was found that it did not."""
        self.note(RECOVERY, {"env_steps": self.env_steps, "role": role, "cause": cause, "seconds": seconds})

    def note(self, what: str, row: Row) -> None:
        """A row of something that happened to the run, now."""
        self.add(what, {"time": time.time(), **row})

    def _is_told(self, role: str, row: Row) -> bool:
        if role == EVALUATOR:
            told = self._evaluations[row["learner"]]
            return bool(told) and row["updates"] <= told[-1]["updates"]
        counter = COUNTERS.get(role.partition("-")[0])
        before = self.newest(role)
        return counter is not None and bool(before) and row[counter] <= before[counter]

    @property
    def stream_dir(self) -> Path:
        """Where this run's own stream is recorded."""
        return self.run_dir / STREAM

    def remove_backups(self) -> None:
        """What only a run that goes on needs: snapshots, learners' states, a stream that nobody asked for."""
        for folder in (STATE, SNAPSHOTS):
            shutil.rmtree(self.run_dir / folder, ignore_errors=True)
        if not self.experiment.record:
            shutil.rmtree(self.stream_dir, ignore_errors=True)

    def recent(self, role: str) -> list[Row]:
        """The newest few rows of `role`; all of them are in its file."""
        return list(self._rows.get(role, ()))

    def newest(self, role: str) -> Row:
        rows = self._rows.get(role)
        return rows[-1] if rows else {}

    def evaluations(self, learner: str) -> list[Row]:
        return self._evaluations[learner]

    @property
    def env_steps(self) -> int:
        """Environment steps of all collectors, or shards of a stream, so far."""
        return sum(self.newest(role).get("env_steps", 0) for role in source_roles(self.experiment))

    @property
    def windows(self) -> int:
        """Windows made of them so far, each of which every learner's table gets."""
        return sum(self.newest(role).get("windows", 0) for role in source_roles(self.experiment))

    def status(self, state: str, reason: str = "") -> None:
        """Writes status.json; `state` is one of running, done, failed, interrupted.

        `started`: the first of the run's lives; `seconds`: of all of them together. `resumed`: when each other one
        began, how many seconds lay behind then, and the update that it went on from.
        """
        learners = {name: self.newest(learner_role(name)).get("updates", 0) for name in self.experiment.all_learners}
        write_json(
            self.run_dir / "status.json",
            {
                "state": state,
                "reason": reason,
                "env_steps": self.env_steps,
                "budget": self.plan.env_steps,
                "updates": learners,
                "updates_planned": self.plan.updates,
                "started": self.started,
                "seconds": self._before["seconds"] + time.time() - self._begun,
                "resumed": self._before["resumed"],
            },
        )

    def close(self) -> None:
        """After the last status: how the run ended is mirrored, too."""
        self._writer.close()
        if self._mirror:
            self._mirror.close()


def read_status(run_dir: Path) -> dict[str, Any]:
    """status.json; empty where it is missing or cut short."""
    try:
        return json.loads((run_dir / "status.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}


def write_json(path: Path, value: Any) -> None:
    """Replaces `path` in one step, so that a reader never sees half of it."""
    beside = path.with_name(path.name + ".part")
    beside.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
    beside.replace(path)


def write_config(run_dir: Path, experiment: Experiment) -> None:
    """config.yaml: the experiment with every default filled in, and where it came from. Can be run again."""
    resolved = {"provenance": _provenance(), **experiment.model_dump(mode="json")}
    (run_dir / "config.yaml").write_text(yaml.safe_dump(resolved, sort_keys=False), encoding="utf-8")


def _provenance() -> dict[str, Any]:
    versions: dict[str, str | None] = {}
    for package in _VERSIONED:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = None
    return {
        "command": ["fathom", *sys.argv[1:]],
        "machine": _machine(),
        "python": platform.python_version(),
        "versions": versions,
        "git_revision": git("rev-parse", "HEAD"),
        "git_dirty": bool(git("status", "--porcelain", "--untracked-files=no")),
    }


def _machine() -> str:
    """The driver's machine; other nodes of a cluster may differ."""
    gpus = _ask("nvidia-smi", "--query-gpu=name", "--format=csv,noheader") or ""
    counts = Counter(gpus.splitlines())
    return ", ".join(
        [f"{os.cpu_count()} cores {platform.machine()}", *(f"{count} {name}" for name, count in counts.items())]
    )


def git(*arguments: str) -> str | None:
    """What git says of the checkout this file is in; none outside one."""
    return _ask("git", "-C", str(Path(__file__).parent), *arguments)


def _ask(*command: str) -> str | None:
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return answer.stdout.strip() if answer.returncode == 0 else None
