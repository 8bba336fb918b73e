"""The base of all roles' actors. One thread works, another answers the driver's polls: an answer is a heartbeat.

The roles themselves never import Ray. An actor that replaces a dead one resumes where its predecessor ended.
"""

import faulthandler
import signal
import threading
import traceback
from abc import ABC, abstractmethod
from pathlib import Path

from deploy.recovery.background import BackgroundWriter
from deploy.scheduling.processes import Process
from learner.guard import NonFiniteError
from shared.config import Experiment
from shared.disk import NO_ROOM, Disk, StoppedWaiting
from shared.errors import ConfigError, RunFailed
from shared.memory import Memory
from shared.metrics import Report, Reporter
from shared.replay.errors import ReplayStopped, ReplayTimeout
from shared.start import describe_start, jax_watch, process_seconds

# Errors that another process would meet as well.
FATAL = (NonFiniteError, ReplayTimeout, ConfigError, RunFailed)


class RoleActor(Process, ABC):
    """A role's process; subclasses define `work`."""

    def __init__(self, stacks_path: str) -> None:
        """`stacks_path`: file to which SIGUSR1 writes the stacks of all threads, however stuck they are.

        On a node that does not see the run directory, the stacks go to Ray's log of this process.
        """
        try:
            self._stacks = open(stacks_path, "a", encoding="utf-8")  # noqa: SIM115 - as long as the process lives
        except FileNotFoundError:
            faulthandler.register(signal.SIGUSR1)
        else:
            faulthandler.register(signal.SIGUSR1, file=self._stacks)
        jax_watch()
        process = process_seconds()
        self._reporter = Reporter()
        self._reporter.describe_start = lambda waits: describe_start(process, waits)
        self._memory = Memory()
        self._stop = threading.Event()
        self._done = False
        self._error = self._details = ""
        self._fatal = self._others_work = False

    def read(self, path: str) -> str | None:
        """Returns the content of a file as this node sees it; None if there is no such file."""
        try:
            return Path(path).read_text(encoding="utf-8")
        except OSError:
            return None

    def start(self) -> None:
        threading.Thread(target=self._main, name="work", daemon=True).start()

    def poll(self, others_work: bool) -> Report:
        """Returns what happened since the last poll. `others_work`: see `Supervisor`; waits for them are no fault."""
        self._others_work = others_work
        report = self._reporter.drain(self._done, self._error, self._details)
        return report._replace(fatal=self._fatal, memory_mb=self._memory.megabytes)

    def stop(self) -> None:
        """Asks the work to end; `poll` reports when it has ended."""
        self._stop.set()

    @abstractmethod
    def work(self) -> None:
        """The role's loop; returns when it is done or `self._stop` is set."""

    def _main(self) -> None:
        try:
            self.work()
        except (ReplayStopped, StoppedWaiting):
            pass  # `stop` was called
        except Exception as error:  # noqa: BLE001 - the driver decides what any error means
            self._fatal = isinstance(error, FATAL) or getattr(error, "errno", None) in NO_ROOM
            self._details = traceback.format_exc()
            self._error = " ".join(f"{type(error).__name__}: {error}".split())
        self._done = True


class WritingActor(RoleActor):
    """A role that writes to the run directory, and waits while its disk has no room."""

    def __init__(self, stacks_path: str, experiment: Experiment, run_dir: str) -> None:
        super().__init__(stacks_path)
        self._experiment, self._run_dir = experiment, Path(run_dir)
        self._disk = Disk(self._run_dir, experiment.supervision.disk_reserve_gb)
        self._background = BackgroundWriter()
        self._reporter.sizes["queue/states"] = lambda: self._background.held

    def _wait_for_room(self) -> None:
        """Waits while the disk is short of room. Raises StoppedWaiting."""
        self._disk.wait_for_room(self._reporter, self._stop.is_set)

    def _paused(self) -> bool:
        """True while any role may wait for disk space, or another role works; time-outs do not count meanwhile."""
        return self._others_work or not self._disk.roomy
