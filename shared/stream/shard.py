"""Reader of a shard that is being written, or whose writer died."""

from bisect import bisect_right
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from shared.replay.codec import Columns
from shared.stream.files import reading
from shared.stream.format import PARTIAL, StreamDescription, part_name
from shared.stream.part import AGAIN, columns_of, complete_batches, parts_in, whole_batches


def read_shard(folder: Path, description: StreamDescription, first: int = 0) -> Iterator[tuple[int, Columns]]:
    """Yields the unrolls from number `first` on, the oldest first, with their numbers; see `columns_of`.

    Parts may be added, finished and deleted meanwhile; a part that is deleted before its turn is left out. Verifies no
    checksums. Holds one part in memory. Raises ConfigError if a part is damaged or another run's.
    """
    parts = parts_in(folder)
    before = max(0, bisect_right(parts, first) - 1)  # the part that may hold `first`
    for begins in parts[before:]:
        for number, columns in _read_part(folder, begins, description):
            if number >= first:
                yield number, columns


def _read_part(folder: Path, first: int, description: StreamDescription) -> Iterator[tuple[int, Columns]]:
    finished, partial = folder / part_name(first), folder / (part_name(first) + PARTIAL)
    # The finished name comes again, for a part that is finished between the first two looks.
    for path, batches in ((finished, whole_batches), (partial, complete_batches), (finished, whole_batches)):
        with reading(path, AGAIN), suppress(FileNotFoundError):
            for number, batch in enumerate(batches(path.read_bytes()), first):
                yield number, columns_of(path, batch, description)
            return
