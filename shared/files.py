"""Files that are replaced as a whole: a reader sees the old content or the new one, never half of it."""

import contextlib
import json
import os
from pathlib import Path
from typing import Any

OWNER_ONLY = 0o700  # mode of a folder


def replace_file(path: Path, text: str, sync: bool = True) -> None:
    """Replaces the content of `path` by `text` in one step.

    Args:
        path: the file; its folder must exist.
        text: all of the new content.
        sync: waits for the disk, so that the new content also survives a power cut.

    Raises:
        OSError: the disk is full, or the folder cannot be written.
    """
    beside = path.with_name(path.name + ".new")
    with open(beside, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        if sync:
            os.fsync(file.fileno())
    beside.replace(path)
    if sync:
        sync_folder(path.parent)


def write_json(path: Path, value: Any) -> None:
    """Replaces `path` by `value` as JSON, without waiting for the disk. Raises OSError."""
    replace_file(path, json.dumps(value, indent=2) + "\n", sync=False)


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
