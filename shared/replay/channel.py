"""gRPC channels to a replay server: method paths, options, bounded waits, and errors by name."""

import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable

import grpc

from shared.replay.errors import ReplayError, ReplayMismatch, ReplayStopped, ReplayTimeout, ReplayUnavailable

INSERT_STREAM = "/deepmind.reverb.ReverbService/InsertStream"
SAMPLE_STREAM = "/deepmind.reverb.ReverbService/SampleStream"
SERVER_INFO = "/deepmind.reverb.ReverbService/ServerInfo"

WAIT_SLICE_S = 0.5  # the longest time for which a wait does not look for a request to stop
CONNECT_TIMEOUT_S = 10.0
MOST_MESSAGE_BYTES = 2**27  # Reverb sends a megabyte at a time, or one chunk that is larger
DETAILS_CHARS = 500  # of a server's own message, in an error

ShouldStop = Callable[[], bool] | threading.Event | None
"""A request to stop; every wait asks for it."""

_OPTIONS = [
    ("grpc.max_send_message_length", -1),
    ("grpc.max_receive_message_length", MOST_MESSAGE_BYTES),
    # Without it, channels with equal options share one connection, and a stalled stream blocks the liveness poll.
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.initial_reconnect_backoff_ms", 200),
    ("grpc.max_reconnect_backoff_ms", 2000),
    # The replay server is reached directly; a proxy set for package downloads must not catch these calls.
    ("grpc.enable_http_proxy", 0),
]


def open_channel(address: str) -> grpc.Channel:
    """Returns a channel with its own connection to `address` `host:port`, which connects on first use."""
    return grpc.insecure_channel(address, options=_OPTIONS)


def named_error(error: grpc.RpcError, address: str, doing: str) -> ReplayError:
    """Returns a gRPC error as a `ReplayError` that says what was being done, and where."""
    if isinstance(error, grpc.Call):
        return status_error(error.code(), error.details(), address, doing)
    return ReplayError(f"the replay server refused {doing} at {address}: {type(error).__name__}: no details")


def status_error(code: grpc.StatusCode, details: str | None, address: str, doing: str) -> ReplayError:
    """Returns a status of gRPC as a `ReplayError` that says what was being done, and where."""
    details = " ".join((details or "no details").split())[:DETAILS_CHARS]
    text = f"{doing} at {address}: {code.name}: {details}"
    if code in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED, grpc.StatusCode.DEADLINE_EXCEEDED):
        return ReplayUnavailable(f"the replay server is gone while {text}")
    if code is grpc.StatusCode.NOT_FOUND:
        return ReplayMismatch(f"the replay server does not know this run's table while {text}")
    return ReplayError(f"the replay server refused {text}")


class BackgroundClient(ABC):
    """Base of a client with a background thread, for whose progress callers wait; `_changed` guards it.

    `_error` and `_closed` end a wait. Time during which `paused()` is true does not count towards a time-out.
    """

    def __init__(self, waiting_for: str, paused: Callable[[], bool]) -> None:
        self._changed = threading.Condition()
        self._error: Exception | None = None
        self._closed = False
        self._last_progress = time.monotonic()
        self._waiting_for, self._paused = waiting_for, paused

    @abstractmethod
    def _timeout_text(self, timeout_s: float) -> str: ...

    def _wait(self, ready: Callable[[], bool], should_stop: ShouldStop, timeout_s: float) -> float:
        """Waits until `ready()`; returns the seconds waited. Notices `should_stop` within half a second.

        Raises `_error`, `ReplayStopped`, or `ReplayTimeout` after `timeout_s` seconds without progress.
        """
        started = since = time.monotonic()
        stopping = should_stop.is_set if isinstance(should_stop, threading.Event) else should_stop
        with self._changed:
            while not ready():
                if self._error is not None:
                    raise self._error
                if self._closed or (stopping is not None and stopping()):
                    reason = "closed" if self._closed else "asked to stop"
                    raise ReplayStopped(f"{reason} while waiting for {self._waiting_for}")
                if self._paused():
                    since = time.monotonic()
                left_s = max(since, self._last_progress) + timeout_s - time.monotonic()
                if left_s <= 0:
                    raise ReplayTimeout(self._timeout_text(timeout_s))
                self._changed.wait(min(WAIT_SLICE_S, left_s))
        return time.monotonic() - started
