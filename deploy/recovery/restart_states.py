"""Restart states: a learner's newest states on disk, from which its next incarnation resumes."""

import shutil
import time
from pathlib import Path
from typing import Any

from deploy.recovery.background import BackgroundWriter, on_host
from shared import checkpoint
from shared.disk import Disk

KEPT = 2  # the newest state may be cut short when its writer dies
REST = 9  # idle time after each write, as a multiple of its duration: at most 10 % duty


class RestartStates:
    """A folder of one learner's states, named by their updates."""

    def __init__(self, folder: Path, background: BackgroundWriter, disk: Disk) -> None:
        self._folder, self._background, self._disk = folder, background, disk
        self._rests_until = 0.0

    def offer(self, updates: int, state: Any) -> None:
        """Writes a copy of `state`, unless the writer is busy or resting, or the disk is short of room."""
        if not self._background.busy and time.monotonic() >= self._rests_until and not self._disk.short:
            self._background.write(self._write, updates, on_host(state))

    def save(self, updates: int, state: Any) -> None:
        """Writes `state` and waits until it is on disk. Raises OSError on a full disk."""
        self._background.write(self._write, updates, on_host(state))
        self._background.wait()

    def newest(self, like: Any, last_reported: int) -> Any | None:
        """Returns the newest state that can be read, shaped like `like`; None if there is none.

        Prefers states no newer than `last_reported` updates, the last that the driver recorded, so that no metrics row
        is missing.
        """
        for updates in sorted(self._held(), key=lambda updates: (updates <= last_reported, updates), reverse=True):
            try:
                return checkpoint.load(self._folder / str(updates), like)
            except (OSError, ValueError, KeyError):  # damaged
                continue
        return None

    def _write(self, updates: int, state: Any) -> None:
        began = time.monotonic()
        checkpoint.save(self._folder / str(updates), state)
        for old in sorted(self._held())[:-KEPT]:
            shutil.rmtree(self._folder / str(old), ignore_errors=True)
        ended = time.monotonic()
        self._rests_until = ended + REST * (ended - began)

    def _held(self) -> list[int]:
        """Update counts of whole states; a state being written has another name."""
        if not self._folder.is_dir():
            return []
        return [int(path.name) for path in self._folder.iterdir() if path.name.isdecimal()]
