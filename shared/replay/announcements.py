"""Announcements of the replay server's incarnations, from the driver to a role that works with replay."""

import threading
from collections.abc import Callable
from typing import NamedTuple, Protocol

from shared.metrics import Reporter
from shared.replay.channel import WAIT_SLICE_S
from shared.replay.errors import ReplayError, ReplayExhausted, ReplayStopped, ReplayTimeout


class ServerIncarnation(NamedTuple):
    """One incarnation of the replay server: its table for each learner, and the windows inserted before its refill."""

    number: int
    address: str
    tables: dict[str, str]
    inserted: int


class Closable(Protocol):
    def close(self) -> None: ...


class Announcements:
    """The newest incarnation announced, passed from the thread that answers the driver to the thread that works."""

    def __init__(self, reporter: Reporter, stop: threading.Event) -> None:
        self._reporter, self._stop = reporter, stop
        self._changed = threading.Condition()
        self._next: ServerIncarnation | None = None
        self._current = 0  # number of the incarnation in use
        self._connected = False  # between an announcement and `disconnect`
        self._client: Closable | None = None

    def announce(self, server: ServerIncarnation) -> None:
        with self._changed:
            self._next = server
            self._changed.notify_all()

    def disconnect(self) -> None:
        """Closes the client in use; the working thread then waits for the next incarnation."""
        with self._changed:
            self._next, self._connected, client = None, False, self._client
        if client is not None:
            client.close()

    def next(self, meanwhile: Callable[[], None] = lambda: None) -> ServerIncarnation:
        """Waits for an incarnation that was not used yet, and calls `meanwhile` about twice a second.

        Raises ReplayStopped.
        """
        with self._reporter.waiting("replay server"):
            while (server := self._take()) is None:
                if self._stop.is_set():
                    raise ReplayStopped("asked to stop while waiting for the replay server")
                meanwhile()
        self._current = server.number
        return server

    def _take(self) -> ServerIncarnation | None:
        with self._changed:
            if self._next is None:
                self._changed.wait(WAIT_SLICE_S)
            server, self._next = self._next, None
            self._connected |= server is not None
            return server

    def use(self, client: Closable) -> bool:
        """Registers the client of the incarnation in use; False if the role has disconnected meanwhile."""
        with self._changed:
            self._client = client
            return self._connected

    def lost(self, error: ReplayError) -> None:
        """Reports the server as lost, so that another is announced; raises `error` if another would not help."""
        if self._stop.is_set() or isinstance(error, (ReplayTimeout, ReplayExhausted)):
            raise error
        self._reporter.server, self._reporter.lost_server = 0, self._current
