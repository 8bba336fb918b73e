"""Chunks and windows as Reverb's messages; `response.py` reads them. Pure: numpy and protobuf, no connection.

The n chunks or items of a message differ in keys and content alone. So protobuf writes one of them, with placeholders,
and numpy writes the rest: protobuf objects for each would take six times as long.

Rows are sent uncompressed, as one literal of Snappy's raw format: float32 hardly compresses.
"""

import math
from collections.abc import Sequence
from typing import Any

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
DTYPE_NUMBERS = {dtype: number for number, dtype in DTYPES.items()}
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
            dtype=DTYPE_NUMBERS[column.dtype],
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


def read_varint(data: bytes | memoryview, at: int) -> tuple[int, int]:
    """Returns the integer in protobuf's encoding that begins at `at`, and the place after it.

    Raises WireError if it has more than 10 bytes, IndexError if it is cut off.
    """
    value = 0
    for shift in range(0, 70, 7):
        byte = data[at]
        at += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, at
    raise WireError("an integer has more than 10 bytes")


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
