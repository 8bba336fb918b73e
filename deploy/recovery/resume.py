"""Resuming a run that ended before its budget: from which snapshot, with which changes, and what is undone."""

import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from deploy.layout import STATE, STREAM
from deploy.mode import Mode
from deploy.recovery import snapshots
from deploy.recovery.snapshots import Snapshot
from shared.config import Experiment, LearnerConfig
from shared.config_file import load_experiment
from shared.errors import ConfigError
from shared.metrics import rewind
from shared.roles import EVALUATOR, REPLAY, Kind, learner_role, source_roles
from shared.stream.format import shard_folder

HARMLESS = ("supervision", "placement", "wandb", "snapshots", "replay.port", "replay.timeout_seconds", "replay.audit")
"""Keys, with all below them, that change no result; so do resources wherever they stand."""
RESOURCES = {"resources", "learner_resources", "collector_resources"}
_LONGEST_LINE = 10**6  # characters, so that YAML breaks none


class Change(NamedTuple):
    """A key whose value differs between two experiments; an absent key has the value None."""

    key: str
    before: Any
    now: Any

    @property
    def harmless(self) -> bool:
        """True if the key changes no result. The stream of a folder that was moved is the same stream."""
        if self.key == "stream" and self.before and self.now:
            return Path(self.before).parts[-2:] == Path(self.now).parts[-2:]
        parts = self.key.split(".")
        parts = parts[2:] if parts[0] == "learners" else parts  # a learner may be called `resources`
        below = any(self.key == key or self.key.startswith(key + ".") for key in HARMLESS)
        return below or not RESOURCES.isdisjoint(parts)

    def __str__(self) -> str:
        is_learner = self.key.startswith("learners.") and self.key.count(".") == 1
        before, now = (_text(value, is_learner) for value in (self.before, self.now))
        return f"{self.key} was {before} and is {now} now"


def changes(before: Experiment, now: Experiment) -> list[Change]:
    """Returns every key whose value differs. A learner that only one of the experiments has is one key."""
    return list(_changes(before.model_dump(mode="json"), now.model_dump(mode="json")))


def changed_results(before: Experiment, now: Experiment) -> list[Change]:
    """Returns the changes that change results. Two experiments without any have the same run."""
    return [change for change in changes(before, now) if not change.harmless]


def _changes(before: Mapping[str, Any], now: Mapping[str, Any], prefix: str = "") -> Iterator[Change]:
    for key in [*before, *(key for key in now if key not in before)]:
        one, other = before.get(key), now.get(key)
        if isinstance(one, dict) and isinstance(other, dict):
            yield from _changes(one, other, f"{prefix}{key}.")
        elif one != other:
            yield Change(prefix + key, one, other)


def _text(value: Any, is_learner: bool) -> str:
    """Returns a value in a few words: a dict as a line of YAML, a learner without its defaults."""
    if value is None:
        return "absent"
    if not isinstance(value, dict):
        return repr(value)
    brief = value
    if is_learner:
        learner = LearnerConfig.model_validate(value)
        brief = {"depth": learner.depth, **learner.model_dump(mode="json", exclude_defaults=True)}
    return yaml.safe_dump(brief, default_flow_style=True, sort_keys=False, width=_LONGEST_LINE).strip()


def find(run_dir: Path, mode: Mode, say: Callable[[str], None]) -> Snapshot | None:
    """Returns the snapshot from which the run in `run_dir` resumes; None if it has to begin again.

    Raises:
        ConfigError: the run was started in another mode, every snapshot is damaged, or the run is trained.
    """
    snapshot = snapshots.newest_good(run_dir, say)
    if snapshot is None:
        learners = load_experiment(run_dir / "config.yaml").all_learners
        if all((run_dir / "checkpoints" / name).is_dir() for name in learners):  # without snapshots: all is trained
            raise ConfigError(
                f"--resume: the run in {run_dir} trained to its end, but wrote no summary.json; it is kept with its "
                "checkpoints; name another --run-dir, or replace it with --overwrite"
            )
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
    for change in changes(held, asked):
        if change.harmless and anyway:
            continue
        remedy = "or add --resume-anyway: it changes no result" if change.harmless else "or name another --run-dir"
        lines.append(f"--resume: {change}; set it back, {remedy}")
    if lines:
        raise ConfigError("\n".join(lines))


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
