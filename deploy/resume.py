"""Going on with a run that ended before its budget: what may have changed, where it starts, what is undone."""

import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from deploy import snapshots
from deploy.mode import Mode
from deploy.record import EVALUATOR, REPLAY, STATE, STREAM, RunRecord, learner_role, source_roles
from deploy.snapshots import Manifest, Snapshot
from shared.config import ConfigError, Experiment
from shared.metrics import Row
from shared.stream.files import replace_file
from shared.stream.format import shard_folder

HARMLESS = ("supervision", "placement", "wandb", "snapshots", "replay.port", "replay.timeout_seconds", "replay.audit")
"""Keys, with all below them, that change no result; so do `resources` wherever they stand."""


def find(run_dir: Path, mode: Mode, say: Callable[[str], None]) -> Snapshot | None:
    """Where the run in `run_dir` goes on; none where it has to begin again, no snapshot having been finished.

    Raises ConfigError where it began in another mode, and where every snapshot is damaged.
    """
    snapshot = snapshots.newest_good(run_dir, say)
    if snapshot is None:
        say(f"{run_dir}: ended before its first snapshot; it begins again")
        return None
    if (began := snapshot.manifest.mode) is not mode:
        raise ConfigError(f"--resume: the run in {run_dir} was started with {began.options}; resume it so")
    return snapshot


def check_same(held: Experiment, asked: Experiment, anyway: bool) -> None:
    """Raises ConfigError, a line for each key that changed and must not. `anyway`: harmless changes will do."""
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
    """Dotted keys whose values differ, with both."""
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
    return below or "resources" in parts or "actor_resources" in parts


def restore(run_dir: Path, experiment: Experiment, snapshot: Snapshot) -> None:
    """Makes `run_dir` what it was at `snapshot`. When interrupted, do it again. Raises ConfigError, OSError."""
    manifest = snapshot.manifest
    snapshots.drop_later(run_dir, snapshot)
    states = run_dir / STATE
    shutil.rmtree(states, ignore_errors=True)
    for name, updates in manifest.updates.items():
        part = snapshot.folder / learner_role(name)
        shutil.copytree(part / snapshots.STATE, states / name / str(updates))
    for index, role in enumerate(source_roles(experiment)):
        if not experiment.stream:
            snapshots.restore_stream(snapshot.folder / role, shard_folder(run_dir / STREAM, index))
    for path in (run_dir / "metrics").glob("*.jsonl"):
        _cut(path, manifest)


def _cut(path: Path, manifest: Manifest) -> None:
    """Rows of what is undone leave the metrics: they will come again."""
    kept = "".join(line + "\n" for line, row in _lines(path) if _is_before(path.stem, row, manifest))
    replace_file(path, kept)


def _lines(path: Path) -> Iterator[tuple[str, Row]]:
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            yield line, json.loads(line)
        except json.JSONDecodeError:  # cut short by the end of the run
            return


def _is_before(role: str, row: Row, manifest: Manifest) -> bool:
    if role == EVALUATOR:
        return row["updates"] <= manifest.updates[row["learner"]]
    if role == REPLAY:
        return row["env_steps"] <= manifest.env_steps
    if role in manifest.numbers:
        return row["number"] <= manifest.numbers[role]
    for name, updates in manifest.updates.items():
        if role == learner_role(name):
            return row["updates"] <= updates
    return True  # what happened to the run, which did happen


class SnapshotTaker:
    """The driver's part: writes the manifest of every snapshot whose parts are there, and clears up after it."""

    def __init__(self, record: RunRecord, mode: Mode) -> None:
        self._record, self._mode = record, mode
        experiment = record.experiment
        self._learners = {name: learner_role(name) for name in experiment.all_learners}
        self._roles = [
            *self._learners.values(),
            *source_roles(experiment),
            *[snapshots.DRIVER] * (mode is not Mode.DISTRIBUTED),
        ]
        begun = int(record.snapshot.folder.name) if record.snapshot else 0
        self._to_come = [updates for updates in record.plan.snapshot_updates if updates > begun]

    def tick(self) -> None:
        """Looks whether a snapshot is whole by now: all parts are there, and all evaluations up to there."""
        run_dir = self._record.run_dir
        sealed = [updates for updates in self._to_come if snapshots.sealed(run_dir, updates, self._roles)]
        whole = [updates for updates in sealed if self._is_evaluated(updates)]
        if whole:
            self._to_come = [later for later in self._to_come if later > whole[-1]]
            self.finish(whole[-1])
            return
        # An evaluator that is far behind must not fill the disk: of those that wait for it, the first will be whole
        # soonest, the last is worth most.
        for updates in sealed[1:-1]:
            self._to_come.remove(updates)
            snapshots.drop(run_dir, updates)

    def due(self, updates: int) -> bool:
        """Whether one was planned that was not taken yet, in a run that has come to `updates`."""
        planned = [earlier for earlier in self._to_come if earlier <= updates]
        self._to_come = self._to_come[len(planned) :]
        return bool(planned) and updates < self._record.plan.updates

    def finish(self, updates: int) -> None:
        """All parts of the snapshot of `updates` are there. Raises OSError."""
        record, experiment = self._record, self._record.experiment
        steps = experiment.collector.environments * record.plan.unroll_length
        manifest, seals = snapshots.finish(
            record.run_dir,
            updates,
            self._roles,
            self._mode,
            dict.fromkeys(self._learners, updates),
            self._time_at_goal(updates),
            steps,
        )
        row = {
            "updates": updates,
            "bytes": sum(seal.bytes for seal in seals),
            "pause_seconds": max(seal.pause_seconds for seal in seals),
            "background_seconds": max(seal.seconds for seal in seals),
        }
        record.note("snapshots", {"env_steps": manifest.env_steps, **row})
        snapshots.prune(record.run_dir, experiment.snapshots.keep)

    def _is_evaluated(self, updates: int) -> bool:
        """As far as there: evaluations that come after the manifest would be cut off."""
        due = max(u for u in self._record.plan.evaluation_updates if u <= updates)
        evaluated = (self._record.evaluations(name)[-1:] for name in self._learners)
        return all(rows and rows[0]["updates"] >= due for rows in evaluated)

    def _time_at_goal(self, updates: int) -> float | None:
        newest = []
        for name in self._learners:
            rows = [row for row in self._record.evaluations(name) if row["updates"] <= updates]
            newest += [rows[-1]["time_at_goal"]] if rows else []
        return sum(newest) / len(newest) if newest else None
