"""Memory of processes. Pages that several processes share count for each of them in equal parts."""

import time
from contextlib import suppress
from pathlib import Path

import psutil

MB = 10**6
EVERY_S = 5.0  # a look at a process costs some milliseconds


def read_megabytes(process: psutil.Process) -> float:
    """Returns the resident memory of a process of this user; 0 if it has ended."""
    try:
        with suppress(OSError, StopIteration):  # of other systems than Linux, and of processes that end
            lines = Path(f"/proc/{process.pid}/smaps_rollup").read_text().splitlines()
            return int(next(line for line in lines if line.startswith("Pss:")).split()[1]) * 1024 / MB
        return process.memory_info().rss / MB
    except psutil.NoSuchProcess:
        return 0.0


class Memory:
    """Memory of this process, looked at every few seconds at most."""

    def __init__(self) -> None:
        self._process, self._looked, self._value = psutil.Process(), -EVERY_S, 0.0

    @property
    def megabytes(self) -> float:
        if time.monotonic() - self._looked > EVERY_S:
            self._looked, self._value = time.monotonic(), read_megabytes(self._process)
        return self._value
