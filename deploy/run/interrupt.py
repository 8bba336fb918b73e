"""Signals that end a run in order: Ctrl-C at once, a scheduler's or a terminal's warning after a snapshot."""

import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

GRACE_S = {signal.SIGUSR1: 120.0, signal.SIGUSR2: 120.0, signal.SIGTERM: 5.0, signal.SIGHUP: 5.0}
"""Longest time for a snapshot by signal. Schedulers warn minutes ahead by SIGUSR1 or SIGUSR2; SIGKILL follows SIGTERM
within seconds."""


class Interrupted(KeyboardInterrupt):
    """A signal has ended the command."""

    def __init__(self, number: int) -> None:
        name = signal.Signals(number).name
        super().__init__("stopped by the user" if number == signal.SIGINT else f"stopped by {name}")
        self.number = number

    @property
    def exit_status(self) -> int:
        """Exit status as a shell reports the signal."""
        return 128 + self.number


class Interruption:
    """The signal that asked this process to end, if there was one.

    Signals raise Interrupted in the main thread. Within `deferred`, a signal other than SIGINT is only noted, so that
    the run can take a snapshot first; a second signal raises.
    """

    def __init__(self) -> None:
        self._number: int | None = None
        self._raised: int | None = None
        self._deadline = 0.0
        self._deferring = False

    def install(self) -> None:
        """Handles the signals from now on. A SIGHUP that is ignored, as under `nohup`, stays ignored."""
        for number in (signal.SIGINT, *GRACE_S):
            if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:
                signal.signal(number, self._handle)

    @contextmanager
    def deferred(self) -> Iterator[None]:
        """Notes signals in the block; the block asks `requested` and calls `check`."""
        self._deferring = True
        try:
            yield
        finally:
            self._deferring = False

    @property
    def requested(self) -> str:
        """Name of the signal that was noted; empty before one."""
        return signal.Signals(self._number).name if self._number is not None else ""

    def check(self, done: bool = False) -> None:
        """Raises Interrupted if a signal was noted and its grace is over, or if nothing is left to do (`done`).

        Also if a signal has raised it before: Python discards what is raised in a callback of its garbage collector,
        and JAX has one.
        """
        if self._raised is not None:
            raise Interrupted(self._raised)
        if self._number is not None and (done or time.monotonic() >= self._deadline):
            raise Interrupted(self._number)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT or not self._deferring or self._number is not None:
            self._raised = number
            raise Interrupted(number)
        self._number = number
        self._deadline = time.monotonic() + GRACE_S[signal.Signals(number)]
