"""Responses to a sample request, read in place: windows in any division, and responses that cannot be read."""

import contextlib
from collections.abc import Iterator

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings

from shared.replay import reverb_pb2 as pb
from shared.replay import wire
from shared.replay.response import Chunk, Entry, PartialWindow, read_entries
from shared.replay.wire import WireError

T, F, K = 3, 4, 3


def made(seed: int = 0) -> tuple[list[np.ndarray], pb.InsertStreamRequest]:
    """Returns columns `[K, T, ...]` of one window, and a request with its chunks and its item."""
    rng = np.random.default_rng(seed)
    columns = [rng.standard_normal((K, T, F), np.float32), rng.integers(-9, 9, (K, T, 4), dtype=np.int32)]
    keys = np.array([7, 2**64 - 1, 300], np.uint64)
    message = wire.chunks(keys, columns, keys, start=0).tobytes()
    message += wire.items("table", keys[:1], wire.trajectories(keys[None], T, columns=2))
    return columns, pb.InsertStreamRequest.FromString(message)


def outs() -> list[np.ndarray]:
    return [np.zeros((K * T, F), np.float32), np.zeros((K * T, 4), np.int32)]


def entries(responses: list[pb.SampleStreamResponse]) -> Iterator[Entry]:
    for response in responses:
        yield from read_entries(memoryview(bytearray(response.SerializeToString())))


def test_a_window_comes_in_any_number_of_responses_and_its_chunks_in_any_order() -> None:
    columns, request = made()
    for order in ([0, 1, 2], [2, 0, 1]):
        responses = [pb.SampleStreamResponse() for _ in range(2)]
        first = responses[0].entries.add(data=[request.chunks[order[0]]])
        first.info.item.flat_trajectory.CopyFrom(request.items[0].flat_trajectory)
        responses[0].entries.add(data=[request.chunks[order[1]]])
        responses[1].entries.add(data=[request.chunks[order[2]]], end_of_sequence=True)
        got = outs()
        parts = list(entries(responses))
        assert [part.item is not None for part in parts] == [True, False, False]
        assert [part.ends for part in parts] == [False, False, True]
        assert parts[0].item is not None
        window = PartialWindow(parts[0].item, got)
        for part in parts[:2]:
            for chunk in part.chunks:
                window.write(chunk)
        with pytest.raises(WireError, match=f"chunk {request.chunks[order[2]].chunk_key} did not come"):
            window.finish()
        window.write(parts[2].chunks[0])
        window.finish()
        for out, column in zip(got, columns, strict=True):
            np.testing.assert_array_equal(out, column.reshape(out.shape))


@settings(max_examples=150)
@given(st.data())
def test_a_damaged_response_is_a_wire_error_or_a_window(data: st.DataObject) -> None:
    _, request = made()
    response = pb.SampleStreamResponse()
    entry = response.entries.add(data=request.chunks, end_of_sequence=True)
    entry.info.item.flat_trajectory.CopyFrom(request.items[0].flat_trajectory)
    content = bytearray(response.SerializeToString())
    for _ in range(data.draw(st.integers(0, 3))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    content = content[: data.draw(st.integers(0, len(content)))]
    with contextlib.suppress(WireError):
        for part in read_entries(memoryview(content)):
            if part.item is not None:
                window = PartialWindow(part.item, outs())
                for chunk in part.chunks:
                    window.write(chunk)
                window.finish()


def test_a_response_that_is_cut_off_is_a_wire_error() -> None:
    whole = pb.SampleStreamResponse(entries=[{"data": [{"chunk_key": 2**63}], "end_of_sequence": True}])
    content = whole.SerializeToString()
    assert list(read_entries(memoryview(content))) == [Entry(None, [Chunk(2**63, False, [])], True)]
    for size in range(1, len(content)):
        with pytest.raises(WireError, match="response"):
            list(read_entries(memoryview(content)[:size]))
