"""gRPC channels to a replay server, the paths of its methods, and its errors by name."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import grpc

from shared.replay.errors import ReplayError, ReplayMismatch, ReplayUnavailable

INSERT_STREAM = "/deepmind.reverb.ReverbService/InsertStream"
SAMPLE_STREAM = "/deepmind.reverb.ReverbService/SampleStream"
SERVER_INFO = "/deepmind.reverb.ReverbService/ServerInfo"

# A wait in slices this long notices a request to stop, or a dead thread, within a second.
WAIT_SLICE_S = 0.5
CONNECT_TIMEOUT_S = 10.0
MOST_MESSAGE_BYTES = 2**27  # Reverb sends a megabyte at a time, or one chunk that is larger
DETAILS_CHARS = 500  # of what a server says

# A caller's wish to stop, asked while waiting.
ShouldStop = Callable[[], bool] | threading.Event | None

_OPTIONS = [
    ("grpc.max_send_message_length", -1),
    ("grpc.max_receive_message_length", MOST_MESSAGE_BYTES),
    # Channels with equal options share one connection unless told otherwise, and then a stalled stream would
    # hold up the liveness poll.
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.initial_reconnect_backoff_ms", 200),
    ("grpc.max_reconnect_backoff_ms", 2000),
    # The replay server is reached directly; a proxy set for package downloads must not catch these calls.
    ("grpc.enable_http_proxy", 0),
]


def open_channel(address: str) -> grpc.Channel:
    """A channel of its own (own connection) to `address` `host:port`; connects on first use."""
    return grpc.insecure_channel(address, options=_OPTIONS)


def stop_requested(should_stop: ShouldStop) -> bool:
    if should_stop is None:
        return False
    return should_stop.is_set() if isinstance(should_stop, threading.Event) else should_stop()


def named_error(error: grpc.RpcError, address: str, doing: str) -> ReplayError:
    """A gRPC error as one of ours, saying what was being done and where."""
    code = error.code() if isinstance(error, grpc.Call) else None
    details = (error.details() if isinstance(error, grpc.Call) else None) or "no details"
    details = " ".join(details.split())[:DETAILS_CHARS]
    text = f"{doing} at {address}: {code.name if code else type(error).__name__}: {details}"
    if code in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED, grpc.StatusCode.DEADLINE_EXCEEDED):
        return ReplayUnavailable(f"the replay server is gone while {text}")
    if code is grpc.StatusCode.NOT_FOUND:
        return ReplayMismatch(f"the replay server does not know this run's table while {text}")
    return ReplayError(f"the replay server refused {text}")


@contextmanager
def naming_errors(address: str, doing: str) -> Iterator[None]:
    """Turns gRPC errors inside the block into named ones."""
    try:
        yield
    except grpc.RpcError as error:
        raise named_error(error, address, doing) from error
