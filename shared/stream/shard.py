"""Reading a shard that is being written, or was left by whoever wrote it."""

from bisect import bisect_right
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa

from shared.replay.codec import Columns
from shared.stream.files import reading
from shared.stream.format import StreamDescription, part_name
from shared.stream.part import AGAIN, by_either_name, columns_of, complete_batches, parts_in, whole_batches


def read_shard(folder: Path, description: StreamDescription, first: int = 0) -> Iterator[tuple[int, Columns]]:
    """Unrolls from number `first` on that are there now, oldest first, with their numbers; see `columns_of`.

    Parts may be added, finished and deleted meanwhile: what is deleted before its turn is left out. Checks no
    checksums. Holds one part in memory, compressed. Raises ConfigError where a part is damaged or another run's.
    """
    parts = parts_in(folder)
    before = max(0, bisect_right(parts, first) - 1)  # the part that `first` is in, if it is in any
    for begins in parts[before:]:
        for number, columns in _read_part(folder, begins, description):
            if number >= first:
                yield number, columns


def _read_part(folder: Path, first: int, description: StreamDescription) -> Iterator[tuple[int, Columns]]:
    path = folder / part_name(first)
    batches = by_either_name(
        folder, first, lambda at: whole_batches(at.read_bytes()), lambda at: complete_batches(at.read_bytes())
    )
    with reading(path, AGAIN):
        for number, batch in enumerate(batches or (), first):
            yield number, columns_of(path, batch, description)


def shard_numbers(folder: Path) -> list[range]:
    """The unrolls that are there, oldest first: a range for each stretch without a gap.

    Reads one part, the newest, and of the others where they end. Raises ConfigError where a part is damaged.
    """
    numbers: list[range] = []
    for first in parts_in(folder):
        unrolls = by_either_name(folder, first, _count, lambda at: sum(1 for _ in complete_batches(at.read_bytes())))
        if unrolls is None:
            return shard_numbers(folder)  # deleted meanwhile, and what is older with it
        begins = numbers.pop().start if numbers and numbers[-1].stop == first else first
        numbers.append(range(begins, first + unrolls))
    return [stretch for stretch in numbers if stretch]


def _count(path: Path) -> int:
    with pa.OSFile(str(path), "rb") as file:
        return pa.ipc.open_file(file).num_record_batches
