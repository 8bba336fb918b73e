"""Recovery of a shard whose writer died, at whatever instruction."""

from pathlib import Path

import pyarrow as pa

from shared.errors import ConfigError
from shared.stream.files import reading
from shared.stream.format import INDEX, PARTIAL, ShardSummary, StreamDescription, misnumbered, part_name
from shared.stream.index import read_index, write_index
from shared.stream.part import (
    AGAIN,
    OTHER_RUN,
    PartWriter,
    check_schema,
    check_size,
    complete_batches,
    parts_in,
    summarise,
)

_SALVAGED = ".salvaged"  # such a file is written again if it is left, since its `.partial` still exists


def recover(folder: Path, index: int, description: StreamDescription, recorded: bool) -> ShardSummary:
    """Puts all unrolls of collector `index` into finished parts, and returns its shard. Needs the shard's lock.

    Reads parts that the index lacks: a tail's, or one that was finished right before its writer's end. Raises
    ConfigError, one line, if index and files contradict each other or belong to another run; OSError.
    """
    there = (folder / INDEX).exists()
    listed = read_index(folder, "remove it: it is made again from the parts") if there else None
    for first in parts_in(folder):
        _salvage(folder, first, description, recorded)
    known = {part.first: part for part in listed.parts} if listed else {}
    if listed is not None and listed.index != index:
        raise ConfigError(f"{folder / INDEX}: of collector {listed.index}, not of {index}; {AGAIN}")
    for part in known.values():
        check_size(folder / part.name, part, "shard's index", AGAIN)
    parts = tuple(known.get(first) or summarise(folder / part_name(first), first) for first in parts_in(folder))
    shard = ShardSummary(index=index, parts=parts)
    if wrong := misnumbered(description, shard):
        raise ConfigError(f"{folder}: {wrong}; {OTHER_RUN}")
    for part in parts[-1:]:  # the same run wrote the others
        path = folder / part.name
        with reading(path, AGAIN), pa.OSFile(str(path), "rb") as file:
            check_schema(path, pa.ipc.open_file(file).schema, description)
    if shard != listed:
        write_index(folder, shard)
    return shard


def _salvage(folder: Path, first: int, description: StreamDescription, recorded: bool) -> None:
    """Makes a finished part of the whole unrolls in a `.partial`. Can be interrupted anywhere, and repeated."""
    left = folder / (part_name(first) + PARTIAL)
    if not left.exists():
        return
    part: PartWriter | None = None
    for batch in complete_batches(left.read_bytes()):
        check_schema(left, batch.schema, description)
        part = part or PartWriter(folder, first, description, recorded, _SALVAGED)
        part.write(batch)
    if part is not None:
        part.finish()
    left.unlink()
