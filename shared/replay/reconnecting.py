"""Replay clients that outlast the server: each of its lives is announced by the driver, and nothing is lost between.

A server that died is replaced by a new one, which knows nothing. Sources put in again what the old one held;
learners have its last batches in hand and take up where they were.
"""

import threading
from collections import deque
from collections.abc import Callable, Iterator
from functools import partial
from typing import Generic, NamedTuple, Protocol, TypeVar

from shared.metrics import Reporter
from shared.plan import Plan
from shared.replay.audit import AuditLog
from shared.replay.channel import WAIT_SLICE_S
from shared.replay.codec import Columns
from shared.replay.errors import ReplayError, ReplayExhausted, ReplayStopped, ReplayTimeout
from shared.replay.info import ReplayMonitor
from shared.replay.insert import MESSAGES_IN_FLIGHT, Inserter
from shared.replay.sample import Sampler
from shared.replay.windows import WindowCount

# What may have been written ahead and not confirmed: the messages in flight, and the one about to be.
UNCONFIRMED = MESSAGES_IN_FLIGHT + 1

X = TypeVar("X")


class ServerIncarnation(NamedTuple):
    """One replay server. `tables` by learner; `inserted`: windows that lie behind what was put into it again."""

    number: int
    address: str
    tables: dict[str, str]
    inserted: int


class _Closable(Protocol):
    def close(self) -> None: ...


class _Announcements:
    """The newest life that was announced, between the thread that answers the driver and the one that works."""

    def __init__(self, reporter: Reporter, stop: threading.Event) -> None:
        self._reporter, self._stop = reporter, stop
        self._changed = threading.Condition()
        self._next: ServerIncarnation | None = None
        self._taken = 0  # the number of the life that was taken last
        self._client: _Closable | None = None

    def announce(self, life: ServerIncarnation) -> None:
        with self._changed:
            self._next = life
            self._changed.notify_all()

    def disconnect(self) -> None:
        """Closes what the thread works with; from here on it waits for the next life."""
        with self._changed:
            self._next, client = None, self._client
        if client is not None:
            client.close()

    def next(self) -> ServerIncarnation:
        """Waits for a life that was not taken yet. Raises ReplayStopped."""
        with self._changed, self._reporter.waiting("replay server"):
            while self._next is None:
                if self._stop.is_set():
                    raise ReplayStopped("asked to stop while waiting for the replay server")
                self._changed.wait(WAIT_SLICE_S)
            life, self._next = self._next, None
        self._taken = life.number
        return life

    def use(self, client: _Closable) -> None:
        with self._changed:
            self._client = client

    def lost(self, error: ReplayError) -> None:
        """The server is gone, and another will be announced. Raises `error` where none would help."""
        if self._stop.is_set() or isinstance(error, (ReplayTimeout, ReplayExhausted)):
            raise error
        self._reporter.life, self._reporter.lost_server = 0, self._taken


class RefillSplit(NamedTuple):
    """Of one source: windows that it inserted before those that it would put in again, and how many these are."""

    inserted: int
    refilled: int


class ReconnectingInserter:
    """Inserts a source's unrolls, each of which must be in its stream already, and fills new servers from there.

    `past(first)`: the stream's unrolls from number `first` up to the newest, `(number, columns)`; `paused`: see
    `Inserter`. Used by one thread, which works; `connect` and `disconnect` are another's.
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
        self._paused = paused
        self._plan, self._source, self._environments, self._audit = plan, source, environments, audit
        self._past, self._reporter, self._stop, self._timeout_s = past, reporter, stop, timeout_s
        self._announced = _Announcements(reporter, stop)
        self._inserter: Inserter | None = None
        self._lock = threading.Lock()
        self._made: deque[tuple[int, int]] = deque([(-1, 0)], maxlen=plan.stored_unrolls + 2)
        """Unroll numbers and the windows made up to each."""
        self._refill_from: int | None = None
        self._servers_lost = 0

    def connect(self, life: ServerIncarnation) -> None:
        """The server to work with from now on. After `disconnect` it is filled with what the last one held."""
        self._announced.announce(life)

    def disconnect(self) -> RefillSplit:
        """The server is gone, or about to be. What is said here is what the next one will be filled with."""
        self._announced.disconnect()
        with self._lock:
            self._servers_lost += 1
            newest, made = self._made[-1]
            self._refill_from = max(newest - self._plan.stored_unrolls + 1, 0)
            first_whole = self._refill_from + self._plan.chunks_per_window - 1
            behind = next((before for number, before in reversed(self._made) if number < first_whole), 0)
        return RefillSplit(behind, made - behind)

    def register_windows(self, windows: WindowCount) -> None:
        """Up to unroll `windows.number` all is in the stream."""
        with self._lock:
            self._made.append((windows.number, windows.made))

    def open(self) -> None:
        """Waits for the first server, and puts in what is in the stream already."""
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
        """Waits until everything is confirmed."""
        while True:
            try:
                if self._inserter is not None:
                    self._inserter.flush(self._timeout_s)
                    return
            except ReplayError as error:
                self._announced.lost(error)
            self._fill()

    def keep_filling(self) -> None:
        """Fills every further server, until asked to stop: a source that is done is its windows' backup still."""
        while True:
            self._fill()
            self.flush()

    @property
    def room(self) -> bool:
        """Whether an unroll would go through without a wait."""
        return self._inserter is not None and self._inserter.room

    @property
    def in_flight(self) -> int:
        """Messages that are not confirmed; none while there is no server."""
        return self._inserter.in_flight if self._inserter is not None else 0

    def close(self) -> None:
        if self._inserter is not None:
            self._inserter.close()

    def _fill(self) -> None:
        """Takes the next life and puts in all that it lacks, the newest unroll included."""
        while True:
            life = self._announced.next()
            self.close()
            with self._lock:
                servers_lost = self._servers_lost
            try:
                self._inserter = self._filled(life)
            except ReplayError as error:
                self._announced.lost(error)
                continue
            with self._lock:
                if self._servers_lost == servers_lost:  # or the next one needs it
                    self._refill_from = None
            self._reporter.life = life.number
            return

    def _filled(self, life: ServerIncarnation) -> Inserter:
        inserter = Inserter(
            life.address,
            list(life.tables.values()),
            self._plan.chunks_per_window,
            self._environments,
            source=self._source,
            timeout_s=self._timeout_s,
            should_stop=self._stop,
            audit=partial(self._audit.write, life.number) if self._audit else None,
            paused=self._paused,
        )
        self._announced.use(inserter)
        with self._lock:
            newest, refill_from = self._made[-1][0], self._refill_from
        # A server that lives holds all but what was not confirmed, for which it needs the chunks before.
        unconfirmed = newest - UNCONFIRMED + 1
        first = unconfirmed - self._plan.chunks_per_window + 1 if refill_from is None else refill_from
        with self._reporter.waiting("replay refill"):
            for number, columns in self._past(max(first, 0)):
                inserter.insert(columns, number, windows=refill_from is not None or number >= unconfirmed)
        return inserter


class ReconnectingSampler(Generic[X]):
    """Batches for one learner, over all lives of the server; see `Sampler` for `transfer` and `paused`.

    Whole batches that arrived count as taken, whether they were trained on yet or not; what was on its way
    when a server died is sampled again from the next one.
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
        self._paused = paused
        self._plan, self._learner, self._transfer = plan, learner, transfer
        self._reporter, self._stop, self._timeout_s = reporter, stop, timeout_s
        self._announced = _Announcements(reporter, stop)
        self._num_floats: int | None = None
        self._taken_before = 0
        self._left: list[X] = []  # decoded while their server was being left
        self._sampler: Sampler[X] | None = None
        self._monitor: ReplayMonitor | None = None
        self._table = ""
        self._behind = self._inserted = 0

    def connect(self, life: ServerIncarnation) -> None:
        self._announced.announce(life)

    def disconnect(self) -> int | None:
        """The server is gone, or about to be. Returns the windows taken, and no more will be before `connect`; none
        if it is not open yet.
        """
        self._announced.disconnect()
        return None if self._num_floats is None else self.taken

    def open(self, num_floats: int, taken: int) -> None:
        """Before the first sample. `taken`: windows that an earlier life of this learner was trained on."""
        self._num_floats, self._taken_before = num_floats, taken

    @property
    def taken(self) -> int:
        batch = self._plan.windows_per_update
        return self._taken_before + (self._sampler.windows_received // batch * batch if self._sampler else 0)

    def sample(self) -> X:
        """The next batch; waits while replay is starved, and while there is none."""
        while True:
            if self._left:
                return self._left.pop(0)
            if self._sampler is not None:
                try:
                    return self._sampler.sample(self._stop)[0]
                except ReplayError as error:
                    self._announced.lost(error)
                    self._sampler.close()
                    self._left = self._sampler.leave()
                    if self._left:
                        continue
            self._reconnect()

    @property
    def batches_ready(self) -> int:
        """Batches in memory that were not handed out yet."""
        return len(self._left) + (self._sampler.batches_ready if self._sampler is not None else 0)

    def windows_inserted(self) -> int:
        """Into this learner's table, in all lives; a little old when the server missed a poll."""
        try:
            info = self._monitor.poll() if self._monitor else None
        except ReplayError:  # the next sample will find out
            return self._inserted
        if info is not None:
            self._inserted = self._behind + info.tables[self._table].inserted
        return self._inserted

    def close(self) -> None:
        if self._sampler is not None:
            self._sampler.close()
        if self._monitor is not None:
            self._monitor.close()

    def _reconnect(self) -> None:
        assert self._num_floats is not None
        while True:
            life = self._announced.next()
            self.close()
            taken, self._table = self.taken, life.tables[self._learner]
            try:
                sampler = Sampler(
                    life.address,
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
            self._taken_before, self._sampler = taken, sampler
            self._monitor, self._behind = ReplayMonitor(life.address, [self._table]), life.inserted
            self._announced.use(sampler)
            self._reporter.life = life.number
            return
