"""The call that receives messages in place: peers that send frames of the test's choice."""

import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from typing import NamedTuple

import grpc
import pytest

from shared.replay.channel import MOST_MESSAGE_BYTES, SAMPLE_STREAM
from shared.replay.http2 import MOST_FRAME_BYTES, WINDOW_BYTES, CallEnded, StreamingCall

DATA, HEADERS, RST_STREAM, SETTINGS, PING, GOAWAY, WINDOW_UPDATE = 0, 1, 3, 4, 6, 7, 8
END_STREAM, ACK, END_HEADERS, PADDED = 1, 1, 4, 8
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"


class Frame(NamedTuple):
    kind: int
    flags: int
    stream: int
    content: bytes


class Peer(NamedTuple):
    """The server's side of a connection."""

    socket: socket.socket

    def send(self, kind: int, flags: int = 0, stream: int = 1, content: bytes = b"") -> None:
        header = struct.pack(">I", len(content))[1:] + struct.pack(">BBI", kind, flags, stream)
        self.socket.sendall(header + content)

    def next(self) -> Frame:
        header = self._exactly(9)
        size, kind, flags = int.from_bytes(header[:3]), header[3], header[4]
        return Frame(kind, flags, int.from_bytes(header[5:]), self._exactly(size))

    def _exactly(self, size: int) -> bytes:
        return self.socket.recv(size, socket.MSG_WAITALL) if size else b""


@pytest.fixture
def ends() -> Iterator[tuple[StreamingCall, Peer]]:
    """Yields a call and its peer, which has read what begins the call."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        call = StreamingCall(f"127.0.0.1:{listening.getsockname()[1]}", SAMPLE_STREAM)
        with closing(call), listening.accept()[0] as connection:
            connection.settimeout(10)
            assert connection.recv(len(PREFACE), socket.MSG_WAITALL) == PREFACE
            peer = Peer(connection)
            assert [peer.next().kind for _ in range(3)] == [SETTINGS, WINDOW_UPDATE, HEADERS]
            yield call, peer


def message(content: bytes, compressed: int = 0) -> bytes:
    return struct.pack(">BI", compressed, len(content)) + content


def field(name: bytes, value: bytes, first: int = 0) -> bytes:
    """Returns a header field; `first` says whether it enters the table."""
    return bytes([first, len(name)]) + name + bytes([len(value)]) + value


def ended(call: StreamingCall) -> CallEnded:
    with pytest.raises(CallEnded) as error:
        call.receive()
    return error.value


def test_messages_are_divided_into_frames_at_any_place(ends: tuple[StreamingCall, Peer]) -> None:
    call, peer = ends
    contents = [b"", bytes(range(256)) * 5, b"x", b"last"]
    sent = b"".join(map(message, contents))
    for size in (1, 3, 4, 5, 6, 7, len(sent)):
        for at in range(0, len(sent), size):
            peer.send(DATA, content=sent[at : at + size])
            peer.send(DATA)
        assert [bytes(call.receive()) for _ in contents] == contents


def test_settings_and_pings_are_answered_between_data(ends: tuple[StreamingCall, Peer]) -> None:
    call, peer = ends
    sent = message(b"abc")
    peer.send(SETTINGS, stream=0, content=bytes(6))
    peer.send(SETTINGS, ACK, stream=0)
    peer.send(HEADERS, END_HEADERS, content=b"\x88")
    peer.send(DATA, content=sent[:6])
    peer.send(PING, stream=0, content=b"12345678")
    peer.send(PING, ACK, stream=0, content=b"unasked!")
    peer.send(WINDOW_UPDATE, stream=0, content=bytes(4))
    peer.send(200, content=b"a kind of frame that nobody knows")
    peer.send(DATA, content=sent[6:])
    assert bytes(call.receive()) == b"abc"
    call.send(b"request")
    answers = [peer.next() for _ in range(3)]
    assert answers == [
        Frame(SETTINGS, ACK, 0, b""),
        Frame(PING, ACK, 0, b"12345678"),
        Frame(DATA, 0, 1, message(b"request")),
    ]


def test_the_window_grows_by_all_that_was_read(ends: tuple[StreamingCall, Peer]) -> None:
    call, peer = ends
    received, total = [], 3 * WINDOW_BYTES

    def send() -> None:
        frame = bytes(MOST_FRAME_BYTES - 5)
        for _ in range(total // MOST_FRAME_BYTES):
            peer.send(DATA, content=message(frame))

    sending = threading.Thread(target=send)
    sending.start()
    for _ in range(total // MOST_FRAME_BYTES):
        received.append(len(call.receive()))
    sending.join(10)
    assert sum(received) == total // MOST_FRAME_BYTES * (MOST_FRAME_BYTES - 5)
    granted = {0: 0, 1: 0}
    while granted[1] < total - WINDOW_BYTES // 2:
        frame = peer.next()
        assert frame.kind == WINDOW_UPDATE
        granted[frame.stream] += int.from_bytes(frame.content)
    assert granted == {0: granted[1], 1: granted[1]}
    assert granted[1] <= total


STATUS = field(b"grpc-status", b"4") + field(b"grpc-message", b"one%20line%0Amore")
ENDS: dict[str, tuple[Callable[[Peer], None], grpc.StatusCode, str]] = {
    "a status": (
        lambda peer: peer.send(HEADERS, END_HEADERS | END_STREAM, content=STATUS),
        grpc.StatusCode.DEADLINE_EXCEEDED,
        "one line\nmore",
    ),
    "a status among fields of a table": (
        lambda peer: peer.send(
            HEADERS,
            END_HEADERS | END_STREAM,
            content=b"\x3f\xe1\x1f\x88"
            + b"\x5f\x85abcde"
            + field(b"grpc-status", b"5", 0x40)
            + field(b"x", b"y", 0x10),
        ),
        grpc.StatusCode.NOT_FOUND,
        "",
    ),
    "no status": (
        lambda peer: peer.send(HEADERS, END_HEADERS | END_STREAM, content=b"\x88"),
        grpc.StatusCode.UNKNOWN,
        "",
    ),
    "a status beyond gRPC's": (
        lambda peer: peer.send(HEADERS, END_HEADERS | END_STREAM, content=field(b"grpc-status", b"99")),
        grpc.StatusCode.UNKNOWN,
        "",
    ),
    "headers that are cut off": (
        lambda peer: peer.send(HEADERS, END_HEADERS | END_STREAM, content=b"\x00"),
        grpc.StatusCode.INTERNAL,
        "cut off",
    ),
    "padded headers": (
        lambda peer: peer.send(HEADERS, END_HEADERS | PADDED, content=b"\x00\x88"),
        grpc.StatusCode.INTERNAL,
        "headers with flags 12",
    ),
    "headers that go on": (
        lambda peer: peer.send(HEADERS, 0, content=b"\x88"),
        grpc.StatusCode.INTERNAL,
        "headers with flags 0",
    ),
    "padded data": (
        lambda peer: peer.send(DATA, PADDED, content=b"\x00"),
        grpc.StatusCode.INTERNAL,
        "data with flags 8",
    ),
    "a large frame": (
        lambda peer: peer.socket.sendall(struct.pack(">I", MOST_FRAME_BYTES + 1)[1:] + bytes(6)),
        grpc.StatusCode.INTERNAL,
        "a frame of 1048577 bytes",
    ),
    "a large message": (
        lambda peer: peer.send(DATA, content=struct.pack(">BI", 0, MOST_MESSAGE_BYTES + 1)),
        grpc.StatusCode.RESOURCE_EXHAUSTED,
        "at most 134217728 are allowed",
    ),
    "a compressed message": (
        lambda peer: peer.send(DATA, content=message(b"x", compressed=1)),
        grpc.StatusCode.INTERNAL,
        "compressed",
    ),
    "a reset": (
        lambda peer: peer.send(RST_STREAM, content=struct.pack(">I", 8)),
        grpc.StatusCode.UNAVAILABLE,
        "RST_STREAM: error 8",
    ),
    "a farewell": (
        lambda peer: peer.send(GOAWAY, stream=0, content=struct.pack(">II", 1, 11) + b"too_many_pings"),
        grpc.StatusCode.UNAVAILABLE,
        "GOAWAY: too_many_pings",
    ),
    "a closed connection": (
        lambda peer: peer.socket.shutdown(socket.SHUT_RDWR),
        grpc.StatusCode.UNAVAILABLE,
        "closed",
    ),
}


@pytest.mark.parametrize("name", ENDS)
def test_every_end_has_a_status(name: str, ends: tuple[StreamingCall, Peer]) -> None:
    send, code, details = ENDS[name]
    send(ends[1])
    end = ended(ends[0])
    assert end.code is code
    assert details in end.details


def test_another_thread_ends_a_wait(ends: tuple[StreamingCall, Peer]) -> None:
    call, _ = ends
    timer = threading.Timer(0.2, call.cancel)
    timer.start()
    started = time.monotonic()
    assert ended(call).code in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED)
    assert time.monotonic() - started < 5
    timer.join()
    call.close()
    call.cancel()
    call.send(b"nobody reads this")


def test_messages_that_have_arrived_are_left_when_a_call_is_cancelled(ends: tuple[StreamingCall, Peer]) -> None:
    call, peer = ends
    peer.send(DATA, content=message(b"first") + message(b"second"))
    assert bytes(call.receive()) == b"first"
    call.cancel()
    assert ended(call).code is grpc.StatusCode.CANCELLED


def test_a_peer_that_reads_nothing_ends_the_call(ends: tuple[StreamingCall, Peer]) -> None:
    call, _ = ends
    call._socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("@ll", 0, 200_000))
    started = time.monotonic()
    for _ in range(200):
        call.send(bytes(10**5))
    assert time.monotonic() - started < 5
    assert ended(call).code is grpc.StatusCode.CANCELLED


def test_nobody_listens() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        address = f"127.0.0.1:{listening.getsockname()[1]}"
    with pytest.raises(CallEnded, match="UNAVAILABLE"):
        StreamingCall(address, SAMPLE_STREAM)
