"""One part of a shard: consecutive unrolls in an Arrow file. Written, read whole, read while it has no end."""

import hashlib
import os
import re
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

import pyarrow as pa

from shared.errors import ConfigError
from shared.files import sync_folder
from shared.replay.codec import Columns
from shared.stream.files import reading
from shared.stream.format import PARTIAL, PartSummary, StreamDescription, part_name

AGAIN = "put it back as it was, or resume from a snapshot"
OTHER_RUN = "name the folder of a run with this environment and these collectors"
_NAME = re.compile(rf"part-(\d{{9,}})\.arrow({re.escape(PARTIAL)})?")
_MAGIC_BYTES = 8  # before an Arrow file's batches; what follows is an Arrow stream
_OPTIONS = pa.ipc.IpcReadOptions(use_threads=False)

T = TypeVar("T")


class PartWriter:
    """A part from its first unroll on. What was written is readable up to the last whole unroll at any time."""

    def __init__(
        self,
        folder: Path,
        first: int,
        description: StreamDescription,
        compression: str,
        suffix: str = PARTIAL,
        sync: bool = True,
    ) -> None:
        """`compression`: "zstd", at Arrow's level 1, or "lz4". `suffix`: of the name until the part is finished.

        `sync`: a finished part outlives a power cut; without, it only outlives its writer.
        """
        self._sync = sync
        self.first, self.unrolls = first, 0
        self._path, self._environments = folder / part_name(first), description.environments
        self._unfinished = folder / (part_name(first) + suffix)
        self._file = pa.OSFile(str(self._unfinished), "wb")
        # One thread: recording shares its cores with the environments.
        options = pa.ipc.IpcWriteOptions(compression=compression, use_threads=False)
        self._batches = pa.ipc.new_file(self._file, description.schema, options=options)

    def write(self, batch: pa.RecordBatch) -> None:
        """`batch`: one unroll. With the operating system when this returns: the file is not buffered."""
        self._batches.write_batch(batch)
        self.unrolls += 1

    def finish(self) -> PartSummary:
        """The name of a whole part is given last, when its bytes are on the disk, or with the operating system."""
        self._batches.close()
        self._file.close()
        with open(self._unfinished, "rb") as file:
            if self._sync:
                os.fsync(file.fileno())
            digest = hashlib.file_digest(file, "sha256").hexdigest()
            size = file.tell()
        self._unfinished.rename(self._path)
        if self._sync:
            sync_folder(self._path.parent)
        return PartSummary(
            name=self._path.name,
            first=self.first,
            unrolls=self.unrolls,
            rows=self.unrolls * self._environments,
            bytes=size,
            sha256=digest,
        )

    def abandon(self) -> None:
        """Leaves the file as it is."""
        with suppress(OSError):
            self._file.close()


def parts_in(folder: Path) -> list[int]:
    """The first numbers of all parts, finished or being written, oldest first; none where there is no folder.

    A file that is renamed while its folder is listed can be missed, so two listings have to agree.
    """
    before, listed = None, _listed(folder)
    while listed != before:
        before, listed = listed, _listed(folder)
    return sorted(listed)


def _listed(folder: Path) -> set[int]:
    try:
        names = os.listdir(folder)
    except FileNotFoundError:
        return set()
    return {int(match[1]) for name in names if (match := _NAME.fullmatch(name))}


def by_either_name(folder: Path, first: int, finished: Callable[[Path], T], partial: Callable[[Path], T]) -> T | None:
    """`finished(path)` or `partial(path)`, whichever the part is, also when it is finished meanwhile; none if gone."""
    path = folder / part_name(first)
    beside = folder / (part_name(first) + PARTIAL)
    for read, at in ((finished, path), (partial, beside), (finished, path)):
        with reading(at, AGAIN), suppress(FileNotFoundError):
            return read(at)
    return None


def whole_batches(data: bytes) -> Iterator[pa.RecordBatch]:
    """Of a finished part. Raises ArrowException or OSError where it is damaged."""
    batches = pa.ipc.open_file(pa.py_buffer(data), options=_OPTIONS)
    return (_sound(batches.get_batch(number)) for number in range(batches.num_record_batches))


def complete_batches(data: bytes) -> Iterator[pa.RecordBatch]:
    """Of a part without an end: a last batch that is half there is left out."""
    with suppress(pa.ArrowException, OSError):
        for batch in pa.ipc.open_stream(pa.py_buffer(data)[_MAGIC_BYTES:], options=_OPTIONS):
            yield _sound(batch)


def _sound(batch: pa.RecordBatch) -> pa.RecordBatch:
    """Raises ArrowInvalid for lengths that a flipped bit made senseless: used, they would end the process."""
    batch.validate()
    return batch


def check_schema(path: Path, schema: pa.Schema, description: StreamDescription) -> None:
    """Raises ConfigError if the rows in `path` are those of another run."""
    if schema != description.schema:
        raise ConfigError(f"{path}: other rows than this run's; {OTHER_RUN}")


def schema_of(path: Path) -> pa.Schema:
    """Of a finished part. Raises ConfigError if it is no Arrow file."""
    with reading(path, AGAIN), pa.OSFile(str(path), "rb") as file:
        return pa.ipc.open_file(file).schema


def columns_of(path: Path, batch: pa.RecordBatch, description: StreamDescription) -> Columns:
    """`floats` `[N, T, S + A]`, `ints` `[N, T, 3]`, read-only. Raises ConfigError if the batch is another run's."""
    check_schema(path, batch.schema, description)
    if batch.num_rows != description.environments:
        raise ConfigError(f"{path}: unrolls of {batch.num_rows} environments, not of this run's; {OTHER_RUN}")
    leading = (description.environments, description.unroll_length)
    floats, ints = (column.flatten().to_numpy().reshape(*leading, -1) for column in batch.columns)
    return Columns(floats, ints)


def summarise(path: Path, first: int) -> PartSummary:
    """Of a finished part: reads all of it. Raises ConfigError if it is no Arrow file."""
    with reading(path, AGAIN):
        data = path.read_bytes()
        rows = [batch.num_rows for batch in whole_batches(data)]
    if not rows:
        raise ConfigError(f"{path}: holds nothing; {AGAIN}")
    values: dict[str, Any] = {"unrolls": len(rows), "rows": sum(rows), "bytes": len(data)}
    return PartSummary(name=path.name, first=first, sha256=hashlib.sha256(data).hexdigest(), **values)


def check_size(path: Path, part: PartSummary, listed_in: str, remedy: str) -> None:
    """Raises ConfigError unless `path` is there, as long as it was when it was finished."""
    if not path.exists():
        raise ConfigError(f"{path}: missing; {remedy}")
    with reading(path, remedy):
        size = path.stat().st_size
    if size != part.bytes:
        raise ConfigError(f"{path}: {size} bytes, the {listed_in} says {part.bytes}; {remedy}")


def check_bytes(path: Path, part: PartSummary, listed_in: str, remedy: str) -> None:
    """Raises ConfigError unless every byte of `path` is what it was. Reads it in blocks: a second for about a GB."""
    check_size(path, part, listed_in, remedy)
    with reading(path, remedy), open(path, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != part.sha256:
        raise ConfigError(f"{path}: damaged, its checksum is not the {listed_in}'s; {remedy}")
