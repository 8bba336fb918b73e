"""Responses to a sample request, read in place; pure.

protobuf would copy the content of each chunk twice. So only a window's item, which is small, is one of its objects.
"""

from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import NamedTuple

import cramjam
import numpy as np
from google.protobuf.message import DecodeError

from shared.replay import reverb_pb2 as pb
from shared.replay.wire import DTYPE_NUMBERS, DTYPES, WireError, read_varint

MOST_EXPANSION = 22  # 3 bytes of Snappy stand for 64 at most; no memory is allocated for a chunk that claims more
MOST_DIMENSIONS = 8  # that an error shows
MOST_SHAPE_BYTES = 1000

# Fields on the wire: the number, and how the value is written.
_INTEGER, _BYTES = 0, 2
_ENTRY = 1 << 3 | _BYTES
_INFO, _CHUNK, _END_OF_SEQUENCE = 1 << 3 | _BYTES, 2 << 3 | _BYTES, 3 << 3 | _INTEGER
_KEY, _DELTA_ENCODED, _DATA = 1 << 3 | _INTEGER, 4 << 3 | _INTEGER, 5 << 3 | _BYTES
_TENSOR = 1 << 3 | _BYTES
_DTYPE, _SHAPE, _CONTENT = 1 << 3 | _INTEGER, 2 << 3 | _BYTES, 4 << 3 | _BYTES


class Tensor(NamedTuple):
    """Tensor in place: TensorFlow's number of its type, its `pb.Tensor.Shape` as bytes, rows in Snappy's raw format."""

    dtype: int
    shape: bytes
    content: memoryview


class Chunk(NamedTuple):
    key: int
    delta_encoded: bool
    tensors: list[Tensor]


class Entry(NamedTuple):
    """A part of a window: its item, if this is the first part; chunks; True if this is the last part."""

    item: pb.FlatTrajectory | None
    chunks: list[Chunk]
    ends: bool


def read_entries(response: memoryview) -> Iterator[Entry]:
    """Yields the entries of a response, whose chunks refer to its memory. Raises WireError."""
    try:
        for tag, at, size in _fields(response, 0, len(response)):
            if tag == _ENTRY:
                yield _read_entry(response, at, at + size)
    except (IndexError, DecodeError) as error:
        raise WireError(f"a response cannot be read: {error}") from error


def read_chunk(data: memoryview, at: int, end: int) -> Chunk:
    """Returns the `ChunkData` in `data[at:end]`. Raises WireError, or IndexError if it is cut off."""
    key = delta_encoded = 0
    tensors: list[Tensor] = []
    for tag, value, size in _fields(data, at, end):
        if tag == _DATA:
            tensors = [
                _read_tensor(data, at, at + size)
                for tag, at, size in _fields(data, value, value + size)
                if tag == _TENSOR
            ]
        elif tag == _KEY:
            key = value
        elif tag == _DELTA_ENCODED:
            delta_encoded = value
    return Chunk(key, bool(delta_encoded), tensors)


def _read_entry(data: memoryview, at: int, end: int) -> Entry:
    item, chunks, ends = None, [], 0
    for tag, value, size in _fields(data, at, end):
        if tag == _CHUNK:
            chunks.append(read_chunk(data, value, value + size))
        elif tag == _INFO:
            info = pb.SampleInfo.FromString(bytes(data[value : value + size]))
            item = info.item.flat_trajectory if info.HasField("item") else item
        elif tag == _END_OF_SEQUENCE:
            ends = value
    return Entry(item, chunks, bool(ends))


def _read_tensor(data: memoryview, at: int, end: int) -> Tensor:
    dtype, shape, content = 0, b"", data[:0]
    for tag, value, size in _fields(data, at, end):
        if tag == _DTYPE:
            dtype = value
        elif tag == _SHAPE:
            shape = bytes(data[value : value + size])
        elif tag == _CONTENT:
            content = data[value : value + size]
    return Tensor(dtype, shape, content)


def _fields(data: memoryview, at: int, end: int) -> Iterator[tuple[int, int, int]]:
    """Yields `(tag, value, 0)` for each integer in the message `data[at:end]`, `(tag, begin, size)` for bytes."""
    while at < end:
        tag, value = data[at], data[at + 1]
        at += 2
        if value > 127:
            value, at = read_varint(data, at - 1)
        if tag & 0x87 == _BYTES:
            yield tag, at, value
            at += value
        elif tag & 0x87 == _INTEGER:
            yield tag, value, 0
        else:
            raise WireError(f"a response has a field that Reverb's lack (tag {tag})")
    if at != end:
        raise WireError("a response is cut off")


class _Place(NamedTuple):
    """Rows of column `number`, as bytes, that a slice of a chunk fills."""

    number: int
    piece: pb.FlatTrajectory.ChunkSlice
    rows: memoryview


class PartialWindow:
    """A window whose chunks are written into its columns as they arrive."""

    def __init__(self, item: pb.FlatTrajectory, outs: Sequence[np.ndarray]) -> None:
        """`outs`: a contiguous array `[rows, ...]` for each column.

        Raises WireError if the number of columns or of rows differs from `outs`.
        """
        if len(item.columns) != len(outs):
            raise WireError(f"an item has {len(item.columns)} columns, {len(outs)} were expected")
        self._outs = outs
        self._places: dict[int, list[_Place]] = {}
        for number, (column, out) in enumerate(zip(item.columns, outs, strict=True)):
            rows, row_bytes, row = out.reshape(-1).view(np.uint8).data, out[0].nbytes, 0
            for piece in column.chunk_slices:
                if piece.length < 1:
                    raise WireError(f"column {number}: a slice has {piece.length} rows")
                first, row = row, row + piece.length
                if row > len(out):
                    break
                place = _Place(number, piece, rows[first * row_bytes : row * row_bytes])
                self._places.setdefault(piece.chunk_key, []).append(place)
            if row != len(out):
                raise WireError(f"column {number}: an item has {row} or more rows, {len(out)} were expected")

    def write(self, chunk: Chunk) -> None:
        """Writes the rows of a chunk. Raises WireError if types, row shapes or slices differ from the columns."""
        for place in self._places.pop(chunk.key, ()):
            _write_slice(chunk, place, self._outs[place.number])

    def finish(self) -> None:
        """Raises WireError if a chunk did not arrive."""
        for key, places in self._places.items():
            raise WireError(f"column {places[0].number}: chunk {key} did not come with its item")


def _write_slice(chunk: Chunk, place: _Place, out: np.ndarray) -> None:
    """Writes a slice of `chunk` into its place in the column `out` `[rows, ...]`."""
    number, piece, rows = place
    if not 0 <= piece.index < len(chunk.tensors):
        raise WireError(f"column {number}: chunk {chunk.key} has no tensor {piece.index}")
    tensor = chunk.tensors[piece.index]
    steps, *row_shape = _dimensions(tensor.shape) or (0,)
    if not steps:
        raise WireError(f"column {number}: chunk {chunk.key} has no rows")
    if tensor.dtype != DTYPE_NUMBERS[out.dtype] or tuple(row_shape) != out.shape[1:]:
        held = DTYPES.get(tensor.dtype, f"type {tensor.dtype}")
        raise WireError(
            f"column {number}: an item holds {held} rows {row_shape[:MOST_DIMENSIONS]},"
            f" {out.dtype} rows {list(out.shape[1:])} were expected"
        )
    if piece.offset < 0 or piece.offset + piece.length > steps:
        raise WireError(f"column {number}: a slice ends beyond its chunk of {steps} rows")
    delta = chunk.delta_encoded and out.dtype.kind in "iu"
    if piece.length == steps and not delta:
        _decompress(tensor.content, rows, number)
        return
    size = steps * out[0].nbytes
    if size > MOST_EXPANSION * len(tensor.content):
        raise WireError(f"column {number}: {len(tensor.content)} bytes cannot be a chunk of {steps} rows")
    whole = np.empty((steps, *row_shape), out.dtype)
    _decompress(tensor.content, whole.reshape(-1).view(np.uint8).data, number)
    if delta:
        # Differences wrap around in their own type, and so does this sum.
        np.cumsum(whole, axis=0, dtype=whole.dtype, out=whole)
    rows[:] = whole[piece.offset : piece.offset + piece.length].reshape(-1).view(np.uint8).data


@lru_cache(maxsize=16)  # the chunks of a table have the same few shapes
def _dimensions(shape: bytes) -> tuple[int, ...]:
    """Returns the sizes in a `pb.Tensor.Shape`, the number of rows first. Raises WireError."""
    if len(shape) > MOST_SHAPE_BYTES:
        raise WireError(f"a tensor's shape has {len(shape)} bytes")
    try:
        return tuple(dim.size for dim in pb.Tensor.Shape.FromString(shape).dim)
    except DecodeError as error:
        raise WireError(f"a tensor's shape cannot be read: {error}") from error


def _decompress(content: memoryview, out: memoryview, number: int) -> None:
    try:
        written = cramjam.snappy.decompress_raw_into(content, out)
    except cramjam.DecompressionError as error:
        raise WireError(f"column {number}: {error}") from error
    if written != out.nbytes:
        raise WireError(f"column {number}: a chunk holds {written} bytes, {out.nbytes} were expected")
