"""What the replay server said that it holds, and whether that is what the stream says: nothing lost, nothing twice."""

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
"""Item keys by the server's life."""


class AuditLog:
    """Keys as they are confirmed, appended to a file. What was written outlives its writer."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)

    def write(self, life: int, keys: Sequence[int]) -> None:
        pairs = np.empty((len(keys), 2), np.uint64)
        pairs[:, 0], pairs[:, 1] = life, keys
        os.write(self._file, pairs.tobytes())


def read_audit(folder: Path) -> Confirmed:
    """Of all sources; a last entry cut short is left out."""
    confirmed: Confirmed = defaultdict(set)
    for path in sorted(folder.glob("*.keys")):
        data = path.read_bytes()
        for life, key in np.frombuffer(data[: len(data) // 16 * 16], np.uint64).reshape(-1, 2).tolist():
            confirmed[life].add(key)
    return dict(confirmed)


class Account(NamedTuple):
    """`windows`: of the stream, by table. `lost`: those that a table never held. `twice`: held twice at a time."""

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
    """`unrolls`: of every source `(number, ints [N, T, 3])` in order, as its stream holds them. `counted`: what the
    servers counted as inserted, over all tables, by life.

    A window has one key in a table, under which a server holds it once; so a server that counted more than
    it confirmed keys holds one twice.
    """
    expected: set[int] = set()
    for source, shard in enumerate(unrolls):
        keys, windows = Keys(source, environments, tables), no_windows(environments)
        for number, ints in shard:
            windows = windows.after(number, ints, chunks_per_window)
            complete = windows.complete(chunks_per_window)
            expected.update(keys.of(number)[complete, 1:].ravel().tolist())
    ever: set[int] = set().union(*confirmed.values())
    twice = sum(max(count - len(confirmed.get(life, ())), 0) for life, count in counted.items())
    return Account(len(expected) // tables, len(expected - ever), twice)
