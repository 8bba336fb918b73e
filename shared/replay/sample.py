"""The sample client: a thread that keeps batches of windows coming."""

import queue
import threading
import time
from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

import grpc
import numpy as np

from shared.replay import reverb_pb2 as pb
from shared.replay import wire
from shared.replay.channel import (
    CONNECT_TIMEOUT_S,
    SAMPLE_STREAM,
    WAIT_SLICE_S,
    ShouldStop,
    named_error,
    open_channel,
    stop_requested,
)
from shared.replay.codec import INT_COLUMNS, Columns
from shared.replay.errors import ReplayError, ReplayExhausted, ReplayStopped, ReplayTimeout
from shared.replay.info import check_tables, server_info

# One batch being trained on or decoded, one on its way; what a learner leaves unused when it stops.
REQUESTS_OUTSTANDING = 2
# Finite always: a cancelled stream's waiting request still takes windows, which then reach nobody.
RATE_LIMITER_TIMEOUT_S = 3.0
CLOSE_WAIT_S = 5.0
REOPEN_PAUSE_S = 0.05  # a server that ends every stream at once must not keep a core busy
# A window may come with chunks that hold more than its rows, and every part of it waits in memory for the last one.
SPARE_BYTES = 2**26

X = TypeVar("X")


class Sampler(Generic[X]):
    """Batches of `num_windows` sampled windows of `window_rows` rows, ready when the learner asks.

    The thread decodes every batch into the same host buffers and calls `transfer(columns)` there, with
    `floats` `[B, K*T, F]` float32 and `ints` `[B, K*T, 3]` int32. `transfer` must have copied all of it when
    it returns: wait for a device put, and mind that JAX on a CPU may alias numpy arrays instead of copying.

    At most two batches are asked for and not yet handed out by `sample`; no more than `max_windows` windows
    (a multiple of B) are ever asked for.
    """

    def __init__(
        self,
        address: str,
        table: str,
        num_windows: int,
        window_rows: int,
        num_floats: int,
        transfer: Callable[[Columns], X],
        *,
        timeout_s: float = 60.0,
        max_windows: int | None = None,
        paused: Callable[[], bool] = lambda: False,
    ) -> None:
        """While `paused()` says so, no wait is too long.

        Raises `ValueError`, `ReplayUnavailable`, `ReplayMismatch` (no such table at `address`).
        """
        if min(num_windows, window_rows, num_floats) < 1:
            raise ValueError("num_windows, window_rows and num_floats must be positive")
        if max_windows is not None and max_windows % num_windows:
            raise ValueError(f"max_windows: {max_windows} is no multiple of {num_windows} windows a batch")
        self._address = address
        self._table = table
        self._num_windows = num_windows
        self._batches_left = None if max_windows is None else max_windows // num_windows
        self._transfer = transfer
        self._timeout_s, self._paused = timeout_s, paused
        self._floats = np.empty((num_windows, window_rows, num_floats), np.float32)
        self._ints = np.empty((num_windows, window_rows, INT_COLUMNS), np.int32)
        self._filled = 0  # windows in the buffers
        self._most_bytes = SPARE_BYTES + 4 * (self._floats[0].nbytes + self._ints[0].nbytes)
        self._changed = threading.Condition()
        self._ready: list[X] = []
        self._batches_asked = 0  # asked for and not yet handed out; the permit to ask the server for more
        self._received = 0
        self._last_arrival = time.monotonic()
        self._error: Exception | None = None
        self._closed = False
        self._stream: _Stream | None = None
        check_tables(server_info(address, CONNECT_TIMEOUT_S), [table], address)
        self._channel = open_channel(address)
        self._thread = threading.Thread(target=self._run, name="replay-sample", daemon=True)
        self._thread.start()

    def sample(self, should_stop: ShouldStop = None) -> tuple[X, float]:
        """The next batch as `transfer` returned it, and the seconds waited for it.

        Raises `ReplayTimeout` (no window arrived for `timeout_s` seconds), `ReplayUnavailable`,
        `ReplayStopped`, `ReplayExhausted` (all of `max_windows` were handed out), or what `transfer` raised.
        """
        started = since = time.monotonic()
        with self._changed:
            while not self._ready:
                if self._error is not None:
                    raise self._error
                if self._closed:
                    raise ReplayStopped("the sampler is closed")
                if self._batches_left == 0 and self._batches_asked == 0:
                    raise ReplayExhausted(f"all windows that {self._table} was to give were handed out")
                if stop_requested(should_stop):
                    raise ReplayStopped(f"asked to stop while waiting for windows from {self._table}")
                if self._paused():
                    since = time.monotonic()
                left_s = max(since, self._last_arrival) + self._timeout_s - time.monotonic()
                if left_s <= 0:
                    raise ReplayTimeout(
                        f"no window arrived from table {self._table} at {self._address} for"
                        f" {self._timeout_s:g} s ({self._received} before)"
                    )
                self._changed.wait(min(WAIT_SLICE_S, left_s))
            batch = self._ready.pop(0)
            self._batches_asked -= 1
            self._ask_for_more()
            return batch, time.monotonic() - started

    @property
    def windows_received(self) -> int:
        """Windows that arrived so far; up to two batches of them were not handed out yet."""
        with self._changed:
            return self._received

    @property
    def batches_ready(self) -> int:
        """Decoded and not handed out yet."""
        return len(self._ready)

    def leave(self) -> list[X]:
        """After `close`: batches that arrived and were not handed out."""
        with self._changed:
            left, self._ready = self._ready, []
            return left

    def close(self) -> None:
        """Ends the stream and the thread. Bounded; may be called twice."""
        with self._changed:
            self._closed = True
            if self._stream is not None:
                self._stream.cancel()
            self._changed.notify_all()
        self._channel.close()
        self._thread.join(CLOSE_WAIT_S)

    def _run(self) -> None:
        """The thread: one stream after the other, until closed, exhausted or broken."""
        try:
            while self._open_stream():
                self._receive()
                with self._changed:
                    self._changed.wait(REOPEN_PAUSE_S)
        except Exception as error:  # noqa: BLE001 - whatever ends the thread must reach the learner
            with self._changed:
                self._error = error
                self._changed.notify_all()

    def _open_stream(self) -> bool:
        """Opens a stream that is asked for everything still missing; False when nothing more will be."""
        with self._changed:
            if self._closed:
                return False
            stream = _Stream(self._channel, self._table)
            self._stream = stream
            # Of the batches asked for, those decoded are in `_ready`, and one may be in the buffers in part.
            missing = self._batches_asked - len(self._ready)
            for number in range(missing):
                stream.ask(self._num_windows - (self._filled if number == 0 else 0))
            self._ask_for_more()
            return bool(self._batches_asked or self._batches_left != 0)

    def _ask_for_more(self) -> None:
        """Asks for as many batches as are permitted. Holds the lock."""
        while self._stream is not None and self._batches_asked < REQUESTS_OUTSTANDING:
            if self._batches_left == 0:
                return
            if self._batches_left is not None:
                self._batches_left -= 1
            self._batches_asked += 1
            self._stream.ask(self._num_windows)

    def _receive(self) -> None:
        """Takes windows until the stream ends. A rate-limiter time-out is a normal end; others raise."""
        assert self._stream is not None
        chunks: dict[int, pb.ChunkData] = {}
        window: pb.FlatTrajectory | None = None
        held_bytes = 0
        try:
            for size, response in self._stream.call:
                held_bytes += size
                if held_bytes > self._most_bytes:
                    raise wire.WireError(f"a window of {self._table} does not end after {held_bytes} bytes")
                for entry in response.entries:
                    if entry.info.HasField("item"):
                        window = entry.info.item.flat_trajectory
                    chunks.update((chunk.chunk_key, chunk) for chunk in entry.data)
                    if entry.end_of_sequence:
                        self._take(window, chunks)
                        chunks, window, held_bytes = {}, None, 0
            raise ReplayError(f"the replay server at {self._address} ended the sample stream")
        except grpc.RpcError as error:
            with self._changed:
                if self._closed:
                    return
            timed_out = isinstance(error, grpc.Call) and error.code() is grpc.StatusCode.DEADLINE_EXCEEDED
            if not timed_out:
                raise named_error(error, self._address, f"sampling from {self._table}") from error
        finally:
            self._stream.cancel()

    def _take(self, window: pb.FlatTrajectory | None, chunks: dict[int, pb.ChunkData]) -> None:
        """One whole window into the buffers; a full batch onwards to the learner."""
        if window is None:
            raise wire.WireError(f"a sample of {self._table} came without its item")
        with self._changed:
            if self._batches_asked == len(self._ready):
                raise wire.WireError(f"{self._table} gave a window that nobody asked for")
        wire.read_window(window, chunks, (self._floats[self._filled], self._ints[self._filled]))
        self._filled += 1
        with self._changed:
            self._received += 1
            self._last_arrival = time.monotonic()
        if self._filled == self._num_windows:
            batch = self._transfer(Columns(self._floats, self._ints))
            with self._changed:
                self._filled = 0
                self._ready.append(batch)
                self._changed.notify_all()


class _Stream:
    """One SampleStream and the requests on it."""

    def __init__(self, channel: grpc.Channel, table: str) -> None:
        self._table = table
        self._requests: queue.SimpleQueue[int | None] = queue.SimpleQueue()
        self.call = channel.stream_stream(SAMPLE_STREAM, pb.SampleStreamRequest.SerializeToString, _with_size)(
            self._outgoing()
        )

    def ask(self, windows: int) -> None:
        self._requests.put(windows)

    def cancel(self) -> None:
        """Ends the call, and the thread in which gRPC waits for requests."""
        self.call.cancel()
        self._requests.put(None)

    def _outgoing(self) -> Iterator[pb.SampleStreamRequest]:
        timeout = pb.Timeout(milliseconds=int(RATE_LIMITER_TIMEOUT_S * 1000))
        while (windows := self._requests.get()) is not None:
            yield pb.SampleStreamRequest(table=self._table, num_samples=windows, rate_limiter_timeout=timeout)


def _with_size(content: bytes) -> tuple[int, pb.SampleStreamResponse]:
    """A response and its bytes, which cost nothing to count here."""
    return len(content), pb.SampleStreamResponse.FromString(content)
