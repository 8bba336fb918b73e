"""Sample client: a thread that keeps batches of windows ready."""

import math
import threading
import time
from collections.abc import Callable
from typing import Generic, TypeVar

import grpc
import numpy as np

from shared.replay import reverb_pb2 as pb
from shared.replay.channel import CONNECT_TIMEOUT_S, SAMPLE_STREAM, BackgroundClient, ShouldStop, status_error
from shared.replay.codec import INT_COLUMNS, Columns
from shared.replay.errors import ReplayError, ReplayExhausted
from shared.replay.http2 import CallEnded, StreamingCall
from shared.replay.info import check_tables, server_info
from shared.replay.response import PartialWindow, read_entries
from shared.replay.wire import WireError

# One batch that is trained on or decoded, one on its way; they stay unused when a learner stops.
REQUESTS_OUTSTANDING = 2
# Finite always: a cancelled stream's waiting request still takes windows, which then reach nobody.
RATE_LIMITER_TIMEOUT_S = 3.0
CLOSE_WAIT_S = 5.0
REOPEN_PAUSE_S = 0.05  # keeps a core idle if the server ends every stream at once
# A window may come with chunks that hold more than its rows.
SPARE_BYTES = 2**26

X = TypeVar("X")


class Sampler(BackgroundClient, Generic[X]):
    """Batches of `num_windows` sampled windows of `window_rows` rows, ready when the learner asks.

    `start`, or the first `sample`, starts a thread; nothing is requested before. The thread decodes every batch into
    the same host buffers and calls `transfer(columns)` there, with `floats` `[B, K*T, F]` float32 and `ints`
    `[B, K*T, 4]` int32. `transfer` must have copied all of it when it returns: wait for a device put, and mind that JAX
    on a CPU may alias numpy arrays instead of copying.

    At most two batches are requested and not yet returned by `sample`; no more than `max_windows` windows
    (a multiple of B) are ever requested.
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
        """Connects. Time-outs do not count while `paused()` is true.

        Raises `ValueError`, `ReplayUnavailable`, or `ReplayMismatch` if there is no such table at `address`.
        """
        if min(num_windows, window_rows, num_floats) < 1:
            raise ValueError("num_windows, window_rows and num_floats must be positive")
        if max_windows is not None and max_windows % num_windows:
            raise ValueError(f"max_windows: {max_windows} is no multiple of {num_windows} windows a batch")
        self._address, self._table, self._timeout_s = address, table, timeout_s
        self._num_windows, self._transfer = num_windows, transfer
        self._batches_left = math.inf if max_windows is None else max_windows // num_windows
        self._floats = np.empty((num_windows, window_rows, num_floats), np.float32)
        self._ints = np.empty((num_windows, window_rows, INT_COLUMNS), np.int32)
        self._filled = 0  # windows in the buffers
        self._most_bytes = SPARE_BYTES + 4 * (self._floats[0].nbytes + self._ints[0].nbytes)
        super().__init__(f"windows from {table}", paused)
        self._ready: list[X] = []
        self._batches_asked = 0  # requested and not yet returned by `sample`
        self._received = 0
        self._stream: _Stream | None = None
        check_tables(server_info(address, CONNECT_TIMEOUT_S), [table], address)
        self._thread = threading.Thread(target=self._run, name="replay-sample", daemon=True)

    def sample(self, should_stop: ShouldStop = None) -> tuple[X, float]:
        """Returns the next batch, as `transfer` returned it, and the seconds waited for it.

        Raises `ReplayTimeout` (no window arrived for `timeout_s` seconds), `ReplayUnavailable`,
        `ReplayStopped`, `ReplayExhausted` (all of `max_windows` were returned), or the error that `transfer` raised.
        """
        with self._changed:
            self.start()
            waited_s = self._wait(self._has_batch, should_stop, self._timeout_s)
            batch = self._ready.pop(0)
            self._batches_asked -= 1
            self._ask_for_more()
            return batch, waited_s

    def start(self) -> None:
        """Begins to request windows, where `sample` has not done so."""
        with self._changed:
            if self._thread.ident is None:
                self._thread.start()

    @property
    def windows_received(self) -> int:
        """Number of windows that arrived; `sample` has yet to return up to two batches of them."""
        return self._received

    @property
    def batches_ready(self) -> int:
        """Number of batches that are decoded and that `sample` has yet to return."""
        return len(self._ready)

    def leave(self) -> list[X]:
        """Returns, after `close`, the batches that arrived and that `sample` did not return."""
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
        if self._thread.ident is not None:
            self._thread.join(CLOSE_WAIT_S)

    def _has_batch(self) -> bool:
        if self._batches_left + self._batches_asked == 0:
            raise ReplayExhausted(f"all windows that {self._table} was to give were handed out")
        return bool(self._ready)

    def _timeout_text(self, timeout_s: float) -> str:
        where = f"table {self._table} at {self._address}"
        return f"no window arrived from {where} for {timeout_s:g} s ({self._received} before)"

    def _run(self) -> None:
        """Receives from one stream after the other, until closed, exhausted or broken."""
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
        """Opens a stream and requests on it what is missing; returns False once nothing more is needed."""
        with self._changed:
            if self._closed or self._batches_asked + self._batches_left == 0:
                return False
        try:
            stream = _Stream(self._address, self._table)
        except CallEnded as end:
            raise self._named(end) from end
        with self._changed:
            self._stream = stream
            if self._closed:
                stream.cancel()
            # `_ready` holds the batches that are decoded; the next one may be in the buffers in part.
            for number in range(self._batches_asked - len(self._ready)):
                stream.ask(self._num_windows - (self._filled if number == 0 else 0))
            self._ask_for_more()
            return True

    def _ask_for_more(self) -> None:
        """Requests as many batches as are permitted. Needs the lock."""
        while self._stream is not None and self._batches_asked < REQUESTS_OUTSTANDING and self._batches_left:
            self._batches_left -= 1
            self._batches_asked += 1
            self._stream.ask(self._num_windows)

    def _receive(self) -> None:
        """Receives windows until the stream ends. A rate limiter's time-out is a normal end; others raise."""
        assert self._stream is not None
        window: PartialWindow | None = None
        window_bytes = 0
        try:
            while True:
                response = self._stream.receive()
                window_bytes += len(response)
                if window_bytes > self._most_bytes:
                    raise WireError(f"a window of {self._table} does not end after {window_bytes} bytes")
                for entry in read_entries(response):
                    if entry.item is not None:
                        window = self._begin(entry.item)
                    if window is None:
                        raise WireError(f"a sample of {self._table} came without its item")
                    for chunk in entry.chunks:
                        window.write(chunk)
                    if entry.ends:
                        window.finish()
                        window, window_bytes = None, 0
                        self._count_window()
        except CallEnded as end:
            if end.code is grpc.StatusCode.OK:
                raise ReplayError(f"the replay server at {self._address} ended the sample stream") from end
            if end.code is not grpc.StatusCode.DEADLINE_EXCEEDED and not self._closed:
                raise self._named(end) from end
        finally:
            self._stream.close()

    def _begin(self, item: pb.FlatTrajectory) -> PartialWindow:
        """Returns a window that is decoded into the next place of the buffers."""
        with self._changed:
            if self._batches_asked == len(self._ready):
                raise WireError(f"{self._table} gave a window that was not requested")
        return PartialWindow(item, (self._floats[self._filled], self._ints[self._filled]))

    def _count_window(self) -> None:
        """Counts a window that is decoded, and transfers a batch once the buffers are full."""
        self._filled += 1
        with self._changed:
            self._received += 1
            self._last_progress = time.monotonic()
        if self._filled == self._num_windows:
            batch = self._transfer(Columns(self._floats, self._ints))
            with self._changed:
                self._filled = 0
                self._ready.append(batch)
                self._changed.notify_all()

    def _named(self, end: CallEnded) -> ReplayError:
        return status_error(end.code, end.details, self._address, f"sampling from {self._table}")


class _Stream(StreamingCall):
    """A SampleStream and its requests."""

    def __init__(self, address: str, table: str) -> None:
        super().__init__(address, SAMPLE_STREAM)
        self._table = table

    def ask(self, windows: int) -> None:
        timeout = pb.Timeout(milliseconds=int(RATE_LIMITER_TIMEOUT_S * 1000))
        request = pb.SampleStreamRequest(table=self._table, num_samples=windows, rate_limiter_timeout=timeout)
        self.send(request.SerializeToString())
