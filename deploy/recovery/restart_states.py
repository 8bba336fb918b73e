"""States on their way to disk: copied off the device at once, written in the background."""

import shutil
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import numpy as np

from shared import checkpoint
from shared.disk import Disk

KEPT = 2  # the newest may be cut short by whatever ends its writer
REST = 9  # times as long as it writes it rests, so that writing takes a tenth of a core and of the disk at most


class BackgroundWriter:
    """One thread that writes. What went wrong in it is raised by the next call."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="states")
        self._writing: Future[None] | None = None

    @property
    def busy(self) -> bool:
        return self._writing is not None and not self._writing.done()

    @property
    def held(self) -> int:
        """States in memory: one at most, and another while `write` waits."""
        return int(self.busy)

    def write(self, work: Callable[..., None], *arguments: Any) -> None:
        """After what is being written; waits for it, so that no more than two states are held."""
        self.wait()
        self._writing = self._thread.submit(work, *arguments)

    def wait(self) -> None:
        """Until nothing is being written."""
        if self._writing is not None:
            writing, self._writing = self._writing, None
            writing.result()


class RestartStates:
    """A learner's newest states for its next life: a folder of them, named by their updates."""

    def __init__(self, folder: Path, background: BackgroundWriter, disk: Disk) -> None:
        self._folder, self._background, self._disk = folder, background, disk
        self._rests_until = 0.0

    def offer(self, updates: int, state: Any) -> None:
        """Writes a copy of `state`, unless it is too soon, or the disk is short of room: a later one will do."""
        if not self._background.busy and time.monotonic() >= self._rests_until and not self._disk.short:
            self._background.write(self._write, updates, on_host(state))

    def keep(self, updates: int, state: Any) -> None:
        """Writes `state`, and waits until it is there. Raises OSError on a full disk."""
        self._background.write(self._write, updates, on_host(state))
        self._background.wait()

    def newest(self, like: Any, last_reported: int) -> Any | None:
        """Returns the newest state that can be read, shaped like `like`; none where there is none.

        Prefers states no newer than `last_reported` updates, the last that the driver recorded, so that no metrics row
        is missing.
        """
        for updates in sorted(self._held(), key=lambda updates: (updates <= last_reported, updates), reverse=True):
            try:
                return checkpoint.load(self._folder / str(updates), like)
            except (OSError, ValueError, KeyError):  # damaged: the one before will do
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
        """Update counts of whole states: one being written has another name."""
        if not self._folder.is_dir():
            return []
        return [int(path.name) for path in self._folder.iterdir() if path.name.isdecimal()]


def on_host(state: Any) -> Any:
    """A copy on the host: the next update takes the device's buffers. Keys stay keys."""
    return jax.tree.map(_copied, state)


def _copied(x: Any) -> Any:
    if jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key):
        return jax.random.wrap_key_data(jax.numpy.array(jax.random.key_data(x)))
    return np.array(x)
