"""Capacity on the disk of a run: who writes waits below a reserve, so that a full disk is a pause and loses nothing.

What the driver writes is little, while roles wait next to nothing; it comes out of the reserve.
"""

import shutil
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from shared.metrics import Reporter

GB = 1e9
DISK_SPACE = "disk space"
"""What a role waits for, as its report says."""
POLL_S = 1.0
ROOM_AGAIN = 1.1  # times the reserve; or each write could be the last before the next wait


class StoppedWaiting(RuntimeError):
    """Asked to stop while there was no room: what was to be written is not."""


class Disk:
    """The disk that `folder` lies on, of which `reserve_gb` GB (1e9 bytes) are left free; 0: none are.

    All members raise OSError where `folder` is gone.
    """

    def __init__(self, folder: Path, reserve_gb: float) -> None:
        self.folder, self.reserve_gb = Path(folder), reserve_gb

    @property
    def free_gb(self) -> float:
        return shutil.disk_usage(self.folder).free / GB

    @property
    def short(self) -> bool:
        """Whether less than the reserve is left."""
        return self.free_gb < self.reserve_gb

    @property
    def roomy(self) -> bool:
        """Whether there is enough for a role that waits to go on."""
        return self.free_gb >= ROOM_AGAIN * self.reserve_gb

    def wait_for_room(self, reporter: Reporter, should_stop: Callable[[], bool]) -> None:
        """Returns at once unless the disk is short, else when it is roomy. Raises StoppedWaiting on `should_stop()`."""
        if not self.short:
            return
        with reporter.waiting(DISK_SPACE):
            while not self.roomy:
                if should_stop():
                    raise StoppedWaiting(f"asked to stop while waiting for room on the disk of {self.folder}")
                time.sleep(POLL_S)
            reporter.progressed()


class DiskNotices:
    """Says who begins to wait for room on a disk, and who goes on: a line each."""

    def __init__(self, disk: Disk, say: Callable[[str], None]) -> None:
        self._disk, self._say = disk, say
        self._waiting: set[object] = set()

    def tell(self, waits: Mapping[Any, str]) -> None:
        """`waits`: what each role waits for right now, empty while it works; who is left out is as before."""
        for role, what in waits.items():
            if what == DISK_SPACE and role not in self._waiting:
                self._waiting.add(role)
                self._say(
                    f"{self._state()}, too little by supervision.disk_reserve_gb ({self._disk.reserve_gb:g}); "
                    f"{role} waits for room"
                )
            elif what != DISK_SPACE and role in self._waiting:
                self._waiting.remove(role)
                self._say(f"{self._state()}; {role} goes on")

    def _state(self) -> str:
        return f"the disk of {self._disk.folder} has {self._disk.free_gb:.2g} GB left"
