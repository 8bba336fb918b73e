"""Audit of replay, compared with windows counted by hand."""

from pathlib import Path

import numpy as np

from shared.replay.audit import Account, AuditLog, account, read_audit
from shared.replay.insert import Keys
from shared.replay.windows import VOID_EPISODE

N, K, TABLES = 2, 2, 2


def shard(*numbers: int, void: tuple[tuple[int, int], ...] = ()) -> list[tuple[int, np.ndarray]]:
    """Returns unrolls of one source; `void`: unrolls and environments whose chunk has no data."""
    ints = {number: np.zeros((N, 3, 4), np.int32) for number in numbers}
    for number, environment in void:
        ints[number][environment, :, 0] = VOID_EPISODE
    return list(ints.items())


def keys(number: int, source: int = 0, environments: tuple[int, ...] = (0, 1)) -> set[int]:
    """Returns the keys of the windows that unroll `number` completes, in all tables."""
    return set(Keys(source, N, TABLES).of(number)[environments, 1:].ravel().tolist())


def test_a_window_is_counted_once_for_every_table() -> None:
    held = keys(1) | keys(2)
    assert len(held) == 8
    assert account([shard(0, 1, 2)], N, TABLES, K, {1: held}, {1: 8}) == Account(windows=4, lost=0, twice=0)


def test_windows_that_no_server_confirmed_are_lost() -> None:
    held = keys(1) | keys(2, environments=(0,))
    assert account([shard(0, 1, 2)], N, TABLES, K, {1: held}, {1: 6}) == Account(4, lost=2, twice=0)
    one_table = keys(1) | {min(keys(2))}
    assert account([shard(0, 1, 2)], N, TABLES, K, {1: one_table}, {1: 5}) == Account(4, lost=3, twice=0)
    assert account([shard(0, 1, 2)], N, TABLES, K, {}, {}) == Account(4, lost=8, twice=0)


def test_a_window_in_two_incarnations_counts_once() -> None:
    held = {1: keys(1), 2: keys(1) | keys(2)}
    assert account([shard(0, 1, 2)], N, TABLES, K, held, {1: 4, 2: 8}) == Account(4, 0, 0)


def test_inserts_beyond_the_number_of_keys_count_as_held_twice() -> None:
    held = {1: keys(1), 2: keys(1) | keys(2)}
    assert account([shard(0, 1, 2)], N, TABLES, K, held, {1: 5, 2: 10}) == Account(4, 0, twice=3)
    assert account([shard(0, 1, 2)], N, TABLES, K, held, {1: 2, 2: 10}) == Account(4, 0, twice=2)
    assert account([shard(0, 1, 2)], N, TABLES, K, held, {2: 8, 3: 1}) == Account(4, 0, twice=1)


def test_each_source_has_its_own_windows() -> None:
    held = keys(1) | keys(2) | keys(1, source=1)
    assert account([shard(0, 1, 2), shard(0, 1)], N, TABLES, K, {1: held}, {1: 12}) == Account(6, 0, 0)
    assert account([shard(0, 1, 2), shard(0, 1, 2)], N, TABLES, K, {1: held}, {1: 12}) == Account(8, lost=4, twice=0)


def test_no_window_spans_a_gap_or_a_void_chunk() -> None:
    gap = [shard(0, 1, 3, 4)]
    assert account(gap, N, TABLES, K, {1: keys(1) | keys(4)}, {1: 8}) == Account(4, 0, 0)
    void = [shard(0, 1, 2, 3, void=((1, 1),))]
    held = keys(1, environments=(0,)) | keys(2, environments=(0,)) | keys(3)
    assert account(void, N, TABLES, K, {1: held}, {1: 8}) == Account(4, 0, 0)


def test_written_keys_are_read_back(tmp_path: Path) -> None:
    first, other = AuditLog(tmp_path / "audit" / "source-0.keys"), AuditLog(tmp_path / "audit" / "source-1.keys")
    largest = 2**64 - 1
    first.write(1, [3, largest])
    first.write(2, [3])
    other.write(1, [7])
    AuditLog(tmp_path / "audit" / "source-0.keys").write(2, [5])  # the source's next incarnation
    assert read_audit(tmp_path / "audit") == {1: {3, largest, 7}, 2: {3, 5}}
    assert read_audit(tmp_path / "nowhere") == {}


def test_a_last_entry_cut_short_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "source-0.keys"
    AuditLog(path).write(1, [3, 4])
    path.write_bytes(path.read_bytes()[:-5])
    assert read_audit(tmp_path) == {1: {3}}
