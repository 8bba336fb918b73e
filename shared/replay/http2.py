"""A gRPC call on a connection of its own that receives messages in place.

grpcio copies a message four times and hands it over between three threads, which costs a learner more time than the
network. Here the system writes a message once, into a buffer that is used again.

Speaks as much HTTP/2 (RFC 9113, RFC 7541) as servers on gRPC's C core do: no padding, no Huffman coding, no headers
larger than a frame. Anything else ends the call with an error.
"""

import socket
import struct
import threading
from contextlib import suppress
from enum import IntEnum
from urllib.parse import unquote

import grpc

from shared.replay.channel import CONNECT_TIMEOUT_S, MOST_MESSAGE_BYTES
from shared.replay.wire import read_varint

WINDOW_BYTES = 2**24  # that the server may send before they are read; most of it waits on the server's side
MOST_FRAME_BYTES = 2**20  # Reverb's messages are about as large
SEND_TIMEOUT_S = 5  # of a server that reads nothing; what is sent fits the system's buffers by far

_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_CONNECTION, _CALL = 0, 1  # numbers of streams
_FIRST_WINDOW_BYTES = 65535  # of a connection; only a WINDOW_UPDATE changes it
_SETTINGS = {1: 0, 2: 0, 4: WINDOW_BYTES, 5: MOST_FRAME_BYTES}  # no table of headers, no pushes
_HEADER_BYTES = 9  # of a frame
_ACK, _END_STREAM, _END_HEADERS, _PADDED, _PRIORITY = 0x1, 0x1, 0x4, 0x8, 0x20
_POST, _HTTP = b"\x83", b"\x86"  # header fields of HTTP/2's own table
_STATUS_CODES = {code.value[0]: code for code in grpc.StatusCode}


class _Kind(IntEnum):
    DATA = 0
    HEADERS = 1
    RST_STREAM = 3
    SETTINGS = 4
    PING = 6
    GOAWAY = 7
    WINDOW_UPDATE = 8


class CallEnded(Exception):
    """The end of a call, by the server or by its connection, with gRPC's status."""

    def __init__(self, code: grpc.StatusCode, details: str) -> None:
        super().__init__(f"{code.name}: {details}")
        self.code, self.details = code, details


class StreamingCall:
    """A call of which both sides stream messages. One thread receives; any thread may send or cancel.

    Requests are small and few: the server reads them before they fill the window that it grants.
    """

    def __init__(self, address: str, method: str) -> None:
        """Connects to `address` `host:port` and begins the call. Raises CallEnded."""
        host, _, port = address.rpartition(":")
        try:
            self._socket = socket.create_connection((host.strip("[]"), int(port)), CONNECT_TIMEOUT_S)
        except OSError as error:
            raise CallEnded(grpc.StatusCode.UNAVAILABLE, str(error)) from error
        self._socket.settimeout(None)  # `cancel` ends a wait
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("@ll", SEND_TIMEOUT_S, 0))
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._sending, self._cancelled = threading.Lock(), False
        self._buffer, self._frame_header, self._prefix = bytearray(), bytearray(_HEADER_BYTES), bytearray(5)
        self._data_left = 0  # bytes of the newest DATA frame that were not read yet
        self._ungranted = 0  # bytes read for which the server got no new window
        fields = {b":path": method, b":authority": address, b"te": "trailers", b"content-type": "application/grpc"}
        self._send(
            _PREFACE,
            _frame(_Kind.SETTINGS, 0, _CONNECTION, b"".join(struct.pack(">HI", *each) for each in _SETTINGS.items())),
            _window_update(_CONNECTION, WINDOW_BYTES - _FIRST_WINDOW_BYTES),
            _frame(_Kind.HEADERS, _END_HEADERS, _CALL, _POST + _HTTP + b"".join(map(_literal_field, fields.items()))),
        )

    def send(self, message: bytes) -> None:
        """Sends a message. If the connection is broken, `receive` raises."""
        self._send(_frame(_Kind.DATA, 0, _CALL, struct.pack(">BI", 0, len(message)) + message))

    def receive(self) -> memoryview:
        """Waits for the next message and returns it; it is valid until the next call. Raises CallEnded."""
        self._read(memoryview(self._prefix))
        compressed, size = struct.unpack(">BI", self._prefix)
        if size > MOST_MESSAGE_BYTES:
            text = f"a message has {size} bytes, at most {MOST_MESSAGE_BYTES} are allowed"
            raise CallEnded(grpc.StatusCode.RESOURCE_EXHAUSTED, text)
        if compressed:
            raise _unreadable("a compressed message")
        if size > len(self._buffer):
            self._buffer = bytearray(size)
        message = memoryview(self._buffer)[:size]
        self._read(message)
        return message

    def cancel(self) -> None:
        """Ends the call; `receive` then raises, even if messages have arrived. May be called more than once."""
        self._cancelled = True
        with suppress(OSError):  # the connection has ended already
            self._socket.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Closes the connection, in the thread that receives."""
        with self._sending:
            self._socket.close()

    def _read(self, view: memoryview) -> None:
        """Fills `view` with the content of DATA frames."""
        while view:
            if not self._data_left:
                self._next_frame()
                continue
            piece = view[: self._data_left]
            self._fill(piece)
            view = view[len(piece) :]
            self._data_left -= len(piece)
            self._ungranted += len(piece)
            if self._ungranted >= WINDOW_BYTES // 2:
                self._send(_window_update(_CONNECTION, self._ungranted), _window_update(_CALL, self._ungranted))
                self._ungranted = 0

    def _next_frame(self) -> None:
        """Reads a frame, except the content of a DATA frame, and answers it. Raises CallEnded."""
        self._fill(memoryview(self._frame_header))
        size, kind, flags = int.from_bytes(self._frame_header[:3]), *self._frame_header[3:5]
        if size > MOST_FRAME_BYTES:
            raise _unreadable(f"a frame of {size} bytes")
        if kind == _Kind.DATA:
            if flags & (_PADDED | _END_STREAM):  # a gRPC server ends a call by headers
                raise _unreadable(f"data with flags {flags}")
            self._data_left = size
            return
        content = bytearray(size)
        self._fill(memoryview(content))
        if kind == _Kind.SETTINGS and not flags & _ACK:
            self._send(_frame(_Kind.SETTINGS, _ACK, _CONNECTION, b""))
        elif kind == _Kind.PING and not flags & _ACK:
            self._send(_frame(_Kind.PING, _ACK, _CONNECTION, bytes(content)))
        elif kind == _Kind.HEADERS:
            if flags & (_PADDED | _PRIORITY) or not flags & _END_HEADERS:
                raise _unreadable(f"headers with flags {flags}")
            if flags & _END_STREAM:
                raise _status(bytes(content))
        elif kind in (_Kind.RST_STREAM, _Kind.GOAWAY):
            text = content[8:].decode(errors="replace") or f"error {int.from_bytes(content[-4:])}"
            raise CallEnded(grpc.StatusCode.UNAVAILABLE, f"{_Kind(kind).name}: {text}")

    def _fill(self, view: memoryview) -> None:
        """Fills `view` from the connection, in one call of the system where possible."""
        while view:
            if self._cancelled:
                raise CallEnded(grpc.StatusCode.CANCELLED, "cancelled here, or nothing can be sent")
            try:
                size = self._socket.recv_into(view, len(view), socket.MSG_WAITALL)
            except OSError as error:
                raise CallEnded(grpc.StatusCode.UNAVAILABLE, str(error)) from error
            if not size:
                raise CallEnded(grpc.StatusCode.UNAVAILABLE, "the connection was closed")
            view = view[size:]

    def _send(self, *frames: bytes) -> None:
        with self._sending:
            try:
                self._socket.sendall(b"".join(frames))
            except OSError:  # a frame may have been sent in part; `receive` raises then
                self.cancel()


def _frame(kind: _Kind, flags: int, stream: int, content: bytes) -> bytes:
    return struct.pack(">I", len(content))[1:] + struct.pack(">BBI", kind, flags, stream) + content


def _window_update(stream: int, more_bytes: int) -> bytes:
    return _frame(_Kind.WINDOW_UPDATE, 0, stream, struct.pack(">I", more_bytes))


def _literal_field(field: tuple[bytes, str]) -> bytes:
    """Returns a header field of fewer than 127 bytes a string, outside any table."""
    name, value = field[0], field[1].encode()
    return b"\0" + bytes([len(name)]) + name + bytes([len(value)]) + value


def _unreadable(what: str) -> CallEnded:
    return CallEnded(grpc.StatusCode.INTERNAL, f"the server sent {what}")


def _status(block: bytes) -> CallEnded:
    """Returns the status in a block of headers that ends a call."""
    fields = _literal_fields(block)
    number = fields.get(b"grpc-status", b"")
    code = _STATUS_CODES.get(int(number) if number.isdigit() else -1, grpc.StatusCode.UNKNOWN)
    return CallEnded(code, unquote(fields.get(b"grpc-message", b"").decode(errors="replace")))


def _literal_fields(block: bytes) -> dict[bytes, bytes]:
    """Returns the header fields whose names are spelled out, as those of gRPC's own are."""
    fields, at = {}, 0
    try:
        while at < len(block):
            first = block[at]
            if first & 0x80 or first & 0xE0 == 0x20:  # a field of the table, or the table's size
                _, at = _prefixed(block, at, 7 if first & 0x80 else 5)
                continue
            index, at = _prefixed(block, at, 6 if first & 0x40 else 4)
            name, at = (b"", at) if index else _string(block, at)
            fields[name], at = _string(block, at)
    except IndexError as error:
        raise _unreadable("headers that are cut off") from error
    return fields


def _string(block: bytes, at: int) -> tuple[bytes, int]:
    """Returns a string, and the place after it; empty if it is Huffman-coded."""
    coded = block[at] & 0x80
    size, at = _prefixed(block, at, 7)
    return b"" if coded else block[at : at + size], at + size


def _prefixed(block: bytes, at: int, bits: int) -> tuple[int, int]:
    """Returns an integer of which the first byte holds `bits` bits, and the place after it."""
    most = (1 << bits) - 1
    value, at = block[at] & most, at + 1
    if value < most:
        return value, at
    more, at = read_varint(block, at)
    return value + more, at
