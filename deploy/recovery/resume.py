"""Resuming a run that ended before its budget: from which snapshot, with which changes, and what is undone."""

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from deploy.layout import STATE, STREAM
from deploy.mode import Mode
from deploy.recovery import snapshots
from deploy.recovery.snapshots import Snapshot
from shared.config import Experiment
from shared.errors import ConfigError
from shared.metrics import rewind
from shared.roles import EVALUATOR, REPLAY, Kind, learner_role, source_roles
from shared.stream.format import shard_folder

HARMLESS = ("supervision", "placement", "wandb", "snapshots", "replay.port", "replay.timeout_seconds", "replay.audit")
"""Keys, with all below them, that change no result; so do resources wherever they stand."""
RESOURCES = {"resources", "learner_resources", "collector_resources"}


def find(run_dir: Path, mode: Mode, say: Callable[[str], None]) -> Snapshot | None:
    """Returns the snapshot from which the run in `run_dir` resumes; None if it has to begin again.

    Raises:
        ConfigError: the run was started in another mode, or every snapshot is damaged.
    """
    snapshot = snapshots.newest_good(run_dir, say)
    if snapshot is None:
        say(f"{run_dir}: ended before its first snapshot and begins again")
        return None
    if (began := snapshot.info.mode) is not mode:
        raise ConfigError(f"--resume: the run in {run_dir} was started with {began.options}; resume it so")
    return snapshot


def check_same(held: Experiment, asked: Experiment, anyway: bool) -> None:
    """Compares a run's configuration with the one asked for; `anyway` allows changes that change no result.

    Raises:
        ConfigError: a line for each key that may not change.
    """
    lines = []
    for key, (before, now) in changes(held.model_dump(mode="json"), asked.model_dump(mode="json")).items():
        harmless = _is_harmless(key)
        if harmless and anyway:
            continue
        remedy = "or add --resume-anyway: it changes no result" if harmless else "or name another --run-dir"
        lines.append(f"--resume: {key} was {before!r} and is {now!r} now; set it back, {remedy}")
    if lines:
        raise ConfigError("\n".join(lines))


def changes(before: Mapping[str, Any], now: Mapping[str, Any], prefix: str = "") -> dict[str, tuple[Any, Any]]:
    """Returns the dotted keys whose values differ, with both values."""
    found: dict[str, tuple[Any, Any]] = {}
    for key in [*before, *(key for key in now if key not in before)]:
        one, other = before.get(key), now.get(key)
        if isinstance(one, dict) and isinstance(other, dict):
            found |= changes(one, other, f"{prefix}{key}.")
        elif one != other:
            found[prefix + key] = (one, other)
    return found


def _is_harmless(key: str) -> bool:
    parts = key.split(".")
    below = any(key == harmless or key.startswith(harmless + ".") for harmless in HARMLESS)
    return below or not RESOURCES.isdisjoint(parts)


def restore(run_dir: Path, experiment: Experiment, snapshot: Snapshot) -> None:
    """Restores `run_dir` to what it was at `snapshot`; may be repeated after an interruption.

    Metrics files are appended to: a line marks the rows after the snapshot as undone.

    Raises:
        ConfigError: a part of the stream is damaged.
        OSError: the disk is full.
    """
    info = snapshot.info
    snapshots.drop_later(run_dir, snapshot)
    states = run_dir / STATE
    shutil.rmtree(states, ignore_errors=True)
    for name, updates in info.updates.items():
        part = snapshot.folder / str(learner_role(name))
        shutil.copytree(part / snapshots.STATE, states / name / str(updates))
        rewind(run_dir, learner_role(name), updates)
        rewind(run_dir, EVALUATOR, updates, learner=name)
    for index, role in enumerate(source_roles(experiment)):
        if role.kind is Kind.COLLECTOR:
            snapshots.restore_stream(snapshot.folder / str(role), shard_folder(run_dir / STREAM, index))
        rewind(run_dir, role, info.numbers[str(role)])
    rewind(run_dir, REPLAY, info.env_steps)
