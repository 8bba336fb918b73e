"""Chunks and windows as Reverb's messages, and back. Pure: numpy and protobuf, no connection.

What is inserted is encoded here, whole streams at a time: protobuf's objects, made one by one, take six times as long.
"""

from collections.abc import Sequence
from functools import lru_cache
from itertools import chain, repeat
from typing import Any

import cramjam
import numpy as np

from shared.replay import reverb_pb2 as pb
from shared.replay.errors import ReplayError

# TensorFlow's numbers of the types that Reverb may hold; bfloat16 has no numpy type and stays out.
DTYPES: dict[int, np.dtype[Any]] = {
    1: np.dtype(np.float32),
    2: np.dtype(np.float64),
    3: np.dtype(np.int32),
    4: np.dtype(np.uint8),
    9: np.dtype(np.int64),
    10: np.dtype(np.bool_),
}
MOST_EXPANSION = 22  # 3 bytes of snappy's stand for 64 at most; what claims to hold more is never made room for
MOST_DIMENSIONS = 8  # that an error shows
_PRIORITY = pb.PrioritizedItem(priority=1.0).SerializeToString()
_INTEGER, _LENGTH = 10, 5  # bytes at most
_OPEN = 1 + _LENGTH
_DTYPE_NUMBERS = {dtype: number for number, dtype in DTYPES.items()}


class WireError(ReplayError):
    """A message that does not hold what was expected of it."""


def chunks(keys: np.ndarray, columns: Sequence[np.ndarray], episode_ids: np.ndarray, start: int) -> bytes:
    """A request's `ChunkData`, one for each of `keys` `[n]` and `episode_ids` `[n]`, both uint64.

    `columns`: contiguous, `[n, T, ...]` each; their rows are steps `start` to `start + T - 1`. Raises ValueError where
    these are more than an int32 holds, which the server would not notice.
    """
    if not len(keys):
        return b""
    steps = columns[0].shape[1]
    if start + steps > 2**31:
        raise ValueError(f"step {start + steps - 1} of an environment is beyond int32: no run is that long")
    contents, headers, data_size = [], [], np.zeros(len(keys), np.uint64)
    for column in columns:
        compressed = [cramjam.snappy.compress_raw(row) for row in _raw(column, len(keys))]
        sizes = np.fromiter(map(len, compressed), np.uint64, len(keys))
        header = _tensor_header(column.dtype, column.shape[1:])
        headers.append(_join(_open(1, sizes + (len(header) + _OPEN)), header, _open(4, sizes)))
        contents.append(compressed)
        data_size += headers[-1].shape[-1] + sizes
    last = _number(2, start) + _number(3, start + steps - 1)
    head = _join(_numbers(1, keys), _messages(2, _numbers(1, episode_ids), last), _open(5, data_size))
    tail = _number(6, len(columns)) + _number(7, sum(column[0].nbytes for column in columns))
    headers[0] = _join(_open(1, head.shape[-1] + data_size + len(tail)), head, headers[0])
    parts = (part for pair in zip(headers, contents, strict=True) for part in pair)
    return b"".join(chain.from_iterable(zip(*parts, repeat(tail))))


def trajectories(windows: np.ndarray, steps: int, columns: int) -> np.ndarray:
    """`FlatTrajectory`s, `[n, bytes]` uint8: `windows` `[n, K]`, uint64, are the keys of each one's chunks.

    Oldest first, whole chunks, all of `steps` steps and with one tensor for each of `columns`.
    """
    whole = _join(_numbers(1, windows), _number(3, steps))
    slices = (_messages(1, whole, _number(4, index)) for index in range(columns))
    return _join(*(_messages(1, column.reshape(len(windows), windows.shape[1] * column.shape[2])) for column in slices))


def items(table: str, keys: np.ndarray, windows: np.ndarray) -> bytes:
    """A request's items of `table`, one for each of `keys` `[n]`, uint64, and of `trajectories`; of priority 1."""
    head = _message(2, table.encode()) + _PRIORITY
    return _messages(2, _numbers(1, keys), head, _messages(8, windows)).tobytes()


def keep_chunk_keys(keys: np.ndarray) -> bytes:
    """A request's list of the chunks `[n]`, uint64, that later requests refer to."""
    return _message(3, _varints(keys, _INTEGER).tobytes())


def read_window(window: pb.FlatTrajectory, chunks: dict[int, pb.ChunkData], outs: Sequence[np.ndarray]) -> None:
    """Writes a sampled item into `outs`, one contiguous array `[rows, ...]` for each column.

    `chunks` by key: what came with the item. Raises `WireError` when columns, types, row shapes or the number
    of rows differ from `outs`; the slices (offset, length, tensor) are the item's own.
    """
    if len(window.columns) != len(outs):
        raise WireError(f"an item has {len(window.columns)} columns, {len(outs)} were expected")
    for number, (column, out) in enumerate(zip(window.columns, outs, strict=True)):
        row = 0
        for piece in column.chunk_slices:
            if piece.length < 1:
                raise WireError(f"column {number}: a slice has {piece.length} rows")
            if row + piece.length > len(out):
                row += piece.length
                break
            chunk = chunks.get(piece.chunk_key)
            if chunk is None:
                raise WireError(f"column {number}: chunk {piece.chunk_key} did not come with its item")
            _read_slice(chunk, piece, out[row : row + piece.length], number)
            row += piece.length
        if row != len(out):
            raise WireError(f"column {number}: an item has {row} or more rows, {len(out)} were expected")


def _read_slice(chunk: pb.ChunkData, piece: pb.FlatTrajectory.ChunkSlice, out: np.ndarray, number: int) -> None:
    """Writes `piece` of `chunk` into `out` `[piece.length, ...]`, contiguous."""
    if not 0 <= piece.index < len(chunk.data.tensors):
        raise WireError(f"column {number}: chunk {chunk.chunk_key} has no tensor {piece.index}")
    tensor = chunk.data.tensors[piece.index]
    if not tensor.tensor_shape.dim:
        raise WireError(f"column {number}: chunk {chunk.chunk_key} has no rows")
    steps, *row_shape = (dim.size for dim in tensor.tensor_shape.dim)
    if tensor.dtype != _DTYPE_NUMBERS[out.dtype] or tuple(row_shape) != out.shape[1:]:
        held = DTYPES.get(tensor.dtype, f"type {tensor.dtype}")
        raise WireError(
            f"column {number}: an item holds {held} rows {row_shape[:MOST_DIMENSIONS]},"
            f" {out.dtype} rows {list(out.shape[1:])} were expected"
        )
    if piece.offset < 0 or piece.offset + piece.length > steps:
        raise WireError(f"column {number}: a slice ends beyond its chunk of {steps} rows")
    delta = chunk.delta_encoded and out.dtype.kind in "iu"
    if piece.length == steps and not delta:
        _decompress(tensor.tensor_content, out, number)
        return
    size = steps * out[0].nbytes
    if size > MOST_EXPANSION * len(tensor.tensor_content):
        raise WireError(f"column {number}: {len(tensor.tensor_content)} bytes cannot be a chunk of {steps} rows")
    whole = np.empty((steps, *row_shape), out.dtype)
    _decompress(tensor.tensor_content, whole, number)
    if delta:
        # Differences wrap around in their own type, and so does this sum.
        np.cumsum(whole, axis=0, dtype=whole.dtype, out=whole)
    out[...] = whole[piece.offset : piece.offset + piece.length]


def _decompress(content: bytes, out: np.ndarray, number: int) -> None:
    try:
        written = cramjam.snappy.decompress_raw_into(content, _raw(out)[0])
    except cramjam.DecompressionError as error:
        raise WireError(f"column {number}: {error}") from error
    if written != out.nbytes:
        raise WireError(f"column {number}: a chunk holds {written} bytes, {out.nbytes} were expected")


def _raw(array: np.ndarray, rows: int = 1) -> np.ndarray:
    """The bytes of a contiguous array, `[rows, bytes]` uint8, without a copy."""
    return array.reshape(rows, -1).view(np.uint8)


@lru_cache
def _tensor_header(dtype: np.dtype[Any], shape: tuple[int, ...]) -> bytes:
    return pb.Tensor(
        dtype=_DTYPE_NUMBERS[dtype],
        tensor_shape=pb.Tensor.Shape(dim=[pb.Tensor.Shape.Dim(size=size) for size in shape]),
    ).SerializeToString()


# Protobuf's encoding: a field's number and type in a byte, then an integer, of 7 bits a byte, or a length and so many
# bytes. Messages are made n at a time, as `[..., bytes]` uint8: where n integers or lengths differ they take as many
# bytes as any of their kind, which the encoding allows.


def _number(field: int, value: int) -> bytes:
    return bytes((field << 3, *_varint(value)))


def _numbers(field: int, values: np.ndarray) -> np.ndarray:
    return _join(bytes((field << 3,)), _varints(values, _INTEGER))


def _message(field: int, content: bytes) -> bytes:
    return bytes((field << 3 | 2, *_varint(len(content)))) + content


def _messages(field: int, *parts: np.ndarray | bytes) -> np.ndarray:
    """Of one size: `parts` side by side."""
    content = _join(*parts)
    return _join(bytes((field << 3 | 2, *_varint(content.shape[-1]))), content)


def _open(field: int, sizes: np.ndarray) -> np.ndarray:
    """`[..., _OPEN]`: what comes before the content of messages of `sizes` bytes."""
    return _join(bytes((field << 3 | 2,)), _varints(sizes, _LENGTH))


def _join(*parts: np.ndarray | bytes) -> np.ndarray:
    """`[..., bytes]` side by side; what is `bytes` is the same in all."""
    arrays = [part if isinstance(part, np.ndarray) else np.frombuffer(part, np.uint8) for part in parts]
    leading = max((array.shape[:-1] for array in arrays), key=len)
    whole = np.empty((*leading, sum(array.shape[-1] for array in arrays)), np.uint8)
    end = 0
    for array in arrays:
        start, end = end, end + array.shape[-1]
        whole[..., start:end] = array
    return whole


def _varint(value: int) -> bytes:
    septets = [value >> shift & 127 for shift in range(0, max(value.bit_length(), 1), 7)]
    return bytes((*(septet | 128 for septet in septets[:-1]), septets[-1]))


def _varints(values: np.ndarray, width: int) -> np.ndarray:
    """`values` `[...]` uint64 in `width` bytes each: `[..., width]` uint8."""
    septets = (values[..., None] >> np.arange(0, 7 * width, 7, dtype=np.uint64) & np.uint64(127)).astype(np.uint8)
    septets[..., :-1] |= 128
    return septets
