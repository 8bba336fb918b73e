"""Snapshots: points from which `--resume` resumes a run.

    RUN/snapshots/<updates>/<role>/       one role's part, and part.json with its checksums, written last
    RUN/snapshots/<updates>/snapshot.json checksums of all parts, written when the last part is complete

No role waits for another. The plan says at which counts each role writes its part: a learner after an update, a
collector once it has made every window that a learner can have trained on by then.
"""

import hashlib
import json
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from collector.collector import CollectorState
from deploy.mode import Mode
from shared import checkpoint
from shared.errors import ConfigError
from shared.files import replace_file, to_json
from shared.position import Position
from shared.roles import Role
from shared.stream.backup import link_shard, restore_shard
from shared.stream.format import ShardSummary
from shared.stream.index import read_index
from shared.stream.part import check_bytes
from shared.values import Frozen

SNAPSHOTS, INFO, SEAL = "snapshots", "snapshot.json", "part.json"
FORMAT_VERSION = 4
STATE, POSITION, SHARD, GENERATORS = "state", "position.json", "stream", "generators.json"  # in a part
DRIVER = "driver"
_REMEDY = "resume from another snapshot"


class Seal(Frozen):
    """The checksums (SHA-256) of a part's files by name, and the part's cost.

    `seconds` is the time that writing took, mostly in the background; the role stood still for `pause_seconds`.
    """

    files: dict[str, str]
    bytes: int
    seconds: float
    pause_seconds: float


class SnapshotInfo(Frozen):
    """The content of snapshot.json, which completes a snapshot.

    `updates` by learner; `numbers` of the newest unroll by source; `parts`: SHA-256 of each part's seal. `time_at_goal`
    is the mean over the learners' last evaluations, none before the first.
    """

    format_version: int
    mode: Mode
    updates: dict[str, int]
    numbers: dict[str, int]
    env_steps: int
    time_at_goal: float | None
    parts: dict[str, str]


class Snapshot(NamedTuple):
    folder: Path
    info: SnapshotInfo


class Part:
    """One role's part of one snapshot, while it is written."""

    def __init__(self, run_dir: Path, updates: int, role: Role | str) -> None:
        self.folder = run_dir / SNAPSHOTS / str(updates) / str(role)

    @property
    def sealed(self) -> bool:
        return (self.folder / SEAL).exists()

    def begin(self) -> None:
        """Creates an empty folder, without what a dead incarnation has left of the part."""
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir(parents=True)

    def seal(self, began: float, pause_s: float) -> None:
        """Completes the part. `began`: `time.monotonic()` when writing began. Raises OSError."""
        files = {name: _sha256(self.folder / name) for name in _files(self.folder)}
        size = sum(path.stat().st_size for path in self.folder.rglob("*") if path.is_file())
        seal = Seal(files=files, bytes=size, seconds=time.monotonic() - began, pause_seconds=pause_s)
        replace_file(self.folder / SEAL, seal.model_dump_json(indent=1))


def write_learner(part: Part, state: Any, pause_s: float) -> None:
    """Writes a learner's part; `state` is on the host. Raises OSError."""
    began = time.monotonic()
    part.begin()
    checkpoint.save(part.folder / STATE, state)
    part.seal(began, pause_s)


def write_source(part: Part, position: Position, state: CollectorState | None, pause_s: float) -> None:
    """Writes a collector's part, whose shard is linked already, or a feeder's, without a `state`. Raises OSError."""
    began = time.monotonic()
    replace_file(part.folder / POSITION, to_json(position.as_json()))
    if state is not None:
        checkpoint.save(part.folder / STATE, state)
    part.seal(began, pause_s)


def link_stream(part: Part, shard: ShardSummary, folder: Path) -> None:
    """Links the shard in `folder` into the part, as it is now. Only for the thread that writes it. Raises OSError."""
    link_shard(shard, folder, part.folder / SHARD)


def write_driver(part: Part, generators: Mapping[str, Any]) -> None:
    """Writes the states of the generators that sample in an in-process run, by learner. Raises OSError."""
    began = time.monotonic()
    part.begin()
    replace_file(part.folder / GENERATORS, to_json(generators))
    part.seal(began, 0.0)


def read_driver(folder: Path) -> dict[str, Any]:
    return json.loads((folder / GENERATORS).read_text(encoding="utf-8"))


def read_position(folder: Path) -> Position:
    return Position.from_json(json.loads((folder / POSITION).read_text(encoding="utf-8")))


def read_state(folder: Path, like: Any) -> Any:
    """Returns the state in a role's part, shaped like `like` (arrays or their shapes)."""
    return checkpoint.load(folder / STATE, like)


def restore_stream(folder: Path, target: Path) -> None:
    """Restores the shard `target` from the part in `folder`. Raises ConfigError, OSError."""
    restore_shard(folder / SHARD, target)


def finish(
    run_dir: Path,
    updates: int,
    roles: Sequence[Role | str],
    mode: Mode,
    learners: Mapping[str, int],
    time_at_goal: float | None,
    steps: int,
) -> tuple[SnapshotInfo, list[Seal]]:
    """Completes a snapshot whose parts are all sealed; an unroll has `steps` environment steps. Raises OSError."""
    folder = run_dir / SNAPSHOTS / str(updates)
    parts = [str(role) for role in roles]
    positions = {part: read_position(folder / part) for part in parts if (folder / part / POSITION).exists()}
    info = SnapshotInfo(
        format_version=FORMAT_VERSION,
        mode=mode,
        updates=dict(learners),
        numbers={part: position.windows.number for part, position in positions.items()},
        env_steps=steps * sum(position.unrolls for position in positions.values()),
        time_at_goal=time_at_goal,
        parts={part: _sha256(folder / part / SEAL) for part in parts},
    )
    replace_file(folder / INFO, info.model_dump_json(indent=1))
    return info, [Seal.model_validate_json((folder / part / SEAL).read_text()) for part in parts]


def sealed(run_dir: Path, updates: int, roles: Sequence[Role | str]) -> bool:
    return all(Part(run_dir, updates, role).sealed for role in roles)


def drop(run_dir: Path, updates: int) -> None:
    """Removes a snapshot that will not be completed."""
    shutil.rmtree(run_dir / SNAPSHOTS / str(updates), ignore_errors=True)


def prune(run_dir: Path, keep: int) -> None:
    """Removes all but the newest `keep` complete snapshots, the best by time at goal, and incomplete newer ones."""
    whole = _whole(run_dir)
    if not whole:
        return
    newest = sorted(whole)[-keep:]
    best = max(whole, key=lambda updates: (whole[updates].time_at_goal or 0.0, updates))
    for path in (run_dir / SNAPSHOTS).iterdir():
        if path.name.isdecimal() and int(path.name) < newest[-1] and int(path.name) not in {*newest, best}:
            shutil.rmtree(path, ignore_errors=True)


def newest_good(run_dir: Path, say: Callable[[str], None]) -> Snapshot | None:
    """Returns the newest snapshot that matches its checksums; None if no snapshot was completed.

    Raises:
        ConfigError: every snapshot is damaged.
    """
    folder = run_dir / SNAPSHOTS
    found = [path for path in folder.iterdir() if path.name.isdecimal()] if folder.is_dir() else []
    damages = []
    for path in sorted(found, key=lambda path: int(path.name), reverse=True):
        if not (path / INFO).exists():
            continue
        try:
            return Snapshot(path, _verified(path))
        except ConfigError as error:
            damages.append(str(error))
            say(f"{error}; trying the snapshot before it")
    if damages:
        raise ConfigError(f"{folder}: no snapshot is whole ({damages[0]}); begin again with --overwrite")
    return None


def drop_later(run_dir: Path, chosen: Snapshot) -> None:
    """Removes the snapshots after `chosen`: the resumed run takes them again."""
    for path in (run_dir / SNAPSHOTS).iterdir():
        if path.name.isdecimal() and int(path.name) > int(chosen.folder.name):
            shutil.rmtree(path)


def _whole(run_dir: Path) -> dict[int, SnapshotInfo]:
    found = {}
    for path in (run_dir / SNAPSHOTS).glob(f"*/{INFO}"):
        try:
            found[int(path.parent.name)] = _read_info(path)
        except ConfigError:  # damaged
            continue
    return found


def _read_info(path: Path) -> SnapshotInfo:
    """Raises ConfigError, one line; OSError."""
    try:
        text = path.read_text(encoding="utf-8")
        version = json.loads(text)["format_version"]
        if version == FORMAT_VERSION:
            return SnapshotInfo.model_validate_json(text)
    except (ValueError, TypeError, KeyError) as error:
        raise ConfigError(f"{path}: damaged") from error
    raise ConfigError(f"{path}: format version {version!r}, this Fathom reads {FORMAT_VERSION}")


def _verified(folder: Path) -> SnapshotInfo:
    """Returns the info of a snapshot after checking every file of it. Raises ConfigError, one line."""
    try:
        info = _read_info(folder / INFO)
        for role, digest in info.parts.items():
            _verify_part(folder / role, digest)
    except ConfigError:
        raise
    except (OSError, ValueError) as error:
        raise ConfigError(f"{folder}: cannot be read ({error})") from error
    return info


def _verify_part(folder: Path, digest: str) -> None:
    if _sha256(folder / SEAL) != digest:
        raise ConfigError(f"{folder / SEAL}: damaged")
    seal = Seal.model_validate_json((folder / SEAL).read_text(encoding="utf-8"))
    if set(seal.files) != set(_files(folder)):
        raise ConfigError(f"{folder}: other files than when it was written")
    for name, expected in seal.files.items():
        if _sha256(folder / name) != expected:
            raise ConfigError(f"{folder / name}: damaged")
    if (folder / SHARD).is_dir():
        for part in read_index(folder / SHARD, _REMEDY).parts:
            check_bytes(folder / SHARD / part.name, part, "snapshot", _REMEDY)


def _files(folder: Path) -> list[str]:
    """Returns the names of a part's files without the stream's, whose index has their checksums."""
    names = (path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    return sorted(str(name) for name in names if name.name != SEAL and name.suffix != ".arrow")


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
