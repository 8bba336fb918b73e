"""Files that other processes read: replaced as a whole or appended to by whole lines, and strict JSON."""

import contextlib
import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

OWNER_ONLY = 0o700  # mode of a folder


def replace_file(path: Path, content: str | bytes, sync: bool = True) -> None:
    """Replaces `path` by `content` in one step: a reader sees the old content or the new one, never half of it.

    Args:
        path: the file; its folder must exist.
        content: all of the new content.
        sync: waits for the disk, so that the new content also survives a power cut.

    Raises:
        OSError: the disk is full, or the folder cannot be written. The old content stays.
    """
    beside = path.with_name(path.name + ".new")
    try:
        with open(beside, "wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            if sync:
                os.fsync(file.fileno())
    except OSError:
        beside.unlink(missing_ok=True)  # a full disk needs the room
        raise
    beside.replace(path)
    if sync:
        sync_folder(path.parent)


def append_line(path: Path, line: str) -> None:
    """Appends a line in one write.

    A crash or a full disk may have left half a line at the end. The file is then replaced by its whole lines first.
    Raises OSError; half of `line` may then stand at the end.
    """
    if not _ends_with_line(path):
        content = path.read_bytes()
        replace_file(path, content[: content.rfind(b"\n") + 1])
    rest = line.encode() + b"\n"
    with open(path, "ab", buffering=0) as file:  # O_APPEND
        while rest:  # a second write only on a full disk, where it raises the error
            rest = rest[file.write(rest) :]


def _ends_with_line(path: Path) -> bool:
    if not path.exists() or not path.stat().st_size:
        return True
    with open(path, "rb") as file:
        file.seek(-1, os.SEEK_END)
        return file.read(1) == b"\n"


def to_json(value: Any, indent: int | None = None) -> str:
    """Returns `value` as strict JSON in ASCII: null stands for a number that is not finite, a list for an array.

    Raises TypeError for what JSON has no form for.
    """
    return json.dumps(_strict(value), indent=indent, allow_nan=False)


def _strict(value: Any) -> Any:
    if hasattr(value, "tolist"):  # of numpy or JAX
        value = value.tolist()
    if isinstance(value, Mapping):
        return {key: _strict(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_strict(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def write_json(path: Path, value: Any, sync: bool = True) -> None:
    """Replaces `path` by `value` as JSON; see `to_json` and `replace_file`. Raises OSError."""
    replace_file(path, to_json(value, indent=2) + "\n", sync)


def sync_folder(path: Path) -> None:
    """Waits until the names in a folder are on disk, so that a new file survives a power cut. Raises OSError."""
    folder = os.open(path, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def make_folder(folder: Path, mode: int) -> None:
    """Creates `folder` with `mode`, whatever the umask. A folder that exists keeps its own mode. Raises OSError."""
    if folder.is_dir():
        return
    folder.parent.mkdir(parents=True, exist_ok=True)
    folder.mkdir(mode=OWNER_ONLY)
    with contextlib.suppress(PermissionError):  # some file systems have no modes
        folder.chmod(mode)
