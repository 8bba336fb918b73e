"""Chunks and windows as Reverb's messages, and back. Pure: numpy and protobuf, no connection."""

from collections.abc import Iterable, Sequence
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
_DTYPE_NUMBERS = {dtype: number for number, dtype in DTYPES.items()}


class WireError(ReplayError):
    """A message that does not hold what was expected of it."""


def chunk_data(key: int, tensors: Sequence[np.ndarray], episode_id: int, start: int) -> pb.ChunkData:
    """`tensors` `[T, ...]` each, contiguous, one for each column; steps `start` to `start + T - 1`."""
    steps = tensors[0].shape[0]
    return pb.ChunkData(
        chunk_key=key,
        sequence_range=pb.SequenceRange(episode_id=episode_id, start=start, end=start + steps - 1),
        data=pb.ChunkData.Data(tensors=[_tensor(array) for array in tensors]),
        data_tensors_len=len(tensors),
        data_uncompressed_size=sum(array.nbytes for array in tensors),
    )


def slice_bytes(key: int, steps: int, columns: int) -> list[bytes]:
    """The whole of chunk `key` (`steps` long) as one slice of each column, serialised.

    A column that spans several chunks is these bytes joined: that is how protobuf merges repeated fields.
    """
    return [
        pb.FlatTrajectory.Column(
            chunk_slices=[pb.FlatTrajectory.ChunkSlice(chunk_key=key, length=steps, index=index)]
        ).SerializeToString()
        for index in range(columns)
    ]


def trajectory(window: Iterable[list[bytes]]) -> pb.FlatTrajectory:
    """A window from the `slice_bytes` of its chunks, oldest first."""
    columns = [pb.FlatTrajectory.Column.FromString(b"".join(slices)) for slices in zip(*window, strict=True)]
    return pb.FlatTrajectory(columns=columns)


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


def _tensor(array: np.ndarray) -> pb.Tensor:
    return pb.Tensor(
        dtype=_DTYPE_NUMBERS[array.dtype],
        tensor_shape=pb.Tensor.Shape(dim=[pb.Tensor.Shape.Dim(size=size) for size in array.shape]),
        tensor_content=bytes(cramjam.snappy.compress_raw(_raw(array))),
    )


def _decompress(content: bytes, out: np.ndarray, number: int) -> None:
    try:
        written = cramjam.snappy.decompress_raw_into(content, _raw(out))
    except cramjam.DecompressionError as error:
        raise WireError(f"column {number}: {error}") from error
    if written != out.nbytes:
        raise WireError(f"column {number}: a chunk holds {written} bytes, {out.nbytes} were expected")


def _raw(array: np.ndarray) -> memoryview:
    """The bytes of a contiguous array, without a copy."""
    return array.reshape(-1).view(np.uint8).data
