"""A shard whose writer died, at whatever instruction, made whole again."""

from pathlib import Path

from shared.errors import ConfigError
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
    schema_of,
    summarise,
)

_SALVAGED = ".salvaged"  # one that is left is written again, for its `.partial` is still there


def recover(folder: Path, index: int, description: StreamDescription, compression: str) -> ShardSummary:
    """The shard of collector `index` after whatever ended its writer, with all of its unrolls in finished parts.

    For who holds the shard's lock. A part that the index does not know was finished right before the end. Raises
    ConfigError, one line, where index and files contradict each other or are another run's; OSError.
    """
    for first in parts_in(folder):
        _salvage(folder, first, description, compression)
    there = (folder / INDEX).exists()
    listed = read_index(folder, "remove it: it is made again from the parts") if there else None
    known = {part.first: part for part in listed.parts} if listed else {}
    if listed is not None and listed.index != index:
        raise ConfigError(f"{folder / INDEX}: of collector {listed.index}, not of {index}; {AGAIN}")
    for part in known.values():
        check_size(folder / part.name, part, "shard's index", AGAIN)
    parts = tuple(known.get(first) or summarise(folder / part_name(first), first) for first in parts_in(folder))
    shard = ShardSummary(index=index, parts=parts)
    if wrong := misnumbered(description, shard):
        raise ConfigError(f"{folder}: {wrong}; {OTHER_RUN}")
    for part in parts[-1:]:  # the others were written by the same run
        check_schema(folder / part.name, schema_of(folder / part.name), description)
    if shard != listed:
        write_index(folder, shard)
    return shard


def _salvage(folder: Path, first: int, description: StreamDescription, compression: str) -> None:
    """Makes a finished part of what is whole in a `.partial`. Can be interrupted anywhere, and repeated."""
    left = folder / (part_name(first) + PARTIAL)
    if not left.exists():
        return
    part: PartWriter | None = None
    for batch in complete_batches(left.read_bytes()):
        check_schema(left, batch.schema, description)
        part = part or PartWriter(folder, first, description, compression, _SALVAGED)
        part.write(batch)
    if part is not None:
        part.finish()
    left.unlink()
