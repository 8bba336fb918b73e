"""Part of a shard: consecutive unrolls in an Arrow file, read when it is finished or while it has no end."""

import hashlib
import os
import re
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pyarrow as pa

from shared.errors import ConfigError
from shared.files import sync_folder
from shared.replay.codec import Columns
from shared.stream.files import reading
from shared.stream.format import PARTIAL, PartSummary, StreamDescription, part_name

AGAIN = "put it back as it was, or resume from a snapshot"
OTHER_RUN = "name the folder of a run with this environment and these collectors"
_NAME = re.compile(rf"part-(\d{{9,}})\.arrow({re.escape(PARTIAL)})?")
_MAGIC_BYTES = 8  # before an Arrow file's batches; an Arrow stream follows
_OPTIONS = pa.ipc.IpcReadOptions(use_threads=False)


class PartWriter:
    """Writer of one part, which is readable up to its last whole unroll at any time."""

    def __init__(
        self, folder: Path, first: int, description: StreamDescription, recorded: bool, suffix: str = PARTIAL
    ) -> None:
        """Begins the part at unroll `first`; its name ends in `suffix` until it is finished.

        A `recorded` part is compressed and survives a power cut. Others are deleted soon: they survive their writer.
        """
        self.first, self.unrolls = first, 0
        self._recorded, self._environments = recorded, description.environments
        self._path, self._unfinished = folder / part_name(first), folder / (part_name(first) + suffix)
        self._file = pa.OSFile(str(self._unfinished), "wb")
        # One thread: recording shares its cores with the environments. zstd is at Arrow's level 1.
        options = pa.ipc.IpcWriteOptions(compression="zstd" if recorded else None, use_threads=False)
        self._batches = pa.ipc.new_file(self._file, description.schema, options=options)

    def write(self, batch: pa.RecordBatch) -> None:
        """Writes one unroll, which survives this process: the file is not buffered."""
        self._batches.write_batch(batch)
        self.unrolls += 1

    def finish(self) -> None:
        """Ends the part. It gets its name last, when its bytes are on the disk, or with the operating system."""
        self._batches.close()
        self._file.close()
        if self._recorded:
            with open(self._unfinished, "rb") as file:
                os.fsync(file.fileno())
        self._unfinished.rename(self._path)
        if self._recorded:
            sync_folder(self._path.parent)

    def summary(self) -> PartSummary:
        """Reads all of the finished part for its checksum: about half a second for a GB."""
        with open(self._path, "rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
            size = file.tell()
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
    """Returns the first numbers of all parts, finished or not, the oldest first; empty if there is no folder.

    A listing can miss a file that is renamed meanwhile, so two listings have to agree.
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


def whole_batches(data: bytes) -> Iterator[pa.RecordBatch]:
    """Returns the batches of a finished part. Raises ArrowException or OSError if it is damaged."""
    batches = pa.ipc.open_file(pa.py_buffer(data), options=_OPTIONS)
    return (_validated(batches.get_batch(number)) for number in range(batches.num_record_batches))


def complete_batches(data: bytes) -> Iterator[pa.RecordBatch]:
    """Yields the batches of a part without an end, except a last one that is cut off."""
    with suppress(pa.ArrowException, OSError):
        for batch in pa.ipc.open_stream(pa.py_buffer(data)[_MAGIC_BYTES:], options=_OPTIONS):
            yield _validated(batch)


def _validated(batch: pa.RecordBatch) -> pa.RecordBatch:
    """Raises ArrowInvalid for lengths that a flipped bit made senseless; their use would end the process."""
    batch.validate()
    return batch


def check_schema(path: Path, schema: pa.Schema, description: StreamDescription) -> None:
    """Raises ConfigError if the rows in `path` are those of another run."""
    if schema != description.schema:
        raise ConfigError(f"{path}: other rows than this run's; {OTHER_RUN}")


def columns_of(path: Path, batch: pa.RecordBatch, description: StreamDescription) -> Columns:
    """Returns Columns `[N, T, ...]`, read-only. Raises ConfigError for another run's batch."""
    check_schema(path, batch.schema, description)
    if batch.num_rows != description.environments:
        raise ConfigError(f"{path}: unrolls of {batch.num_rows} environments, not of this run's; {OTHER_RUN}")
    leading = (description.environments, description.unroll_length)
    floats, ints = (column.flatten().to_numpy().reshape(*leading, -1) for column in batch.columns)
    return Columns(floats, ints)


def summarise(path: Path, first: int) -> PartSummary:
    """Reads all of a finished part. Raises ConfigError if it is no Arrow file, or empty."""
    with reading(path, AGAIN):
        data = path.read_bytes()
        rows = [batch.num_rows for batch in whole_batches(data)]
    if not rows:
        raise ConfigError(f"{path}: holds nothing; {AGAIN}")
    digest, counts = hashlib.sha256(data).hexdigest(), {"unrolls": len(rows), "rows": sum(rows), "bytes": len(data)}
    return PartSummary(name=path.name, first=first, sha256=digest, **counts)


def check_size(path: Path, part: PartSummary, listed_in: str, remedy: str) -> None:
    """Raises ConfigError unless `path` exists and has the size that it had when it was finished."""
    if not path.exists():
        raise ConfigError(f"{path}: missing; {remedy}")
    with reading(path, remedy):
        size = path.stat().st_size
    if size != part.bytes:
        raise ConfigError(f"{path}: {size} bytes, the {listed_in} says {part.bytes}; {remedy}")


def check_bytes(path: Path, part: PartSummary, listed_in: str, remedy: str) -> None:
    """Raises ConfigError unless every byte of `path` is unchanged. Reads it in blocks: about a second for a GB."""
    check_size(path, part, listed_in, remedy)
    with reading(path, remedy), open(path, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != part.sha256:
        raise ConfigError(f"{path}: damaged, its checksum is not the {listed_in}'s; {remedy}")
