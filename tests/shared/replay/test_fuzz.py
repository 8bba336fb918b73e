"""Clients of a server with arbitrary answers: every call ends soon, with a named error and bounded memory."""

import contextlib
import random
import resource
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent import futures
from contextlib import closing
from typing import Any

import cramjam
import grpc
import numpy as np
import pytest

from shared.replay import reverb_pb2 as pb
from shared.replay import wire
from shared.replay.channel import INSERT_STREAM, MOST_MESSAGE_BYTES, SAMPLE_STREAM, SERVER_INFO
from shared.replay.codec import INT_COLUMNS, Columns
from shared.replay.errors import ReplayError, ReplayMismatch, ReplayTimeout, ReplayUnavailable
from shared.replay.info import ReplayMonitor, server_info
from shared.replay.insert import Inserter
from shared.replay.sample import Sampler

B, T, F = 2, 4, 3
TABLE = "run/learner"
TIMEOUT_S = 0.6
LONG_S = 20.0  # for tests that send much data, on a busy machine
DEADLINE_S = 30.0  # for every test
MOST_MEGABYTES = 700  # growth of this process, which also runs the server, over all tests of this file
SERVER_THREADS = "fuzzing-server"
FLOATS = np.arange(T * F, dtype=np.float32).reshape(T, F)
INTS = np.arange(T * INT_COLUMNS, dtype=np.int32).reshape(T, INT_COLUMNS)
CODES = [code for code in grpc.StatusCode if code is not grpc.StatusCode.OK]

Answers = Iterable[bytes]
Answer = Callable[[Any, grpc.ServicerContext], Any]


class Server:
    """Server of Reverb's methods whose answers are bytes that each test chooses."""

    def __init__(self) -> None:
        pool = futures.ThreadPoolExecutor(8, thread_name_prefix=SERVER_THREADS)
        self._server = grpc.server(pool, options=[("grpc.max_send_message_length", -1)])
        self._server.add_generic_rpc_handlers((_Methods(self),))
        self.address = f"127.0.0.1:{self._server.add_insecure_port('127.0.0.1:0')}"
        self.reset()
        self._server.start()

    def reset(self) -> None:
        self.info: Answer = lambda _, context: info().SerializeToString()
        self.sample: Answer = lambda requests, context: silent(context)
        self.insert: Answer = lambda requests, context: silent(context)

    def stop(self) -> None:
        self._server.stop(0).wait()


class _Methods(grpc.GenericRpcHandler):
    def __init__(self, server: Server) -> None:
        self._server = server

    def service(self, details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler | None:
        if details.method == SERVER_INFO:
            return grpc.unary_unary_rpc_method_handler(lambda *call: self._server.info(*call))
        name = {SAMPLE_STREAM: "sample", INSERT_STREAM: "insert"}.get(details.method)
        if name is None:
            return None
        return grpc.stream_stream_rpc_method_handler(lambda *call: iter(getattr(self._server, name)(*call)))


@pytest.fixture(scope="module")
def running() -> Iterator[Server]:
    server = Server()
    yield server
    server.stop()


@pytest.fixture
def server(running: Server) -> Server:
    running.reset()
    return running


@pytest.fixture(autouse=True)
def no_thread_left() -> Iterator[None]:
    """Checks that the test ends in time and leaves no thread but the server's, whose pool grows on demand."""
    before, started = _client_threads(), time.monotonic()
    yield
    assert time.monotonic() - started < DEADLINE_S
    deadline = time.monotonic() + 5.0
    while (left := _client_threads() - before) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not left


def _client_threads() -> set[threading.Thread]:
    return {thread for thread in threading.enumerate() if not thread.name.startswith(SERVER_THREADS)}


@pytest.fixture(scope="module", autouse=True)
def memory_stays_bounded() -> Iterator[None]:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    yield
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < MOST_MEGABYTES * 1024


# --- answers of the server ---


def info() -> pb.ServerInfoResponse:
    response = pb.ServerInfoResponse(tables_state_id=pb.Uint128(high=1, low=2))
    response.table_info.add(name=TABLE, max_size=10, current_size=3)
    return response


def window() -> pb.SampleStreamResponse:
    """Returns a response with one valid window."""
    key = np.array([7], np.uint64)
    items = wire.items(TABLE, key, wire.trajectories(key[None], T, columns=2))
    chunks = wire.chunks(key, (FLOATS[None], INTS[None]), key, start=0).tobytes()
    inserted = pb.InsertStreamRequest.FromString(chunks + items)
    response = pb.SampleStreamResponse()
    entry = response.entries.add(end_of_sequence=True, data=inserted.chunks)
    entry.info.item.flat_trajectory.CopyFrom(inserted.items[0].flat_trajectory)
    return response


def changed_window(change: Callable[[Any, Any, Any, Any], None]) -> bytes:
    """Returns a window after `change(entry, slice, chunk, tensor)`, each the first of its kind."""
    response = window()
    entry = response.entries[0]
    piece = entry.info.item.flat_trajectory.columns[0].chunk_slices[0]
    change(entry, piece, entry.data[0], entry.data[0].data.tensors[0])
    return response.SerializeToString()


def silent(context: grpc.ServicerContext) -> Iterator[bytes]:
    while context.is_active():
        time.sleep(0.01)
    yield from ()


def endless(context: grpc.ServicerContext, answer: bytes) -> Iterator[bytes]:
    while context.is_active():
        yield answer


def with_changed_bytes(content: bytes, seed: int) -> bytes:
    """Returns `content` with one to four bytes changed."""
    rng, changed = random.Random(seed), bytearray(content)
    for _ in range(rng.randint(1, 4)):
        changed[rng.randrange(len(changed))] = rng.randrange(256)
    return bytes(changed)


def noise(seed: int) -> bytes:
    rng = random.Random(seed)
    return rng.randbytes(rng.randrange(1, 300))


def set_size(index: int, size: int) -> Callable[..., None]:
    return lambda entry, piece, chunk, tensor: setattr(tensor.tensor_shape.dim[index], "size", size)


def set_slice(**values: int) -> Callable[..., None]:
    return lambda entry, piece, chunk, tensor: [setattr(piece, name, value) for name, value in values.items()]


def set_tensor(**values: Any) -> Callable[..., None]:
    return lambda entry, piece, chunk, tensor: [setattr(tensor, name, value) for name, value in values.items()]


def set_chunk(**values: Any) -> Callable[..., None]:
    return lambda entry, piece, chunk, tensor: [setattr(chunk, name, value) for name, value in values.items()]


def slice_of_larger_chunk(rows: int, content: bytes, **chunk: Any) -> Callable[..., None]:
    """Returns a change that makes the slice a part of a chunk that claims `rows` rows and has `content`."""

    def change(entry: Any, piece: Any, whole: Any, tensor: Any) -> None:
        set_size(0, rows)(entry, piece, whole, tensor)
        set_tensor(tensor_content=content)(entry, piece, whole, tensor)
        set_chunk(**chunk)(entry, piece, whole, tensor)

    return change


def many_slices(entry: Any, piece: Any, chunk: Any, tensor: Any) -> None:
    entry.info.item.flat_trajectory.columns[0].chunk_slices.extend([piece] * 100_000)


def many_tensors(entry: Any, piece: Any, chunk: Any, tensor: Any) -> None:
    chunk.data.tensors.extend([tensor] * 1000)
    piece.index = 2000


def compressed(size: int) -> bytes:
    return bytes(cramjam.snappy.compress_raw(bytes(size)))


def claiming(size: int, content: bytes = b"") -> bytes:
    """Returns Snappy's header for `size` uncompressed bytes, followed by `content`."""
    header = b""
    while size >= 128:
        header += bytes([size % 128 + 128])
        size //= 128
    return header + bytes([size]) + content


WRONG_WINDOWS: dict[str, Callable[..., None]] = {
    "unknown chunk": set_slice(chunk_key=8),
    "largest chunk key": set_slice(chunk_key=2**64 - 1),
    "zero length": set_slice(length=0),
    "negative length": set_slice(length=-1),
    "most negative length": set_slice(length=-(2**31)),
    "length beyond the chunk": set_slice(length=T + 1),
    "length too short": set_slice(length=T - 1),
    "largest length": set_slice(length=2**31 - 1),
    "offset beyond the chunk": set_slice(offset=1),
    "negative offset": set_slice(offset=-1),
    "largest offset and length": set_slice(offset=2**31 - 1, length=2**31 - 1),
    "index beyond the tensors": set_slice(index=2),
    "negative index": set_slice(index=-1),
    "other column's tensor": set_slice(index=1),
    "no rows": set_size(0, 0),
    "negative rows": set_size(0, -T),
    "negative rows and length": lambda *parts: [set_size(0, -1)(*parts), set_slice(length=-1)(*parts)],
    "2**40 rows": set_size(0, 2**40),
    "2**62 rows": set_size(0, 2**62),
    "most negative rows": set_size(0, -(2**63)),
    "row of another size": set_size(1, F + 1),
    "row of 2**40": set_size(1, 2**40),
    "row of size 0": set_size(1, 0),
    "row of negative size": set_size(1, -F),
    "no shape": lambda entry, piece, chunk, tensor: tensor.ClearField("tensor_shape"),
    "one dimension": lambda entry, piece, chunk, tensor: tensor.tensor_shape.dim.pop(),
    "three dimensions": lambda entry, piece, chunk, tensor: tensor.tensor_shape.dim.add(size=1),
    "many dimensions": lambda entry, piece, chunk, tensor: [tensor.tensor_shape.dim.add(size=1) for _ in range(1000)],
    **{f"type {number}": set_tensor(dtype=number) for number in (0, 2, 3, 4, 9, 10, 14, 99, -1, 2**31 - 1)},
    "no content": set_tensor(tensor_content=b""),
    "random content": set_tensor(tensor_content=noise(1)),
    "raw content": set_tensor(tensor_content=FLOATS.tobytes()),
    "too little content": set_tensor(tensor_content=compressed(FLOATS.nbytes - 4)),
    "too much content": set_tensor(tensor_content=compressed(FLOATS.nbytes + 4)),
    "half the content": set_tensor(tensor_content=compressed(FLOATS.nbytes)[:2]),
    "claims 4 GB": set_tensor(tensor_content=claiming(2**32 - 1)),
    "claims 2**60 bytes": set_tensor(tensor_content=claiming(2**60)),
    "snappy bomb": set_tensor(tensor_content=compressed(2**26)),
    "part of a claimed 4 GB": slice_of_larger_chunk(2**32 // 12, claiming(2**32 - 4)),
    "part of a bomb": slice_of_larger_chunk(2**26 // 12, compressed(2**26)),
    "part of 2**40 rows": slice_of_larger_chunk(2**40, compressed(12 * T)),
    "part of 2**62 rows": slice_of_larger_chunk(2**62, compressed(12 * T)),
    "part of truncated content": slice_of_larger_chunk(100, compressed(1200)[:-1]),
    "part of too little content": slice_of_larger_chunk(100, compressed(1188)),
    "part of too much content": slice_of_larger_chunk(100, compressed(1212)),
    "no tensors": lambda entry, piece, chunk, tensor: chunk.data.ClearField("tensors"),
    "no data": lambda entry, piece, chunk, tensor: chunk.ClearField("data"),
    "no chunks": lambda entry, piece, chunk, tensor: entry.ClearField("data"),
    "no item": lambda entry, piece, chunk, tensor: entry.info.ClearField("item"),
    "no info": lambda entry, piece, chunk, tensor: entry.ClearField("info"),
    "no trajectory": lambda entry, piece, chunk, tensor: entry.info.item.ClearField("flat_trajectory"),
    "no slices": lambda entry, *_: entry.info.item.flat_trajectory.columns[0].ClearField("chunk_slices"),
    "one column": lambda entry, *_: entry.info.item.flat_trajectory.columns.pop(),
    "three columns": lambda entry, *_: entry.info.item.flat_trajectory.columns.add(),
    "columns swapped": lambda entry, *_: entry.info.item.flat_trajectory.columns.reverse(),
    "100,000 slices": many_slices,
    "1,000 tensors": many_tensors,
    "another key": set_chunk(chunk_key=0),
}


def sample_twice(server: Server, timeout_s: float = TIMEOUT_S) -> list[Columns]:
    """Samples two batches."""
    with closing(Sampler(server.address, TABLE, B, T, F, lambda columns: columns, timeout_s=timeout_s)) as sampler:
        return [sampler.sample()[0] for _ in range(2)]


def insert_unrolls(server: Server) -> None:
    unroll = Columns(np.stack([FLOATS] * B), np.stack([INTS] * B))
    with closing(Inserter(server.address, [TABLE], 1, B, timeout_s=TIMEOUT_S)) as inserter:
        for _ in range(4):
            inserter.insert(unroll)
        inserter.flush(TIMEOUT_S)


def replay_error(call: Callable[[], object]) -> ReplayError:
    """Returns the ReplayError that `call` raises; checks that its message is one line."""
    with pytest.raises(ReplayError) as error:
        call()
    assert len(str(error.value).splitlines()) == 1
    assert len(str(error.value)) < 2000
    return error.value


# --- every method ---


@pytest.mark.parametrize("seed", range(40))
def test_random_answers_end_in_named_errors(seed: int, server: Server) -> None:
    server.sample = server.insert = lambda requests, context: [noise(seed), noise(-seed - 1)]
    for client in (sample_twice, insert_unrolls):
        replay_error(lambda client=client: client(server))
    server.info = lambda request, context: noise(seed)
    for client in (sample_twice, insert_unrolls):
        replay_error(lambda client=client: client(server))


@pytest.mark.parametrize("code", CODES, ids=str)
def test_every_status_ends_every_call(code: grpc.StatusCode, server: Server) -> None:
    server.sample = server.insert = lambda requests, context: context.abort(code, "a line\n" * 300)
    error = replay_error(lambda: sample_twice(server))
    # DEADLINE_EXCEEDED is the rate limiter's time-out: the sampler asks again until its own time-out.
    assert isinstance(error, ReplayTimeout) == (code is grpc.StatusCode.DEADLINE_EXCEEDED)
    replay_error(lambda: insert_unrolls(server))
    server.info = server.sample
    replay_error(lambda: server_info(server.address))


def test_a_silent_server_ends_every_call(server: Server) -> None:
    assert isinstance(replay_error(lambda: sample_twice(server)), ReplayTimeout)
    assert isinstance(replay_error(lambda: insert_unrolls(server)), ReplayTimeout)
    server.info = lambda request, context: b"".join(silent(context))
    assert isinstance(replay_error(lambda: server_info(server.address, TIMEOUT_S)), ReplayUnavailable)


# --- samples ---


def test_valid_windows_are_read(server: Server) -> None:
    server.sample = lambda requests, context: (window().SerializeToString() for _ in requests for _ in range(B))
    for batch in sample_twice(server):
        np.testing.assert_array_equal(batch.floats, np.stack([FLOATS] * B))
        np.testing.assert_array_equal(batch.ints, np.stack([INTS] * B))


@pytest.mark.parametrize("name", WRONG_WINDOWS)
def test_a_wrong_window_is_a_wire_error(name: str, server: Server) -> None:
    answer = changed_window(WRONG_WINDOWS[name])
    server.sample = lambda requests, context: [answer] * (2 * B)
    assert isinstance(replay_error(lambda: sample_twice(server)), wire.WireError)


@pytest.mark.parametrize("part", range(24))
def test_a_truncated_window_ends_in_a_named_error(part: int, server: Server) -> None:
    whole = window().SerializeToString()
    server.sample = lambda requests, context: [whole[: len(whole) * part // 24]]
    replay_error(lambda: sample_twice(server))


@pytest.mark.parametrize("seed", range(60))
def test_a_window_with_changed_bytes_keeps_its_shape(seed: int, server: Server) -> None:
    """Allows wrong numbers in a window, since the client can check only shapes."""
    answer = with_changed_bytes(window().SerializeToString(), seed)
    server.sample = lambda requests, context: [answer] * (2 * B)
    with contextlib.suppress(ReplayError):
        for batch in sample_twice(server):
            assert (batch.floats.shape, batch.ints.shape) == ((B, T, F), (B, T, INT_COLUMNS))


def test_streams_that_end_at_once_keep_no_core_busy(server: Server) -> None:
    streams = []

    def end(requests: Any, context: grpc.ServicerContext) -> None:
        streams.append(1)
        context.abort(grpc.StatusCode.DEADLINE_EXCEEDED, "")

    server.sample = end
    replay_error(lambda: sample_twice(server))
    assert len(streams) < 50 * TIMEOUT_S


def test_a_stream_that_ends_early_is_an_error(server: Server) -> None:
    server.sample = lambda requests, context: [window().SerializeToString()]
    assert "ended the sample stream" in str(replay_error(lambda: sample_twice(server)))


def unfinished_window(size: int) -> bytes:
    """Returns a response with a chunk of `size` bytes, but without the end of its window."""
    response = window()
    response.entries[0].end_of_sequence = False
    response.entries[0].data.add(chunk_key=1).data.tensors.add(tensor_content=bytes(size))
    return response.SerializeToString()


def test_chunks_before_their_item_are_an_error(server: Server) -> None:
    response = window()
    response.entries[0].ClearField("info")
    server.sample = lambda requests, context: [response.SerializeToString()]
    assert "came without its item" in str(replay_error(lambda: sample_twice(server)))


def test_a_window_without_an_end_is_an_error(server: Server) -> None:
    server.sample = lambda requests, context: endless(context, unfinished_window(2**22))
    assert "does not end after" in str(replay_error(lambda: sample_twice(server, LONG_S)))


def test_endless_empty_responses_time_out(server: Server) -> None:
    server.sample = lambda requests, context: endless(context, b"")
    assert isinstance(replay_error(lambda: sample_twice(server)), ReplayTimeout)


def test_a_message_beyond_the_size_limit_is_an_error(server: Server) -> None:
    server.sample = lambda requests, context: [unfinished_window(MOST_MESSAGE_BYTES)]
    assert "RESOURCE_EXHAUSTED" in str(replay_error(lambda: sample_twice(server, LONG_S)))


def test_more_windows_than_requested_are_an_error(server: Server) -> None:
    server.sample = lambda requests, context: endless(context, window().SerializeToString())
    transferred = []
    sampler = Sampler(server.address, TABLE, B, T, F, transferred.append, timeout_s=LONG_S)

    def sample() -> None:
        while True:
            sampler.sample()
            time.sleep(0.05)

    try:
        assert "that was not requested" in str(replay_error(sample))
        assert len(transferred) <= 4
    finally:
        sampler.close()


# --- inserts ---


CONFIRMATIONS = {
    "nothing": [],
    "unknown keys": [2**63 + 1, 2**63 + 2, 2**63 + 3],
    "the same key": [2**63] * 100_000,
    "the largest key": [2**64 - 1],
}


@pytest.mark.parametrize("keys", CONFIRMATIONS.values(), ids=CONFIRMATIONS)
@pytest.mark.parametrize("ends", [True, False])
def test_confirmations_of_unknown_keys_do_not_count(keys: list[int], ends: bool, server: Server) -> None:
    answer = pb.InsertStreamResponse(keys=keys).SerializeToString()
    server.insert = lambda requests, context: [answer] if ends else endless(context, answer)
    assert isinstance(replay_error(lambda: insert_unrolls(server)), ReplayTimeout) != ends


# --- tables ---


def test_valid_tables_are_read(server: Server) -> None:
    assert server_info(server.address).tables[TABLE].size == 3


@pytest.mark.parametrize("seed", range(40))
def test_tables_with_changed_bytes_are_read_or_end_in_a_named_error(seed: int, server: Server) -> None:
    answer = with_changed_bytes(info().SerializeToString(), seed)
    server.info = lambda request, context: answer
    monitor = ReplayMonitor(server.address, [TABLE], timeout_s=TIMEOUT_S)
    with contextlib.suppress(ReplayError):
        assert TABLE in monitor.poll().tables
    monitor.close()


def test_tables_of_another_run_are_a_mismatch(server: Server) -> None:
    other = pb.ServerInfoResponse()
    for number in range(2000):
        other.table_info.add(name=f"other/{number}")
    server.info = lambda request, context: other.SerializeToString()
    with pytest.raises(ReplayMismatch):
        sample_twice(server)


# --- servers that do not speak gRPC ---


def listen(answer: bytes, keep_open: bool) -> Iterator[str]:
    """Yields the address of a listener that sends `answer` to every connection."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        listening.settimeout(0.05)
        stop = threading.Event()

        def serve() -> None:
            held = []
            while not stop.is_set():
                with contextlib.suppress(OSError):
                    connection, _ = listening.accept()
                    connection.sendall(answer)
                    held.append(connection) if keep_open else connection.close()
            for connection in held:
                connection.close()

        thread = threading.Thread(target=serve, name=SERVER_THREADS)
        thread.start()
        yield f"127.0.0.1:{listening.getsockname()[1]}"
        stop.set()
        thread.join()


RAW_ANSWERS = {  # bytes, and whether the connection stays open after them
    "closes": (b"", False),
    "silent": (b"", True),
    "noise": (noise(3), True),
    "http 1": (b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello", True),
    "ssh": (b"SSH-2.0-OpenSSH_9.6\r\n", True),
    "settings and noise": (bytes([0, 0, 0, 4, 0, 0, 0, 0, 0]) + noise(4), True),
    "goaway frame": (bytes([0, 0, 0, 4, 0, 0, 0, 0, 0, 0, 0, 8, 7, 0, 0, 0, 0, 0]) + bytes(8), True),
    "endless frame": (struct.pack(">I", 2**24 - 1)[1:] + bytes([0, 0]) + bytes(4) + bytes(1000), True),
}


@pytest.mark.parametrize("name", RAW_ANSWERS)
def test_answers_other_than_grpc_end_in_named_errors(name: str) -> None:
    listener = listen(*RAW_ANSWERS[name])
    address = next(listener)
    try:
        replay_error(lambda: server_info(address, TIMEOUT_S))
    finally:
        next(listener, None)
