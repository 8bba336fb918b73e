"""Replay clients that survive a restart of the replay server.

A server that died is replaced by a new incarnation without content. The driver announces it, sources insert again what
the old one held, and learners continue with the windows that they have received.
"""

import threading
from collections import deque
from collections.abc import Callable, Iterator
from functools import partial
from typing import Generic, NamedTuple, TypeVar

from shared.metrics import Reporter
from shared.plan import Plan
from shared.replay.announcements import Announcements, ServerIncarnation
from shared.replay.audit import AuditLog
from shared.replay.codec import Columns
from shared.replay.errors import ReplayError
from shared.replay.info import ReplayMonitor
from shared.replay.insert import MESSAGES_IN_FLIGHT, Inserter
from shared.replay.sample import Sampler
from shared.replay.windows import WindowCount

# Unrolls that the stream may hold and the server not: the messages in flight, and the next one.
UNCONFIRMED = MESSAGES_IN_FLIGHT + 1

X = TypeVar("X")


class RefillSplit(NamedTuple):
    """Windows of one source, split at the refill: `inserted` lie before it, `refilled` will be inserted again."""

    inserted: int
    refilled: int


class ReconnectingInserter:
    """Inserts a source's unrolls, and refills each new server from the source's stream.

    One thread works with it; another calls `connect` and `disconnect`.
    """

    def __init__(
        self,
        plan: Plan,
        source: int,
        environments: int,
        past: Callable[[int], Iterator[tuple[int, Columns]]],
        reporter: Reporter,
        stop: threading.Event,
        timeout_s: float,
        audit: AuditLog | None = None,
        paused: Callable[[], bool] = lambda: False,
    ) -> None:
        """Connects to nothing yet; see `Inserter` for the arguments not listed here.

        Args:
            past: yields `(number, columns)` of the unrolls in the source's stream, from a number on to the newest.
            reporter: gets the waits, and the incarnation in use.
            stop: set when the role shall end.
            audit: log of the keys that the server has confirmed.
        """
        self._paused = paused
        self._plan, self._source, self._environments, self._audit = plan, source, environments, audit
        self._past, self._reporter, self._stop, self._timeout_s = past, reporter, stop, timeout_s
        self._announced = Announcements(reporter, stop)
        self._inserter: Inserter | None = None
        self._lock = threading.Lock()
        self._made: deque[tuple[int, int]] = deque([(-1, 0)], maxlen=plan.stored_unrolls + 2)
        """Numbers of the newest unrolls, each with the windows made up to it."""
        self._refill_from: int | None = None
        self._servers_lost = 0

    def connect(self, server: ServerIncarnation) -> None:
        """Announces the server to use from now on. After `disconnect` it gets the refill."""
        self._announced.announce(server)

    def disconnect(self) -> RefillSplit:
        """Leaves the server, which is gone or about to go. The next one will be refilled as returned here."""
        self._announced.disconnect()
        with self._lock:
            self._servers_lost += 1
            newest, made = self._made[-1]
            self._refill_from = max(newest - self._plan.stored_unrolls + 1, 0)
            first_whole = self._refill_from + self._plan.chunks_per_window - 1
            inserted = next((before for number, before in reversed(self._made) if number < first_whole), 0)
        return RefillSplit(inserted, made - inserted)

    def register_windows(self, windows: WindowCount) -> None:
        """Registers that the stream holds all unrolls up to `windows.number`."""
        with self._lock:
            self._made.append((windows.number, windows.made))

    def open(self) -> None:
        """Waits for the first server and inserts what the stream holds already."""
        self._fill()

    def insert(self, number: int, columns: Columns) -> None:
        """Inserts unroll `number`, whose windows are registered; waits while replay is full or has no server."""
        try:
            if self._inserter is not None:
                self._inserter.insert(columns, number)
                return
        except ReplayError as error:
            self._announced.lost(error)
        self._fill()

    def flush(self) -> None:
        """Waits until the server has confirmed everything."""
        while True:
            try:
                if self._inserter is not None:
                    self._inserter.flush(self._timeout_s)
                    return
            except ReplayError as error:
                self._announced.lost(error)
            self._fill()

    def keep_filling(self, meanwhile: Callable[[], None] = lambda: None) -> None:
        """Refills every further server until asked to stop: the stream of a finished source still backs up replay.

        `meanwhile()` is called about twice a second while no server needs a refill.
        """
        while True:
            self._fill(meanwhile)
            self.flush()

    @property
    def room(self) -> bool:
        """True if an insert would not wait."""
        return self._inserter is not None and self._inserter.room

    @property
    def in_flight(self) -> int:
        """Messages that are not confirmed."""
        return self._inserter.in_flight if self._inserter is not None else 0

    def close(self) -> None:
        if self._inserter is not None:
            self._inserter.close()

    def _fill(self, meanwhile: Callable[[], None] = lambda: None) -> None:
        """Connects to the next server and inserts all that it lacks, the newest unroll included."""
        while True:
            server = self._announced.next(meanwhile)
            self.close()
            with self._lock:
                servers_lost = self._servers_lost
            try:
                self._inserter = self._filled(server)
            except ReplayError as error:
                self._announced.lost(error)
                continue
            with self._lock:
                if self._servers_lost == servers_lost:  # else the next server needs the refill
                    self._refill_from = None
            self._reporter.server = server.number
            return

    def _filled(self, server: ServerIncarnation) -> Inserter:
        inserter = Inserter(
            server.address,
            list(server.tables.values()),
            self._plan.chunks_per_window,
            self._environments,
            source=self._source,
            timeout_s=self._timeout_s,
            should_stop=self._stop,
            audit=partial(self._audit.write, server.number) if self._audit else None,
            paused=self._paused,
        )
        self._announced.use(inserter)  # an insert into a server that was left meanwhile is made again
        with self._lock:
            newest, refill_from = self._made[-1][0], self._refill_from
        # A server that lives lacks only what was not confirmed; windows that end there need the chunks before.
        unconfirmed = newest - UNCONFIRMED + 1
        first = unconfirmed - self._plan.chunks_per_window + 1 if refill_from is None else refill_from
        with self._reporter.waiting("replay refill"):
            for number, columns in self._past(max(first, 0)):
                inserter.insert(columns, number, windows=refill_from is not None or number >= unconfirmed)
        return inserter


class ReconnectingSampler(Generic[X]):
    """Batches of windows for one learner, over all incarnations of the server.

    Whole batches that have arrived count as taken, whether the learner has trained on them or not. Windows that were on
    their way when a server died are sampled again from the next one.
    """

    def __init__(
        self,
        plan: Plan,
        learner: str,
        transfer: Callable[[Columns], X],
        reporter: Reporter,
        stop: threading.Event,
        timeout_s: float,
        paused: Callable[[], bool] = lambda: False,
    ) -> None:
        """Connects to nothing yet. `transfer` and `paused` are those of `Sampler`, the rest of ReconnectingInserter."""
        self._paused = paused
        self._plan, self._learner, self._transfer = plan, learner, transfer
        self._reporter, self._stop, self._timeout_s = reporter, stop, timeout_s
        self._announced = Announcements(reporter, stop)
        self._num_floats: int | None = None
        self._left: list[X] = []  # batches that were decoded while their server was left
        self._lock = threading.Lock()  # around the next two, which change together
        self._sampler: Sampler[X] | None = None
        self._taken_before = 0
        self._monitor: ReplayMonitor | None = None
        self._table = ""
        self._inserted_before = self._inserted = 0

    def connect(self, server: ServerIncarnation) -> None:
        """Announces the server to use from now on."""
        self._announced.announce(server)

    def disconnect(self) -> int | None:
        """Leaves the server and returns the number of windows taken; no more are taken before `connect`.

        Returns None if the sampler is not open yet.
        """
        self._announced.disconnect()
        return None if self._num_floats is None else self.taken

    def open(self, num_floats: int, taken: int) -> None:
        """Allows `sample`, which connects. Earlier incarnations of the learner have trained on `taken` windows."""
        self._num_floats, self._taken_before = num_floats, taken

    @property
    def taken(self) -> int:
        """Windows of whole batches that have arrived."""
        batch = self._plan.windows_per_update
        with self._lock:
            return self._taken_before + (self._sampler.windows_received // batch * batch if self._sampler else 0)

    def sample(self) -> X:
        """Returns the next batch; waits while replay is starved or has no server."""
        while not self._left:
            if self._sampler is not None:
                try:
                    return self._sampler.sample(self._stop)[0]
                except ReplayError as error:
                    self._announced.lost(error)
                    self._sampler.close()
                    self._left = self._sampler.leave()
            if not self._left:
                self._reconnect()
        return self._left.pop(0)

    @property
    def batches_ready(self) -> int:
        """Batches in memory that were not returned yet."""
        return len(self._left) + (self._sampler.batches_ready if self._sampler is not None else 0)

    def windows_inserted(self) -> int:
        """Windows inserted into this learner's table over all incarnations; slightly old after a missed poll."""
        try:
            info = self._monitor.poll() if self._monitor else None
        except ReplayError:  # the next sample finds out
            return self._inserted
        if info is not None:
            self._inserted = self._inserted_before + info.tables[self._table].inserted
        return self._inserted

    def close(self) -> None:
        if self._sampler is not None:
            self._sampler.close()
        if self._monitor is not None:
            self._monitor.close()

    def _reconnect(self) -> None:
        assert self._num_floats is not None
        while True:
            server = self._announced.next()
            self.close()
            taken, self._table = self.taken, server.tables[self._learner]
            try:
                sampler = Sampler(
                    server.address,
                    self._table,
                    self._plan.windows_per_update,
                    self._plan.window_rows,
                    self._num_floats,
                    self._transfer,
                    timeout_s=self._timeout_s,
                    max_windows=self._plan.updates * self._plan.windows_per_update - taken,
                    paused=self._paused,
                )
            except ReplayError as error:
                self._announced.lost(error)
                continue
            with self._lock:
                self._taken_before, self._sampler = taken, sampler
            self._monitor, self._inserted_before = ReplayMonitor(server.address, [self._table]), server.inserted
            if self._announced.use(sampler):  # else the server was left meanwhile, and nothing was requested of it
                self._reporter.server = server.number
                return
