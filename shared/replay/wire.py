"""Chunks and windows as Reverb's messages, and back. Pure: numpy and protobuf, no connection.

The n chunks or items of a message differ in keys and content alone. So protobuf writes one of them, with placeholders,
and numpy writes the rest: protobuf objects for each would take six times as long.

Rows are sent uncompressed, as one literal of Snappy's raw format: float32 hardly compresses. Any Snappy is read.
"""

import math
from collections.abc import Sequence
from typing import Any

import cramjam
import numpy as np
from google.protobuf.message import Message

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
MOST_EXPANSION = 22  # 3 bytes of Snappy stand for 64 at most; no memory is allocated for a chunk that claims more
MOST_DIMENSIONS = 8  # that an error shows
_DTYPE_NUMBERS = {dtype: number for number, dtype in DTYPES.items()}
_KEY = 2**64 - 1  # placeholder of a key
_KEY_BYTES = b"\xff" * 9 + b"\x01"  # the same on the wire, of a width that every key can take

Trajectories = tuple[pb.FlatTrajectory, np.ndarray]
"""A window with placeholders, and windows of its form on the wire, `[n, bytes]` uint8."""


class WireError(ReplayError):
    """A message without the content that was expected of it."""


def chunks(keys: np.ndarray, columns: Sequence[np.ndarray], episode_ids: np.ndarray, start: int) -> memoryview:
    """Returns the `ChunkData` of a request, one for each of `keys` `[n]` and `episode_ids` `[n]`.

    Keys and ids are uint64; `columns` are contiguous, `[n, T, ...]` each, and their rows are steps `start` to
    `start + T - 1`. Raises ValueError if a step exceeds int32, which the server would not notice.
    """
    steps = columns[0].shape[1]
    if start + steps > 2**31:
        raise ValueError(f"step {start + steps - 1} of an environment is beyond int32: no run is that long")
    contents = [column.reshape(len(keys), math.prod(column.shape[1:])).view(np.uint8) for column in columns]
    literals = [_literal(content.shape[1]) for content in contents]
    tensors = [
        pb.Tensor(
            dtype=_DTYPE_NUMBERS[column.dtype],
            tensor_shape={"dim": [{"size": size} for size in column.shape[1:]]},
            tensor_content=literal,
        )
        for column, literal in zip(columns, literals, strict=True)
    ]
    chunk = pb.ChunkData(
        chunk_key=_KEY,
        sequence_range=pb.SequenceRange(episode_id=_KEY, start=start, end=start + steps - 1),
        data=pb.ChunkData.Data(tensors=tensors),
        data_tensors_len=len(columns),
        data_uncompressed_size=sum(content.shape[1] for content in contents),
    )
    fields = [(_KEY_BYTES, _varints(keys)), (_KEY_BYTES, _varints(episode_ids)), *zip(literals, contents, strict=True)]
    return _copies(pb.InsertStreamRequest(chunks=[chunk]), fields).reshape(-1).data


def trajectories(windows: np.ndarray, steps: int, columns: int) -> Trajectories:
    """Returns windows for `items`; `windows` `[n, K]`, uint64, holds the keys of their chunks, the oldest first.

    A window takes whole chunks, each of `steps` steps and with one tensor for each of `columns`.
    """
    slices = [pb.FlatTrajectory.ChunkSlice(chunk_key=_KEY, length=steps, index=index) for index in range(columns)]
    num_chunks = windows.shape[1]
    template = pb.FlatTrajectory(
        columns=[pb.FlatTrajectory.Column(chunk_slices=[each] * num_chunks) for each in slices]
    )
    fields = [(_KEY_BYTES, keys) for keys in np.moveaxis(_varints(np.tile(windows, columns)), 1, 0)]
    return template, _copies(template, fields)


def items(table: str, keys: np.ndarray, windows: Trajectories) -> bytes:
    """Returns the items of `table` in a request, of priority 1: one for each of `keys` `[n]`, uint64, and `windows`."""
    template, rows = windows
    item = pb.PrioritizedItem(key=_KEY, table=table, priority=1.0, flat_trajectory=template)
    fields = [(_KEY_BYTES, _varints(keys)), (template.SerializeToString(), rows)]
    return _copies(pb.InsertStreamRequest(items=[item]), fields).tobytes()


def keep_chunk_keys(keys: np.ndarray) -> bytes:
    """Returns a request's list of the chunks `[n]`, uint64, to which later requests refer."""
    return pb.InsertStreamRequest(keep_chunk_keys=keys.tolist()).SerializeToString()


def read_window(window: pb.FlatTrajectory, chunks: dict[int, pb.ChunkData], outs: Sequence[np.ndarray]) -> None:
    """Writes a sampled item into `outs`, one contiguous array `[rows, ...]` for each column.

    `chunks` are those that came with the item, by key. Raises `WireError` if columns, types, row shapes or the number
    of rows differ from `outs`; the item decides its slices (offset, length, tensor).
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
        written = cramjam.snappy.decompress_raw_into(content, out.reshape(-1).view(np.uint8).data)
    except cramjam.DecompressionError as error:
        raise WireError(f"column {number}: {error}") from error
    if written != out.nbytes:
        raise WireError(f"column {number}: a chunk holds {written} bytes, {out.nbytes} were expected")


def _literal(size: int) -> bytes:
    """Returns `size` zero bytes in Snappy's raw format: a varint of the size, a literal's tag and length, the bytes."""
    varint = pb.Uint128(high=size).SerializeToString()[1:]  # without the field's tag
    return varint + b"\xfc" + (size - 1).to_bytes(4, "little") + bytes(size)


def _copies(template: Message, fields: Sequence[tuple[bytes, np.ndarray]]) -> np.ndarray:
    """Returns the message `template` n times, `[n, bytes]` uint8, each with contents of its own.

    Each of `fields` is a placeholder and the rows `[n, size]` that replace its last `size` bytes, in the order in which
    the placeholders occur.
    """
    content, end = template.SerializeToString(), 0
    copies = np.tile(np.frombuffer(content, np.uint8), (len(fields[0][1]), 1))
    for placeholder, rows in fields:
        end = content.index(placeholder, end) + len(placeholder)
        copies[:, end - rows.shape[1] : end] = rows
    return copies


def _varints(values: np.ndarray) -> np.ndarray:
    """Returns `values` `[...]`, uint64, in protobuf's encoding, 10 bytes each: `[..., 10]` uint8."""
    septets = (values[..., None] >> np.arange(0, 70, 7, dtype=np.uint64) & np.uint64(127)).astype(np.uint8)
    septets[..., :-1] |= 128
    return septets
