"""Chunks and items on the wire, compared with protobuf's own objects for random shapes and keys."""

import hypothesis.extra.numpy as stn
import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings

from shared.replay import reverb_pb2 as pb
from shared.replay import wire
from shared.replay.response import PartialWindow, read_entries

T, F = 5, 4
KEYS = st.integers(0, 2**64 - 1)


def key_array(*shape: int) -> st.SearchStrategy[np.ndarray]:
    return stn.arrays(np.uint64, shape, elements=KEYS)


def read_window(item: pb.FlatTrajectory, chunks: list[pb.ChunkData], outs: list[np.ndarray]) -> None:
    """Writes the item of a response into `outs`."""
    response = pb.SampleStreamResponse()
    response.entries.add(info={"item": {"flat_trajectory": item}}, data=chunks, end_of_sequence=True)
    (entry,) = read_entries(memoryview(response.SerializeToString()))
    assert entry.ends
    assert entry.item == item
    window = PartialWindow(entry.item, outs)
    for chunk in entry.chunks:
        window.write(chunk)
    window.finish()


def contents(chunk: pb.ChunkData, columns: list[np.ndarray]) -> list[bytes]:
    """Returns the contents of the chunk's tensors, uncompressed, one for each of `columns` `[n, T, ...]`."""
    key, steps = chunk.chunk_key, columns[0].shape[1]
    slices = [pb.FlatTrajectory.ChunkSlice(chunk_key=key, length=steps, index=i) for i in range(len(columns))]
    window = pb.FlatTrajectory(columns=[pb.FlatTrajectory.Column(chunk_slices=[piece]) for piece in slices])
    outs = [np.empty(column.shape[1:], column.dtype) for column in columns]
    read_window(window, [chunk], outs)
    return [out.tobytes() for out in outs]


@settings(max_examples=60)
@given(st.data(), st.integers(1, 5), st.integers(1, 70), st.integers(1, 40), st.integers(0, 2**31 - 100))
def test_chunks_equal_protobufs(data: st.DataObject, n: int, steps: int, row: int, start: int) -> None:
    keys, episodes = data.draw(key_array(n)), data.draw(key_array(n))
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    columns = [
        rng.standard_normal((n, steps, row), dtype=np.float32),
        rng.integers(-9, 9, (n, steps, 4), dtype=np.int32),
    ][: data.draw(st.integers(1, 2))]
    request = pb.InsertStreamRequest.FromString(wire.chunks(keys, columns, episodes, start).tobytes())
    assert [chunk.chunk_key for chunk in request.chunks] == keys.tolist()
    for index, chunk in enumerate(request.chunks):
        assert contents(chunk, columns) == [column[index].tobytes() for column in columns]
        for tensor in chunk.data.tensors:
            tensor.tensor_content = b""
        expected = pb.ChunkData(
            chunk_key=int(keys[index]),
            sequence_range=pb.SequenceRange(episode_id=int(episodes[index]), start=start, end=start + steps - 1),
            data=pb.ChunkData.Data(
                tensors=[
                    pb.Tensor(dtype=number, tensor_shape={"dim": [{"size": size} for size in column.shape[1:]]})
                    for number, column in zip((1, 3), columns, strict=False)
                ]
            ),
            data_tensors_len=len(columns),
            data_uncompressed_size=sum(column[index].nbytes for column in columns),
        )
        assert chunk == expected


@settings(max_examples=60)
@given(st.data(), st.integers(0, 5), st.integers(1, 20), st.integers(1, 300), st.integers(1, 3))
def test_items_equal_protobufs(data: st.DataObject, n: int, chunks: int, steps: int, columns: int) -> None:
    keys, windows, kept = data.draw(key_array(n)), data.draw(key_array(n, chunks)), data.draw(key_array(n * chunks))
    table = data.draw(st.text(min_size=1, max_size=200))
    message = wire.items(table, keys, wire.trajectories(windows, steps, columns)) + wire.keep_chunk_keys(kept)
    expected = pb.InsertStreamRequest(keep_chunk_keys=kept.tolist())
    for key, window in zip(keys.tolist(), windows.tolist(), strict=True):
        trajectory = pb.FlatTrajectory(
            columns=[
                pb.FlatTrajectory.Column(
                    chunk_slices=[
                        pb.FlatTrajectory.ChunkSlice(chunk_key=chunk, length=steps, index=index) for chunk in window
                    ]
                )
                for index in range(columns)
            ]
        )
        expected.items.add(key=key, table=table, priority=1.0, flat_trajectory=trajectory)
    assert pb.InsertStreamRequest.FromString(message) == expected


def test_no_chunks_are_no_bytes() -> None:
    none = np.empty(0, np.uint64)
    assert wire.chunks(none, (np.empty((0, T, F), np.float32),), none, start=0).nbytes == 0


def test_steps_beyond_int32_are_refused() -> None:
    key, floats = np.array([7], np.uint64), np.zeros((1, T, F), np.float32)
    assert wire.chunks(key, (floats,), key, start=2**31 - T)
    with pytest.raises(ValueError, match="step 2147483648 of an environment is beyond int32"):
        wire.chunks(key, (floats,), key, start=2**31 - T + 1)


def test_read_window_refuses_unexpected_windows() -> None:
    floats, ints = np.random.default_rng(0).standard_normal((T, F), np.float32), np.zeros((T, 4), np.int32)
    key = np.array([7], np.uint64)
    message = wire.chunks(key, (floats[None], ints[None]), key, start=0).tobytes()
    message += wire.items("table", key, wire.trajectories(np.array([[7, 7]], np.uint64), T, columns=2))
    request = pb.InsertStreamRequest.FromString(message)
    chunk, window = request.chunks[0], request.items[0].flat_trajectory
    good = [np.empty((2 * T, F), np.float32), np.empty((2 * T, 4), np.int32)]
    read_window(window, [chunk], good)
    np.testing.assert_array_equal(good[0], np.concatenate([floats, floats]))
    bad_outs = {
        "rows": [np.empty((2 * T + 1, F), np.float32), good[1]],
        "or more rows": [np.empty((2 * T - 1, F), np.float32), good[1]],
        "rows .* were expected": [np.empty((2 * T, F + 1), np.float32), good[1]],
        "float32 rows": [np.empty((2 * T, F), np.float64), good[1]],
        "columns": good[:1],
    }
    for text, outs in bad_outs.items():
        with pytest.raises(wire.WireError, match=text):
            read_window(window, [chunk], outs)
    with pytest.raises(wire.WireError, match="did not come"):
        read_window(window, [], good)
    window.columns[0].chunk_slices[1].offset = 1
    with pytest.raises(wire.WireError, match="beyond"):
        read_window(window, [chunk], good)
