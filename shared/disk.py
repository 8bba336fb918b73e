"""Reserve of free space on a run's disk: below it roles that write wait, so that a full disk loses nothing.

The driver never waits: it writes little, next to nothing while roles wait, and the reserve covers that.
"""

import errno
import shutil
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from shared.metrics import Reporter

GB = 1e9
DISK_SPACE = "disk space"  # reason of a wait in a role's report
POLL_S = 1.0
NO_ROOM = frozenset({errno.ENOSPC, errno.EDQUOT})  # of an OSError: the disk is full, or the user's quota
ROOM_AGAIN = 1.1  # free space, in reserves, that ends a wait; at 1 each write could cause the next wait


def find_write_fault(folder: Path) -> str:
    """Creates `folder` if it is missing, and a file in it. Returns the system's reason if that fails, else nothing."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        return error.strerror or str(error)
    return ""


class StoppedWaiting(RuntimeError):
    """A request to stop during a wait for room; the data are not written."""


class Disk:
    """The disk of `folder` with a reserve, in GB (1e9 bytes). Members raise OSError if the folder is gone."""

    def __init__(self, folder: Path, reserve_gb: float) -> None:
        self.folder, self.reserve_gb = Path(folder), reserve_gb

    @property
    def free_gb(self) -> float:
        return shutil.disk_usage(self.folder).free / GB

    @property
    def short(self) -> bool:
        """True if less than the reserve is free."""
        return self.free_gb < self.reserve_gb

    @property
    def roomy(self) -> bool:
        """True if enough is free to end a wait."""
        return self.free_gb >= ROOM_AGAIN * self.reserve_gb

    def wait_for_room(self, reporter: Reporter, should_stop: Callable[[], bool]) -> None:
        """Waits, if the disk is short, until it is roomy. Raises StoppedWaiting on `should_stop()`."""
        if not self.short:
            return
        with reporter.waiting(DISK_SPACE):
            while not self.roomy:
                if should_stop():
                    raise StoppedWaiting(f"asked to stop while waiting for room on the disk of {self.folder}")
                time.sleep(POLL_S)
            reporter.progressed()


class DiskNotices:
    """Lines to the user about roles that begin or end a wait for room on a disk."""

    def __init__(self, disk: Disk, say: Callable[[str], None]) -> None:
        self._disk, self._say = disk, say
        self._waiting: set[object] = set()

    def update(self, waits: Mapping[Any, str]) -> None:
        """Says what changed. `waits`: the reason of each role's wait, or empty; absent roles are unchanged."""
        for role, reason in waits.items():
            if (reason == DISK_SPACE) == (role in self._waiting):
                continue
            self._waiting ^= {role}
            left = f"the disk of {self._disk.folder} has {self._disk.free_gb:.2g} GB left"
            if reason == DISK_SPACE:
                reserve = f"too little by supervision.disk_reserve_gb ({self._disk.reserve_gb:g})"
                self._say(f"{left}, {reserve}; {role} waits for room")
            else:
                self._say(f"{left}; {role} continues")
