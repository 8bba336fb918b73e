"""Audit of replay: keys that the servers confirmed against the windows of the stream; none lost, none twice."""

import os
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from shared.replay.insert import Keys
from shared.replay.windows import no_windows
from shared.types import Array

Confirmed = dict[int, set[int]]
"""Item keys by the server's incarnation."""


class AuditLog:
    """File to which confirmed keys are appended; what was written survives its writer."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)

    def write(self, incarnation: int, keys: Sequence[int]) -> None:
        pairs = np.empty((len(keys), 2), np.uint64)
        pairs[:, 0], pairs[:, 1] = incarnation, keys
        os.write(self._file, pairs.tobytes())


def read_audit(folder: Path) -> Confirmed:
    """Returns the confirmed keys of all sources, without a last entry that was cut short."""
    confirmed: Confirmed = defaultdict(set)
    for path in folder.glob("*.keys"):
        data = path.read_bytes()
        for incarnation, key in np.frombuffer(data[: len(data) // 16 * 16], np.uint64).reshape(-1, 2).tolist():
            confirmed[incarnation].add(key)
    return dict(confirmed)


class Account(NamedTuple):
    """Windows of the stream, their items that no server ever confirmed, and items that one server held twice."""

    windows: int
    lost: int
    twice: int


def account(
    unrolls: Iterable[Iterable[tuple[int, Array]]],
    environments: int,
    tables: int,
    chunks_per_window: int,
    confirmed: Confirmed,
    counted: Mapping[int, int],
) -> Account:
    """Compares the windows of `unrolls`, `(number, ints [N, T, 4])` of every source in order, with the servers' items.

    `counted`: items that each incarnation of the server counted as inserted, over all tables. A server holds a key
    once; so one that counted more items than confirmed keys holds some twice.
    """
    expected: set[int] = set()
    for source, shard in enumerate(unrolls):
        keys, windows = Keys(source, environments, tables), no_windows(environments)
        for number, ints in shard:
            windows = windows.after(number, ints, chunks_per_window)
            complete = windows.complete(chunks_per_window)
            expected.update(keys.of(number)[complete, 1:].ravel().tolist())
    ever: set[int] = set().union(*confirmed.values())
    twice = sum(max(count - len(confirmed.get(each, ())), 0) for each, count in counted.items())
    return Account(len(expected) // tables, len(expected - ever), twice)
