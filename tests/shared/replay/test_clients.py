"""Inserter and Sampler against a real server: order, bounds, limits, and how every wait ends."""

import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from shared.replay import insert
from shared.replay import reverb_pb2 as pb
from shared.replay.codec import Columns
from shared.replay.errors import ReplayExhausted, ReplayMismatch, ReplayStopped, ReplayTimeout
from shared.replay.info import server_info
from shared.replay.insert import Inserter, Keys
from shared.replay.sample import Sampler
from shared.replay.windows import VOID_EPISODE
from shared.replay.wire import WireError
from tests.shared.replay.cases import F, T, copied, unroll

K = 3


def make_sampler(
    address: str, table: str, windows: int, transfer: Callable[[Columns], Any] = copied, **options: Any
) -> Sampler[Any]:
    return Sampler(address, table, windows, K * T, F, transfer, **{"timeout_s": 5.0, **options})


def fill(address: str, tables: list[str], environments: int, unrolls: int) -> None:
    inserter = Inserter(address, tables, K, environments, timeout_s=5)
    for number in range(unrolls):
        inserter.insert(unroll(number, environments))
    inserter.flush(timeout_s=5)
    inserter.close()


def test_windows_are_consecutive_rows_of_one_environment(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Samples every window of 71 environments, which the inserter splits between two streams of different size."""
    environments, unrolls, tables = 71, 6, ["order/a", "order/b"]
    monkeypatch.setattr(insert, "MOST_KEPT_CHUNKS", 100)
    inserter = Inserter(address, tables, K, environments, timeout_s=5)
    assert len(inserter._streams) == 2
    for number in range(unrolls):
        columns = unroll(number, environments)
        inserter.insert(columns)
        np.asarray(columns.floats).fill(-1)  # the caller may reuse its arrays at once
    inserter.flush(timeout_s=5)
    windows = environments * (unrolls - K + 1)
    assert inserter._confirmed == dict.fromkeys(tables, windows)
    inserter.close()
    for table in tables:
        assert server_info(address).tables[table].inserted == windows
        sampler = make_sampler(address, table, 40)
        sampled: set[tuple[int, int]] = set()
        deadline = time.monotonic() + 20
        while len(sampled) < windows and time.monotonic() < deadline:
            batch, _ = sampler.sample()
            assert (batch.floats == batch.ints).all()
            environment, step, number, _ = np.moveaxis(batch.ints, -1, 0)
            assert (environment == environment[:, :1]).all()
            assert (np.diff(step, axis=1) == 1).all()
            assert (step // T == number).all()
            assert (step[:, 0] % T == 0).all()
            sampled |= set(zip(environment[:, 0].tolist(), number[:, 0].tolist(), strict=True))
        sampler.close()
        assert sampled == {(e, u) for e in range(environments) for u in range(unrolls - K + 1)}


def test_the_server_keeps_the_chunks_of_later_windows_only(address: str) -> None:
    environments, numbers = 2, (0, 1, 2, 3, 5, 6, 7)  # no window spans the gap
    inserter = Inserter(address, ["kept"], K, environments, timeout_s=5)
    kept, make_request = [], inserter._request

    def spy(*args: Any) -> bytes:
        request = make_request(*args)
        kept.append(set(pb.InsertStreamRequest.FromString(request).keep_chunk_keys))
        return request

    inserter._request = spy  # type: ignore[method-assign]
    for number in numbers:
        inserter.insert(unroll(number, environments), number)
    inserter.flush(timeout_s=5)
    inserter.close()
    needed_later = [[0], [0, 1], [1, 2], [2, 3], [5], [5, 6], [6, 7]]
    keys = Keys(0, environments, 1)
    assert kept == [set(keys.of(unrolls)[..., 0].ravel().tolist()) for unrolls in needed_later]


def test_insert_is_bounded_by_the_least_advanced_table(address: str) -> None:
    environments, tables = 4, ["slow/ahead", "slow/behind"]
    inserter = Inserter(address, tables, K, environments, timeout_s=1.5)
    inserted: list[int] = []
    assert inserter.room

    def insert_repeatedly() -> None:
        while len(inserted) < 100:
            inserter.insert(unroll(len(inserted), environments))
            inserted.append(1)

    started = time.monotonic()
    with pytest.raises(ReplayTimeout, match="table slow/behind is behind") as caught:
        insert_repeatedly()
    assert time.monotonic() - started < 4
    ahead, behind = inserter._confirmed["slow/ahead"], inserter._confirmed["slow/behind"]
    assert f"slow/behind: {behind} confirmed" in str(caught.value)
    assert 16 <= behind <= 17  # M + E, and one window that crosses the limit
    assert ahead - behind <= 2 * environments
    assert server_info(address).tables["slow/ahead"].inserted <= behind + 2 * environments
    assert len(inserted) <= K - 1 + behind // environments + 2
    assert not inserter.room
    with pytest.raises(ReplayTimeout):
        inserter.flush(timeout_s=0.5)
    stop = threading.Event()
    timer = threading.Timer(0.3, stop.set)
    timer.start()
    inserter._should_stop = stop
    started = time.monotonic()
    with pytest.raises(ReplayStopped):
        inserter.flush(timeout_s=30)
    assert time.monotonic() - started < 2
    inserter.close()
    inserter.close()
    timer.join()


def test_limiter_accounts_for_every_window(address: str) -> None:
    """Checks that `(inserts - M) * samples_per_insert - samples` stays within [-E, E], and that both sides end.

    M is `min_size_to_sample`, E is `error_buffer`.
    """
    environments, unrolls, batch = 4, 22, 8
    windows = environments * (unrolls - K + 1)
    inserting = threading.Thread(target=fill, args=(address, ["ratio"], environments, unrolls))
    # With this number of samples, the limiter blocks neither the last insert nor the last sample.
    batches = (windows - 8) * 2 // batch
    sampler = make_sampler(address, "ratio", batch, max_windows=batches * batch)
    inserting.start()
    for _ in range(batches):
        sampler.sample()
        table = server_info(address).tables["ratio"]
        assert -16 <= (table.inserted - 8) * 2 - table.sampled <= 16 + 2
    inserting.join(10)
    assert not inserting.is_alive()
    table = server_info(address).tables["ratio"]
    assert (table.inserted, table.sampled) == (windows, batches * batch)
    assert (table.samples_per_insert, table.min_size_to_sample) == (2.0, 8)
    assert (table.min_diff, table.max_diff) == (0.0, 32.0)
    sampler.close()


def test_windows_sent_again_count_once(address: str) -> None:
    """Sends windows again from a new inserter of the same source; another source has its own windows."""
    environments, unrolls, names = 70, 5, ["again/a", "again/b"]
    windows = environments * (unrolls - K + 1)
    for source, counted in ((0, windows), (0, windows), (3, 2 * windows), (0, 2 * windows)):
        inserter = Inserter(address, names, K, environments, source=source, timeout_s=5)
        for number in range(unrolls):
            inserter.insert(unroll(number, environments), number)
        inserter.flush(timeout_s=5)
        assert inserter._confirmed == dict.fromkeys(names, windows)
        inserter.close()
        tables = server_info(address).tables
        assert [(tables[name].size, tables[name].inserted) for name in names] == [(counted, counted)] * 2


def test_windows_that_the_limiter_blocked_count_once(address: str) -> None:
    """Closes an inserter that the limiter blocks, then sends all windows again from a second inserter."""
    environments, unrolls = 4, 12
    first = Inserter(address, ["blocked"], K, environments, timeout_s=1)
    with pytest.raises(ReplayTimeout):
        insert_all(first, environments, unrolls)
    blocked = server_info(address).tables["blocked"].inserted
    assert 16 <= blocked < environments * (unrolls - K + 1)
    first.close()
    second = Inserter(address, ["blocked"], K, environments, timeout_s=20)
    inserting = threading.Thread(target=insert_all, args=(second, environments, unrolls))
    inserting.start()
    windows = environments * (unrolls - K + 1)
    sampler = make_sampler(address, "blocked", 4, max_windows=windows - 8)
    for _ in range((windows - 8) // 4):
        sampler.sample()
    inserting.join(20)
    second.flush(timeout_s=5)
    table = server_info(address).tables["blocked"]
    assert (table.size, table.inserted, table.sampled) == (windows, windows, windows - 8)
    second.close()
    sampler.close()


def insert_all(inserter: Inserter, environments: int, unrolls: int) -> None:
    for number in range(unrolls):
        inserter.insert(unroll(number, environments), number)


def test_unrolls_without_windows_belong_to_later_windows(address: str) -> None:
    inserter = Inserter(address, ["without"], K, 2, timeout_s=5)
    for number in range(5):
        inserter.insert(unroll(number, 2), number, windows=False)
    inserter.flush(timeout_s=5)
    time.sleep(0.2)
    assert server_info(address).tables["without"].inserted == inserter._confirmed["without"] == 0
    inserter.insert(unroll(5, 2), 5)
    inserter.flush(timeout_s=5)
    assert server_info(address).tables["without"].inserted == inserter._confirmed["without"] == 2
    sampler = make_sampler(address, "without", 4)
    batch, _ = sampler.sample()
    assert (batch.ints[:, :, 1] == np.arange(3 * T, 6 * T)).all()
    sampler.close()
    inserter.close()


def test_unrolls_whose_chunks_are_all_void_are_not_sent(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The server refuses messages without a chunk. One stream has only void chunks, then both streams have."""
    environments, void = 8, {3: slice(4), 4: slice(8), 5: slice(8), 6: slice(8), 7: slice(8)}
    monkeypatch.setattr(insert, "MOST_KEPT_CHUNKS", 8)
    inserter = Inserter(address, ["void"], K, environments, timeout_s=5)
    assert len(inserter._streams) == 2
    for number in range(11):
        columns = copied(unroll(number, environments))
        columns.ints[void.get(number, slice(0)), :, 0] = VOID_EPISODE
        inserter.insert(columns)
        if number in (4, 5, 6, 7):
            inserter.flush(timeout_s=5)
            assert inserter.room
            assert inserter.in_flight == 0
    inserter.flush(timeout_s=5)
    inserter.close()
    # Unroll 2 ends a window of each environment, unroll 3 one of half of them, unroll 10 one of each again.
    assert server_info(address).tables["void"].inserted == 8 + 4 + 8


def test_max_windows_is_never_exceeded(address: str) -> None:
    fill(address, ["exact"], environments=2, unrolls=K)
    sampler = make_sampler(address, "exact", 4, max_windows=12)
    for _ in range(3):
        sampler.sample()
    with pytest.raises(ReplayExhausted):
        sampler.sample()
    assert sampler.windows_received == 12
    assert server_info(address).tables["exact"].sampled == 12
    sampler.close()
    with pytest.raises(ValueError, match="max_windows"):
        make_sampler(address, "exact", 4, max_windows=13)


def test_a_partial_batch_is_completed_after_a_limiter_timeout(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shared.replay.sample.RATE_LIMITER_TIMEOUT_S", 0.3)
    sampler = make_sampler(address, "partial", 4, max_windows=8)
    sampler.start()
    inserter = Inserter(address, ["partial"], K, 1, timeout_s=5)
    for number in range(K + 1):
        inserter.insert(unroll(number, 1))
        time.sleep(0.2)
    time.sleep(1.0)
    assert 1 <= sampler.windows_received < 4
    for number in range(K + 1, K + 9):
        inserter.insert(unroll(number, 1))
    for _ in range(2):
        batch, _ = sampler.sample()
        assert (np.diff(batch.ints[..., 1], axis=1) == 1).all()
    assert server_info(address).tables["partial"].sampled == 8
    inserter.flush(timeout_s=5)
    inserter.close()
    sampler.close()


def test_waits_for_samples_end_with_named_errors(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shared.replay.sample.RATE_LIMITER_TIMEOUT_S", 0.3)
    sampler = make_sampler(address, "empty", 4, timeout_s=1.0)
    with pytest.raises(ReplayTimeout, match="no window arrived from table empty"):
        sampler.sample()
    with pytest.raises(ReplayStopped, match="asked to stop"):
        sampler.sample(should_stop=lambda: True)
    started = time.monotonic()
    sampler.close()
    assert time.monotonic() - started < 1
    with pytest.raises(ReplayStopped, match="closed"):
        sampler.sample()


def test_transfer_errors_reach_the_learner(address: str) -> None:
    fill(address, ["stop"], environments=2, unrolls=K)

    def failing(columns: Columns) -> None:
        raise MemoryError("no room on the device")

    sampler = make_sampler(address, "stop", 2, failing)
    with pytest.raises(MemoryError, match="no room"):
        sampler.sample()
    sampler.close()
    wrong = Sampler(address, "stop", 2, K * T, F + 1, copied)
    with pytest.raises(WireError, match=r"rows \[4\]"):
        wrong.sample()
    wrong.close()


def test_bad_unrolls_are_refused_before_sending(address: str) -> None:
    inserter = Inserter(address, ["shapes"], K, 2)
    good = unroll(0, 2)
    floats, ints = np.asarray(good.floats), np.asarray(good.ints)
    bad = [
        ("floats: float32 \\[2, 4, 4\\] is needed, not float64", Columns(floats.astype(np.float64), ints)),
        ("ints: int32 \\[2, 4, 4\\] is needed, not int64", Columns(floats, ints.astype(np.int64))),
        ("floats: float32 \\[2, 4, 4\\]", Columns(floats[:1], ints)),
        ("floats: float32 \\[2, T, F\\]", Columns(floats[0], ints)),
        ("floats: float32 \\[2, T, F\\]", Columns(floats[:, :0], ints)),
        ("ints: int32 \\[2, 4, 4\\]", Columns(floats, ints[:, :3])),
        ("ints: int32 \\[2, 4, 4\\] is needed, not int32 \\[2, 4, 3\\]", Columns(floats, ints[..., :3])),
    ]
    for text, columns in bad:
        with pytest.raises(ValueError, match=text):
            inserter.insert(columns)
    inserter.insert(good)
    with pytest.raises(ValueError, match="floats: float32 \\[2, 4, 4\\] is needed, not float32 \\[2, 3, 4\\]"):
        inserter.insert(Columns(floats[:, :3], ints[:, :3]))
    inserter.close()
    with pytest.raises(ReplayStopped, match="closed"):
        inserter.insert(good)
    with pytest.raises(ValueError, match="tables"):
        Inserter(address, ["shapes", "shapes"], K, 2)


def test_clients_refuse_a_server_without_their_tables(address: str) -> None:
    with pytest.raises(ReplayMismatch, match="lacks other/run"):
        Inserter(address, ["shapes", "other/run"], K, 2)
    with pytest.raises(ReplayMismatch, match="lacks other/run"):
        make_sampler(address, "other/run", 2)
