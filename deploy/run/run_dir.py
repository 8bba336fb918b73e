"""The run directory before a run starts: its mode, the right to run in it, and the disk space that the run needs."""

import json
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import filelock

from deploy.recovery.restart_states import KEPT
from learner.objectives.registry import make_objectives
from shared.config import Experiment
from shared.disk import GB
from shared.envs.base import EnvSpec
from shared.errors import ConfigError
from shared.files import OWNER_ONLY, make_folder
from shared.plan import Plan
from shared.stream.format import bytes_of_stream
from shared.stream.write import PARTS_OF_A_TAIL

COPIES_IN_CHECKPOINT = 3  # parameters and Adam's two moments
METRICS_BYTES = 64 * 2**20
SILENT_S = 60.0  # a live run writes its status every few seconds


def prepare_run_dir(run_dir: Path, overwrite: bool, mode: int = OWNER_ONLY) -> Path:
    """Creates an empty run directory and returns its absolute path. `overwrite` removes the run that it holds.

    A folder that is a symbolic link or a mount point stays one. An emptied folder gets `mode`, too.

    Raises ConfigError if the folder holds something that may not be removed, or cannot be created.
    """
    run_dir = Path(run_dir).absolute()
    if run_dir.exists() and any(run_dir.iterdir() if run_dir.is_dir() else [run_dir]):
        if not (run_dir / "config.yaml").exists():
            raise ConfigError(f"--run-dir: {run_dir} holds no run, but other files; name another folder")
        if not overwrite:
            raise ConfigError(f"--run-dir: {run_dir} is not empty; name another folder, or add --overwrite")
    try:
        if run_dir.is_dir() and overwrite:
            _empty(run_dir, mode)
        make_folder(run_dir, mode)
    except OSError as error:
        raise ConfigError(f"--run-dir: {run_dir} cannot be created ({error.strerror}); name another folder") from error
    return run_dir


def _empty(run_dir: Path, mode: int) -> None:
    """Removes the run in a folder, config.yaml last: what an interruption leaves is still a run. Raises OSError."""
    for entry in sorted(run_dir.iterdir(), key=lambda entry: entry.name == "config.yaml"):
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        else:
            entry.unlink()
    with suppress(PermissionError):  # some file systems have no modes
        run_dir.chmod(mode)


@contextmanager
def lock_folder(folder: Path, option: str) -> Iterator[None]:
    """Holds the right to write to `folder`, the value of `option`. Raises ConfigError if another process holds it."""
    lock = filelock.FileLock(folder.with_name(f".{folder.name}.lock"))
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=0)
    except filelock.Timeout as error:
        raise ConfigError(
            f"{option}: another `fathom` that is still going writes to {folder}; wait for it, or name another folder"
        ) from error
    except OSError as error:
        raise ConfigError(f"{option}: {folder} cannot be created ({error.strerror}); name another folder") from error
    try:
        yield
    finally:
        lock.release()  # the file stays: another process may be opening it, and a new file would be another lock


def silent_seconds(run_dir: Path) -> float:
    """Returns the time since a run wrote its status. Raises OSError if it has none."""
    return time.time() - (run_dir / "status.json").stat().st_mtime


def read_status(run_dir: Path) -> dict[str, Any]:
    """Returns the content of status.json; empty if the file is missing or damaged.

    The state of a run with a summary.json is `done`, whatever status.json says. The summary comes last, and the process
    may have died before the status did.
    """
    try:
        status = json.loads((run_dir / "status.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        status = {}
    if not isinstance(status, dict):
        status = {}
    return {**status, "state": "done"} if (run_dir / "summary.json").exists() else status


def check_space(run_dir: Path, experiment: Experiment, plan: Plan, spec: EnvSpec) -> None:
    """Raises ConfigError unless the disk of `run_dir` can hold all that the run writes and keep its reserve free.

    Files that an earlier process of the run left there count as part of the run.
    """
    reserve = experiment.supervision.disk_reserve_gb * GB
    needed = _state_bytes(experiment, spec) + _stream_bytes(experiment, plan, spec) + METRICS_BYTES
    free, held = shutil.disk_usage(run_dir).free, held_bytes(run_dir)
    if free + held < needed + reserve:
        raise ConfigError(
            f"--run-dir: {run_dir} has {free / 2**20:,.0f} MB free, this run writes about "
            f"{max(needed - held, 0) / 2**20:,.0f} MB and leaves {reserve / 2**20:,.0f} MB free "
            "(supervision.disk_reserve_gb); make room or name another folder"
        )


def _state_bytes(experiment: Experiment, spec: EnvSpec) -> float:
    """Size of all learners' checkpoints, newest states and snapshots; one snapshot more than kept is being written."""
    objectives = make_objectives(experiment, spec).values()
    numbers = sum(COPIES_IN_CHECKPOINT * objective.size + objective.targets_size for objective in objectives)
    snapshots = experiment.snapshots.keep + 1 if experiment.snapshots.count else 0
    return 4 * numbers * (1 + KEPT + snapshots)


def _stream_bytes(experiment: Experiment, plan: Plan, spec: EnvSpec) -> float:
    """Uncompressed size of the stream: all of it when recorded, else its tail and a copy of the tail per snapshot."""
    if experiment.stream:
        return 0
    whole = bytes_of_stream(plan.env_steps, spec.row_floats)
    if experiment.record:
        return whole
    unrolls = plan.stored_unrolls * (1 + 2 / PARTS_OF_A_TAIL)
    tails = experiment.snapshots.keep + 2 if experiment.snapshots.count else 1
    return min(whole, tails * whole * unrolls / plan.unrolls)


def held_bytes(run_dir: Path) -> int:
    """Size of all files below `run_dir`; a file with several names (hard links) counts once."""
    found = (path.stat() for path in run_dir.rglob("*") if path.is_file() and not path.is_symlink())
    return sum({status.st_ino: status.st_size for status in found}.values())
