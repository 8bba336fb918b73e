"""Windows exchanged with Reverb's own client, the stock client, in both directions and equal bit for bit."""

import itertools
from pathlib import Path

import numpy as np
import pytest

from deploy.bench.replay import StockClient
from shared.replay import reverb_pb2 as pb
from shared.replay.channel import SAMPLE_STREAM
from shared.replay.codec import INT_COLUMNS, Columns
from shared.replay.http2 import StreamingCall
from shared.replay.info import server_info
from shared.replay.insert import Inserter
from shared.replay.response import PartialWindow, read_entries
from shared.replay.sample import Sampler

N, T, F, K = 3, 5, 4, 3


def bits(array: np.ndarray) -> bytes:
    return np.ascontiguousarray(array).tobytes()


def odd_floats(*shape: int) -> np.ndarray:
    """Returns floats with NaN payloads, -0.0, infinities and denormals, which only a comparison of bits tells apart."""
    floats = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    odd = np.array([0x7FC01234, 0xFFC00001, 0x80000000, 0x7F800000, 0x00000001], np.uint32).view(np.float32)
    floats.reshape(-1)[: len(odd) * 4 : 4] = odd
    return floats


def read_items(
    address: str, table: str, windows: int, outs: list[np.ndarray], delta_encoded: bool = False
) -> list[list[np.ndarray]]:
    """Reads `windows` items with columns shaped as `outs`, by the wire functions without a client."""
    request = pb.SampleStreamRequest(table=table, num_samples=windows, rate_limiter_timeout={"milliseconds": 2000})
    items: list[list[np.ndarray]] = []
    call = StreamingCall(address, SAMPLE_STREAM)
    try:
        call.send(request.SerializeToString())
        while len(items) < windows:
            for entry in read_entries(call.receive()):
                assert entry.ends  # a small item comes in one response
                assert entry.item is not None
                assert all(chunk.delta_encoded == delta_encoded for chunk in entry.chunks)
                items.append([np.empty_like(out) for out in outs])
                window = PartialWindow(entry.item, items[-1])
                for chunk in entry.chunks:
                    window.write(chunk)
                window.finish()
    finally:
        call.close()
    return items


def test_stock_client_reads_our_windows(address: str, stock: StockClient, tmp_path: Path) -> None:
    row, unrolls = 4000, 4  # Snappy writes the length of a literal of 80 kB, the size of a chunk, in three bytes
    floats = odd_floats(unrolls, N, T, row)
    ints = np.random.default_rng(1).integers(-(2**31), 2**31, (4, N, T, INT_COLUMNS), dtype=np.int32)
    inserter = Inserter(address, ["from_ours"], K, N, timeout_s=5)
    for unroll in range(unrolls):
        inserter.insert(Columns(floats[unroll], ints[unroll]))
    inserter.flush(timeout_s=5)
    assert server_info(address).tables["from_ours"].inserted == N * (unrolls - K + 1)
    inserter.close()
    expected = {
        (bits(np.concatenate(floats[u : u + K, n])), bits(np.concatenate(ints[u : u + K, n])))
        for u, n in itertools.product(range(unrolls - K + 1), range(N))
    }
    stock.ask("read", address=address, table="from_ours", path=str(tmp_path / "read.npz"), windows=100)
    with np.load(tmp_path / "read.npz") as read:
        assert read["0.0"].shape == (K * T, row)
        assert read["0.1"].shape == (K * T, INT_COLUMNS)
        assert {(bits(read[f"{i}.0"]), bits(read[f"{i}.1"])) for i in range(100)} == expected


def test_our_sampler_reads_stock_windows_with_offsets(address: str, stock: StockClient, tmp_path: Path) -> None:
    floats = odd_floats(20, F)
    ints = np.random.default_rng(1).integers(-(2**31), 2**31, (20, INT_COLUMNS), dtype=np.int32)
    np.savez(tmp_path / "rows.npz", **{"0": floats, "1": ints})
    # The columns have chunks of different lengths, so their slices differ. In the last item their rows differ as well.
    # The stock client gets a slice wrong that ends at the writer's last row, so no slice here ends there.
    items = [[[1, 12], [1, 12]], [[7, 18], [7, 18]], [[3, 14], [8, 19]]]
    stock.ask(
        "write",
        address=address,
        table="from_stock",
        path=str(tmp_path / "rows.npz"),
        chunk_lengths=[4, 3],
        items=items,
    )
    sampler = Sampler(address, "from_stock", 8, 11, F, lambda c: (np.copy(c.floats), np.copy(c.ints)), timeout_s=5)
    read = set()
    for _ in range(8):
        (got_floats, got_ints), _ = sampler.sample()
        read |= {(bits(f), bits(i)) for f, i in zip(got_floats, got_ints, strict=True)}
    sampler.close()
    assert read == {(bits(floats[slice(*f)]), bits(ints[slice(*i)])) for f, i in items}


def test_many_columns_and_squeezed_columns_are_read(address: str, stock: StockClient, tmp_path: Path) -> None:
    columns = [
        odd_floats(10, 2, 3),
        np.arange(10, dtype=np.int64) * -(2**40),
        np.arange(20, dtype=np.uint8).reshape(10, 2),
        np.arange(10) % 2 == 0,
        np.arange(10, dtype=np.float64) / 3,
    ]
    np.savez(tmp_path / "rows.npz", **{str(c): column for c, column in enumerate(columns)})
    item = [[2, 8], 5, [0, 9], [3, 4], 8]
    stock.ask(
        "write",
        address=address,
        table="many",
        path=str(tmp_path / "rows.npz"),
        chunk_lengths=[4, 1, 2, 9, 3],
        items=[item],
    )
    expected = [columns[0][2:8], columns[1][5:6], columns[2][:9], columns[3][3:4], columns[4][8:9]]
    (got,) = read_items(address, "many", 1, expected)
    assert [bits(column) for column in got] == [bits(column) for column in expected]


@pytest.mark.parametrize("chunk_length", [3, 4])
def test_delta_encoded_ints_are_read(address: str, stock: StockClient, tmp_path: Path, chunk_length: int) -> None:
    """Reads differences that overflow, in windows that start inside a chunk (row 2 of chunks of 3 or 4 rows)."""
    floats = odd_floats(10, F)
    ints = np.random.default_rng(chunk_length).integers(-(2**31), 2**31, (10, INT_COLUMNS), dtype=np.int32)
    np.savez(tmp_path / "rows.npz", **{"0": floats, "1": ints})
    table = "from_steps"
    stock.ask(
        "write_steps",
        address=address,
        table=table,
        path=str(tmp_path / "rows.npz"),
        chunk_length=chunk_length,
        rows=8,
    )
    outs = [np.empty((8, F), np.float32), np.empty((8, INT_COLUMNS), np.int32)]
    read = {(bits(f), bits(i)) for f, i in read_items(address, table, 30, outs, delta_encoded=True)}
    assert (bits(floats[2:]), bits(ints[2:])) in read
