"""The insert client: unrolls in, windows of all tables confirmed."""

import math
import queue
import secrets
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import grpc
import numpy as np
from numpy.typing import ArrayLike

from shared.replay import reverb_pb2 as pb
from shared.replay import wire
from shared.replay.channel import (
    CONNECT_TIMEOUT_S,
    INSERT_STREAM,
    WAIT_SLICE_S,
    ShouldStop,
    named_error,
    open_channel,
    stop_requested,
)
from shared.replay.codec import INT_COLUMNS, Columns
from shared.replay.errors import ReplayError, ReplayStopped, ReplayTimeout
from shared.replay.info import check_tables, server_info
from shared.replay.windows import no_windows

# A message's cost in the server grows with the square of the chunks that its stream keeps: 2 ms at 4,096, 12 ms at
# 8,192. Fewer streams are fewer messages.
MOST_KEPT_CHUNKS = 4096
# One being written into the tables, one on its way. More would let a fast table run ahead of a slow one.
MESSAGES_IN_FLIGHT = 2
CLOSE_WAIT_S = 5.0
_SOURCE_BITS = 48  # a key is its source and a number below 2**48: 25 years of inserts at 400,000 a second


@dataclass
class _Message:
    """One unroll of one stream on its way: which windows of which table the server still owes."""

    unconfirmed: dict[str, set[int]]  # item keys by table
    handed_over: bool = False  # gRPC took it


class Keys(NamedTuple):
    """Of the chunks and windows of one source's environments; each window is an item in each table."""

    source: int
    environments: int
    tables: int

    def of(self, numbers: ArrayLike) -> np.ndarray:
        """For unrolls `numbers` `[...]`: `[..., N, 1 + tables]` uint64, the chunk's key, then its window's by table."""
        unrolls, kinds = np.asarray(numbers, np.int64), 1 + self.tables
        if (int(unrolls.max()) + 1) * self.environments * kinds > 2**_SOURCE_BITS:
            raise ValueError(f"unroll {unrolls.max()}: there are no keys left for {self.environments} environments")
        places = np.arange(self.environments * kinds).reshape(self.environments, kinds)
        keys = unrolls[..., None, None] * places.size + places
        return keys.astype(np.uint64) + np.uint64(self.source << _SOURCE_BITS)


class Inserter:
    """Inserts unrolls of `environments` environments; every window goes into every table.

    A window is `chunks_per_window` chunks of one environment, of consecutive unrolls. Its key follows from
    `source` (whose environments these are), the unroll's number, the environment and the table: sent again,
    by whomever, it counts once. Not thread-safe; waits locally, so every call ends: with `ReplayTimeout`
    after `timeout_s` seconds without a confirmation, `ReplayUnavailable` when the server is gone,
    `ReplayStopped` when `should_stop` says so. After an error the inserter is spent.
    """

    def __init__(
        self,
        address: str,
        tables: Sequence[str],
        chunks_per_window: int,
        environments: int,
        *,
        source: int = 0,
        timeout_s: float = 60.0,
        should_stop: ShouldStop = None,
        audit: Callable[[Sequence[int]], object] | None = None,
        paused: Callable[[], bool] = lambda: False,
    ) -> None:
        """`audit` gets the keys that the server confirms; while `paused()` says so, no wait is too long. Raises
        `ValueError`, `ReplayUnavailable`, `ReplayMismatch` (a table is missing at `address`).
        """
        if not tables or len(set(tables)) != len(tables):
            raise ValueError(f"tables: one or more different names are needed, not {list(tables)}")
        if chunks_per_window < 1 or environments < 1:
            raise ValueError("chunks_per_window and environments must be positive")
        if not 0 <= source < 2 ** (64 - _SOURCE_BITS):
            raise ValueError(f"source: {source} is not within 0..{2 ** (64 - _SOURCE_BITS) - 1}")
        self._keys = Keys(source, environments, len(tables))
        self._chunks = chunks_per_window
        self._windows = no_windows(environments)
        self._timeout_s = timeout_s
        self._should_stop = should_stop
        self._shape: tuple[int, int] | None = None  # (T, F), fixed by the first unroll
        check_tables(server_info(address, CONNECT_TIMEOUT_S), tables, address)
        self._channel = open_channel(address)
        streams = math.ceil(environments * (chunks_per_window - 1) / MOST_KEPT_CHUNKS)
        ends = np.linspace(0, environments, min(max(streams, 1), environments) + 1, dtype=int).tolist()
        self._shares = [slice(start, end) for start, end in pairwise(ends)]
        self._streams = [
            _Stream(self._channel, address, tuple(tables), share.stop - share.start, audit, paused)
            for share in self._shares
        ]

    def insert(self, columns: Columns, number: int | None = None, *, windows: bool = True) -> float:
        """Unroll `number`: `floats` `[N, T, F]` float32, `ints` `[N, T, 3]` int32, numpy. Returns the seconds waited.

        T and F are those of the first call; `number` None: the one after the last. No window spans a gap in the
        numbers, or a void chunk. Without `windows` the unroll is only there for later ones to begin with. Copies:
        the arrays may be reused when it returns.
        """
        floats, ints = self._checked(columns)
        number = self._windows.number + 1 if number is None else number
        self._windows = self._windows.after(number, ints, self._chunks)
        keys = self._keys.of(np.arange(number - self._chunks, number) + 1)
        waited_s = 0.0
        for mine, stream in zip(self._shares, self._streams, strict=True):
            request, message = stream.prepare(
                floats[mine], ints[mine], number, keys[:, mine], self._windows.run[mine], windows
            )
            waited_s += stream.wait(MESSAGES_IN_FLIGHT - 1, self._timeout_s, self._should_stop)
            stream.send(request, message)
        return waited_s

    def flush(self, timeout_s: float) -> float:
        """Waits until every window is confirmed; `timeout_s` as in the constructor. Returns the wait (s)."""
        return sum(stream.wait(0, timeout_s, self._should_stop) for stream in self._streams)

    @property
    def room(self) -> bool:
        """Whether an unroll would go through without a wait."""
        return all(stream.in_flight < MESSAGES_IN_FLIGHT for stream in self._streams)

    @property
    def in_flight(self) -> int:
        """Messages, one for each unroll and stream, that the server owes a confirmation of."""
        return sum(stream.in_flight for stream in self._streams)

    @property
    def confirmed(self) -> dict[str, int]:
        """Windows that the server confirmed, by table."""
        total: Counter[str] = Counter()
        for stream in self._streams:
            total.update(stream.confirmed())
        return dict(total)

    def close(self) -> None:
        """Ends the streams without waiting for confirmations (see `flush`). Bounded; may be called twice."""
        for stream in self._streams:
            stream.close()
        self._channel.close()
        for stream in self._streams:
            stream.join(CLOSE_WAIT_S)

    def _checked(self, columns: Columns) -> tuple[np.ndarray, np.ndarray]:
        """The server checks next to nothing, so what is wrong must be found here."""
        floats, ints = np.asarray(columns.floats), np.asarray(columns.ints)
        for name, array, dtype in (("floats", floats, np.float32), ("ints", ints, np.int32)):
            if array.dtype != dtype:
                raise ValueError(f"{name}: {np.dtype(dtype)} is needed, not {array.dtype}")
            if array.ndim != 3 or array.shape[0] != self._keys.environments or 0 in array.shape:
                raise ValueError(f"{name}: [{self._keys.environments}, T, ...] is needed, not {list(array.shape)}")
        if ints.shape != (*floats.shape[:2], INT_COLUMNS):
            wanted = [*floats.shape[:2], INT_COLUMNS]
            raise ValueError(f"ints: {wanted} is needed beside floats, not {list(ints.shape)}")
        shape = (floats.shape[1], floats.shape[2])
        if self._shape is not None and shape != self._shape:
            raise ValueError(f"floats: [T, F] was {list(self._shape)} before and is {list(shape)} now")
        self._shape = shape
        return np.ascontiguousarray(floats), np.ascontiguousarray(ints)


class _Stream:
    """One InsertStream: the chunks of some environments, with their items for all tables."""

    def __init__(
        self,
        channel: grpc.Channel,
        address: str,
        tables: tuple[str, ...],
        environments: int,
        audit: Callable[[Sequence[int]], object] | None,
        paused: Callable[[], bool],
    ) -> None:
        self._address = address
        self._audit, self._paused = audit, paused
        self._tables = tables
        self._episode_ids = np.frombuffer(secrets.token_bytes(8 * environments), np.uint64)
        self._changed = threading.Condition()
        self._in_flight: deque[_Message] = deque()
        self._owners: dict[int, tuple[_Message, str]] = {}  # unconfirmed item key -> its message and table
        self._confirmed: Counter[str] = Counter(dict.fromkeys(tables, 0))
        self._last_confirmation = time.monotonic()
        self._error: ReplayError | None = None
        self._closed = False
        self._requests: queue.SimpleQueue[tuple[bytes, _Message] | None] = queue.SimpleQueue()
        self._call = channel.stream_stream(INSERT_STREAM, bytes, pb.InsertStreamResponse.FromString)(self._outgoing())
        self._reader = threading.Thread(target=self._read, name="replay-insert", daemon=True)
        self._reader.start()

    def prepare(
        self, floats: np.ndarray, ints: np.ndarray, number: int, keys: np.ndarray, run: np.ndarray, windows: bool
    ) -> tuple[bytes, _Message]:
        """Unroll `number`, `[n, T, F]` and `[n, T, 3]`, as a serialised request and its account.

        `keys` `[K, n, 1 + tables]` of the last K unrolls, `run` `[n]` as `WindowCount` has it after this one; see
        `Inserter.insert` for `windows`.
        """
        steps, chunks = floats.shape[1], keys[..., 0].T
        there = np.flatnonzero(run)
        columns = (floats, ints) if len(there) == len(run) else (floats[there], ints[there])
        parts = [wire.chunks(chunks[there, -1], columns, self._episode_ids[there], number * steps)]
        message = _Message({table: set() for table in self._tables})
        whole = np.flatnonzero((run >= len(keys)) & windows)
        trajectories = wire.trajectories(chunks[whole], steps, len(columns))
        for table, item_keys in zip(self._tables, keys[-1, whole, 1:].T, strict=True):
            parts.append(wire.items(table, item_keys, trajectories))
            message.unconfirmed[table].update(item_keys.tolist())
        # What the next window will refer to; all of it while the first one is still growing.
        kept = np.arange(len(keys)) >= np.maximum(len(keys) - run, 1)[:, None]
        return b"".join((*parts, wire.keep_chunk_keys(chunks[kept]))), message

    def wait(self, most: int, timeout_s: float, should_stop: ShouldStop) -> float:
        """Until at most `most` messages are in flight. Returns the seconds waited."""
        started = since = time.monotonic()
        with self._changed:
            while True:
                if self._error is not None:
                    raise self._error
                if self._closed:
                    raise ReplayStopped("the inserter is closed")
                if len(self._in_flight) <= most:
                    return time.monotonic() - started
                if stop_requested(should_stop):
                    raise ReplayStopped("asked to stop while waiting for the replay server's confirmations")
                if self._paused():
                    since = time.monotonic()
                left_s = max(since, self._last_confirmation) + timeout_s - time.monotonic()
                if left_s <= 0:
                    raise ReplayTimeout(self._timeout_text(timeout_s))
                self._changed.wait(min(WAIT_SLICE_S, left_s))

    def send(self, request: bytes, message: _Message) -> None:
        with self._changed:
            self._in_flight.append(message)
            for table, keys in message.unconfirmed.items():
                self._owners.update(dict.fromkeys(keys, (message, table)))
        self._requests.put((request, message))

    @property
    def in_flight(self) -> int:
        return len(self._in_flight)

    def confirmed(self) -> dict[str, int]:
        with self._changed:
            return dict(self._confirmed)

    def close(self) -> None:
        with self._changed:
            self._closed = True
        self._requests.put(None)
        self._call.cancel()

    def join(self, timeout_s: float) -> None:
        self._reader.join(timeout_s)

    def _outgoing(self) -> Iterator[bytes]:
        """Requests for gRPC, whose own thread pulls the next one when the last one was taken."""
        while (entry := self._requests.get()) is not None:
            request, message = entry
            yield request
            with self._changed:
                message.handed_over = True
                self._settle()

    def _read(self) -> None:
        """Collects confirmations until the stream ends, then says why it ended."""
        try:
            for response in self._call:
                if self._audit is not None:
                    self._audit(response.keys)
                with self._changed:
                    for key in response.keys:
                        self._confirm(key)
                    self._settle()
            error = ReplayError(f"the replay server at {self._address} ended the insert stream")
        except grpc.RpcError as broken:
            error = named_error(broken, self._address, "inserting")
        with self._changed:
            if not self._closed:
                self._error = error
            self._changed.notify_all()
        self._requests.put(None)

    def _confirm(self, key: int) -> None:
        message, table = self._owners.pop(key, (None, ""))
        if message is not None:
            message.unconfirmed[table].discard(key)
            self._confirmed[table] += 1
            self._last_confirmation = time.monotonic()

    def _settle(self) -> None:
        """Drops what is done from the front; a message is done when every table has all its windows."""
        while self._in_flight and self._in_flight[0].handed_over and not any(self._in_flight[0].unconfirmed.values()):
            self._in_flight.popleft()
        self._changed.notify_all()

    def _timeout_text(self, timeout_s: float) -> str:
        owed = {t: sum(len(m.unconfirmed[t]) for m in self._in_flight) for t in self._tables}
        behind = max(owed, key=lambda table: owed[table])
        counts = ", ".join(f"{t}: {self._confirmed[t]} confirmed, {owed[t]} waiting" for t in self._tables)
        return (
            f"no insert was confirmed by the replay server at {self._address} for {timeout_s:g} s;"
            f" table {behind} is behind ({counts})"
        )
