"""Insert client: unrolls go in, and the server confirms their windows in all tables."""

import math
import queue
import secrets
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise, product
from typing import Any, NamedTuple

import grpc
import numpy as np
from numpy.typing import ArrayLike

from shared.replay import reverb_pb2 as pb
from shared.replay import wire
from shared.replay.channel import (
    CONNECT_TIMEOUT_S,
    INSERT_STREAM,
    BackgroundClient,
    ShouldStop,
    named_error,
    open_channel,
)
from shared.replay.codec import Columns, on_host
from shared.replay.errors import ReplayError
from shared.replay.info import check_tables, server_info
from shared.replay.windows import no_windows

# A message's cost in the server grows with the square of the chunks that its stream keeps: 2 ms at 4,096, 12 ms at
# 8,192. Fewer streams are fewer messages.
MOST_KEPT_CHUNKS = 4096
# One that the server writes into its tables, one on its way. More would let a fast table run ahead of a slow one.
MESSAGES_IN_FLIGHT = 2
CLOSE_WAIT_S = 5.0
_SOURCE_BITS = 48  # a key is a source and a number below 2**48: 25 years of inserts at 400,000 a second


@dataclass
class _Unroll:
    """An unroll that the server has yet to confirm."""

    unsent: int  # messages, one for each stream, that gRPC has yet to take
    unconfirmed: dict[int, str]  # tables of the items that the server has yet to confirm, by key


class _Stream(NamedTuple):
    """An InsertStream, which carries the chunks of some environments and their items for all tables."""

    requests: queue.SimpleQueue[tuple[bytes, _Unroll] | None]
    call: grpc.Call
    reader: threading.Thread


class Keys(NamedTuple):
    """Keys of the chunks and windows of one source's environments; each window is an item in each table."""

    source: int
    environments: int
    tables: int

    def of(self, numbers: ArrayLike) -> np.ndarray:
        """Returns the keys of unrolls `numbers` `[...]`: `[..., N, 1 + tables]` uint64, a chunk's, then its items'.

        Raises ValueError if no keys are left.
        """
        unrolls, kinds = np.asarray(numbers, np.int64), 1 + self.tables
        if (int(unrolls.max()) + 1) * self.environments * kinds > 2**_SOURCE_BITS:
            raise ValueError(f"unroll {unrolls.max()}: there are no keys left for {self.environments} environments")
        places = np.arange(self.environments * kinds).reshape(self.environments, kinds)
        keys = unrolls[..., None, None] * places.size + places
        return keys.astype(np.uint64) + np.uint64(self.source << _SOURCE_BITS)


class Inserter(BackgroundClient):
    """Inserts unrolls of `environments` environments; every window goes into every table.

    A window is `chunks_per_window` chunks of one environment, of consecutive unrolls. Its key follows from `source`,
    the unroll's number, the environment and the table, so a window that is sent again counts once.

    Not thread-safe. Every call ends: with `ReplayTimeout` after `timeout_s` seconds without a confirmation, with
    `ReplayUnavailable` if the server is gone, with `ReplayStopped` after `should_stop`. After an error, make a new
    inserter.
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
        """Connects. `audit` gets the keys that the server confirms; time-outs do not count while `paused()` is true.

        Raises `ValueError`, `ReplayUnavailable`, or `ReplayMismatch` if a table is missing at `address`.
        """
        if not tables or len(set(tables)) != len(tables):
            raise ValueError(f"tables: one or more different names are needed, not {list(tables)}")
        if chunks_per_window < 1 or environments < 1:
            raise ValueError("chunks_per_window and environments must be positive")
        if not 0 <= source < 2 ** (64 - _SOURCE_BITS):
            raise ValueError(f"source: {source} is not within 0..{2 ** (64 - _SOURCE_BITS) - 1}")
        super().__init__("the replay server's confirmations", paused)
        self._address, self._tables, self._audit = address, tables, audit
        self._timeout_s, self._should_stop = timeout_s, should_stop
        # Of this connection alone: its server may lack chunks that the source made before.
        self._chunks, self._windows = chunks_per_window, no_windows(environments)
        self._keys = Keys(source, environments, len(tables))
        self._episode_ids = np.frombuffer(secrets.token_bytes(8 * environments), np.uint64)
        self._shape: tuple[int, ...] = (environments,)  # (N, T, F) from the first unroll on
        self._in_flight: deque[_Unroll] = deque()
        self._confirmed: Counter[str] = Counter()  # windows by table
        check_tables(server_info(address, CONNECT_TIMEOUT_S), tables, address)
        self._channel = open_channel(address)
        num_streams = math.ceil(environments * (chunks_per_window - 1) / MOST_KEPT_CHUNKS)
        ends = np.linspace(0, environments, min(max(num_streams, 1), environments) + 1, dtype=int).tolist()
        self._shares = [slice(start, end) for start, end in pairwise(ends)]
        self._streams = [self._open_stream() for _ in self._shares]

    def insert(self, columns: Columns, number: int | None = None, *, windows: bool = True) -> None:
        """Inserts unroll `number`, or the one after the last: `floats` `[N, T, F]`, `ints` `[N, T, 4]`.

        The arrays may be reused at once. No window spans a gap in the numbers, or a void chunk. Without `windows` the
        unroll completes no window, but is part of later ones. Raises `ValueError` for other types or shapes than the
        first unroll's, and for a number that does not grow.
        """
        arrays = on_host(columns, *self._shape)
        self._shape = arrays[0].shape
        number = self._windows.number + 1 if number is None else number
        self._windows = self._windows.after(number, arrays[1], self._chunks)
        keys = self._keys.of(np.arange(number - self._chunks, number) + 1)
        unroll = _Unroll(0, {})
        requests = [self._request(unroll, arrays, number, keys, windows, share) for share in self._shares]
        unroll.unsent = sum(map(bool, requests))
        self._wait_for_room(MESSAGES_IN_FLIGHT - 1, self._timeout_s)
        with self._changed:
            self._in_flight.append(unroll)
            self._drop_confirmed()  # nothing is sent of void chunks alone
        for stream, request in zip(self._streams, requests, strict=True):
            if request:
                stream.requests.put((request, unroll))

    def flush(self, timeout_s: float) -> None:
        """Waits until every window is confirmed; `timeout_s` as in the constructor."""
        self._wait_for_room(0, timeout_s)

    @property
    def room(self) -> bool:
        """True if the next insert would not wait."""
        return len(self._in_flight) < MESSAGES_IN_FLIGHT

    @property
    def in_flight(self) -> int:
        """Number of messages, one for each stream, of the unrolls that the server has yet to confirm."""
        return len(self._in_flight) * len(self._streams)

    def close(self) -> None:
        """Ends the streams without a wait for confirmations (see `flush`). Bounded; may be called twice."""
        with self._changed:
            self._closed = True
        for stream in self._streams:
            stream.requests.put(None)
            stream.call.cancel()
        self._channel.close()
        for stream in self._streams:
            stream.reader.join(CLOSE_WAIT_S)

    def _request(
        self, unroll: _Unroll, arrays: list[np.ndarray], number: int, keys: np.ndarray, windows: bool, share: slice
    ) -> bytes:
        """Returns the serialised request for a share of the environments, whose items it adds to `unroll`.

        It is empty if all chunks of the share are void: the server refuses requests without a chunk.

        `keys` `[K, N, 1 + tables]` are those of the last K unrolls, `arrays` `[N, T, ...]` the columns of the newest.
        """
        keys, run = keys[:, share], self._windows.run[share]
        steps, chunks = arrays[0].shape[1], keys[..., 0].T
        there, whole = np.flatnonzero(run), np.flatnonzero((run >= len(keys)) & windows)
        if not there.size:
            return b""
        # A slice is a view, and costs no copy.
        columns = [array[share] if len(there) == len(run) else array[share][there] for array in arrays]
        trajectories = wire.trajectories(chunks[whole], steps, len(columns))
        episode_ids = self._episode_ids[share][there]
        parts: list[bytes | memoryview] = [wire.chunks(chunks[there, -1], columns, episode_ids, number * steps)]
        for table, item_keys in zip(self._tables, keys[-1, whole, 1:].T, strict=True):
            parts.append(wire.items(table, item_keys, trajectories))
            unroll.unconfirmed.update(dict.fromkeys(item_keys.tolist(), table))
        # Chunks to which the next window refers; all of it while the first one is still growing.
        kept = np.arange(len(keys)) >= np.maximum(len(keys) - run, 1)[:, None]
        return b"".join((*parts, wire.keep_chunk_keys(chunks[kept])))

    def _wait_for_room(self, most: int, timeout_s: float) -> None:
        """Waits until at most `most` unrolls are in flight."""
        self._wait(
            lambda: self._error is None and not self._closed and len(self._in_flight) <= most,
            self._should_stop,
            timeout_s,
        )

    def _open_stream(self) -> _Stream:
        requests: queue.SimpleQueue[tuple[bytes, _Unroll] | None] = queue.SimpleQueue()
        method = self._channel.stream_stream(INSERT_STREAM, bytes, pb.InsertStreamResponse.FromString)
        call = method(self._outgoing(requests))
        reader = threading.Thread(target=self._read, args=(call, requests), name="replay-insert", daemon=True)
        reader.start()
        return _Stream(requests, call, reader)

    def _outgoing(self, requests: queue.SimpleQueue) -> Iterator[bytes]:
        """Yields requests to gRPC, whose thread asks for the next one once it took the last."""
        while (entry := requests.get()) is not None:
            request, unroll = entry
            yield request
            with self._changed:
                unroll.unsent -= 1
                self._drop_confirmed()

    def _read(self, call: Any, requests: queue.SimpleQueue) -> None:
        """Collects confirmations until the stream ends, and keeps the reason for its end."""
        try:
            for response in call:
                if self._audit is not None:
                    self._audit(response.keys)
                with self._changed:
                    for unroll, key in product(self._in_flight, response.keys):
                        if (table := unroll.unconfirmed.pop(key, None)) is not None:
                            self._confirmed[table] += 1
                            self._last_progress = time.monotonic()
                    self._drop_confirmed()
            error = ReplayError(f"the replay server at {self._address} ended the insert stream")
        except grpc.RpcError as broken:
            error = named_error(broken, self._address, "inserting")
        with self._changed:
            if not self._closed:
                self._error = error
            self._changed.notify_all()
        requests.put(None)

    def _drop_confirmed(self) -> None:
        """Drops unrolls that gRPC took and every table has confirmed, the oldest first."""
        while self._in_flight and not self._in_flight[0].unsent and not self._in_flight[0].unconfirmed:
            self._in_flight.popleft()
        self._changed.notify_all()

    def _timeout_text(self, timeout_s: float) -> str:
        waiting = Counter(table for unroll in self._in_flight for table in unroll.unconfirmed.values())
        behind = max(self._tables, key=lambda table: waiting[table])
        counts = ", ".join(f"{t}: {self._confirmed[t]} confirmed, {waiting[t]} waiting" for t in self._tables)
        return (
            f"no insert was confirmed by the replay server at {self._address} for {timeout_s:g} s;"
            f" table {behind} is behind ({counts})"
        )
