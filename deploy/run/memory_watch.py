"""Memory of a run: its roles, and what else the run has started on this machine."""

import time
from collections import defaultdict
from collections.abc import Mapping

import psutil

from deploy.run.record import RunRecord
from shared.memory import read_megabytes

EVERY_S = 10.0
_SERVER = "serve.py"


class MemoryWatch:
    """Records the memory of all processes of a run, every few seconds.

    Roles on other machines say their own. Processes of a cluster that the run has not started do not count.
    """

    def __init__(self, record: RunRecord) -> None:
        self._record, self._process = record, psutil.Process()
        self._next = 0.0

    def tick(self, roles: Mapping[int, tuple[str, float]] | None = None) -> None:
        """Looks if it is time. `roles`: name and memory in MB of each role in a process of its own, by process id."""
        if (now := time.monotonic()) < self._next:
            return
        self._next = now + EVERY_S
        roles = roles or {}
        megabytes = defaultdict(float, roles.values())
        megabytes["driver"] = read_megabytes(self._process)
        for process in self._process.children(recursive=True):
            if process.pid not in roles:
                megabytes[_name(process)] += read_megabytes(process)
        self._record.note_memory(megabytes)


def _name(process: psutil.Process) -> str:
    try:
        command = " ".join(process.cmdline())
    except psutil.Error:  # it has ended
        command = ""
    if _SERVER in command:
        return "replay"
    return "services" if "ray" in command else "helpers"
