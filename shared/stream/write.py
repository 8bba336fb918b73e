"""Writer of a stream: one in each collector; the driver writes a recording's manifest."""

import importlib.metadata
import platform
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import pyarrow as pa

from shared.files import replace_file
from shared.replay.codec import Columns, on_host
from shared.stream.files import LOCK_SECONDS, lock_shard
from shared.stream.format import (
    FORMAT_VERSION,
    MANIFEST,
    Manifest,
    PartSummary,
    ShardSummary,
    StreamDescription,
    miscount,
    part_name,
    shard_folder,
)
from shared.stream.index import write_index
from shared.stream.part import PartWriter
from shared.stream.salvage import recover

PART_BYTES = 64 * 2**20  # uncompressed; a part ends with the unroll that reaches this
PARTS_OF_A_TAIL = 8  # a tail exceeds what it has to hold by a quarter at most: an old part and a new one
_VERSIONED = ("fathom-rl", "jax", "numpy", "pyarrow")


class StreamWriter:
    """Writer of one collector's unrolls, synchronous and in one thread.

    After an error, open another writer: all that was written is there.
    """

    def __init__(
        self,
        directory: Path,
        index: int,
        description: StreamDescription,
        *,
        keep_unrolls: int | None = None,
        part_bytes: int = PART_BYTES,
        wait_s: float = LOCK_SECONDS,
    ) -> None:
        """Resumes or begins the shard of collector `index` in the stream `directory`.

        Args:
            keep_unrolls: keeps a tail of this many unrolls and a few more, uncompressed, which does not survive a power
                cut. None: keeps all unrolls, compressed; finished parts survive a power cut.
            part_bytes: size at which a part is finished.
            wait_s: longest wait for another writer of the shard.

        Raises:
            ConfigError: another writer does not end, or the shard is damaged or belongs to another run.
            ValueError: `keep_unrolls` is not positive.
            OSError: the disk is full.
        """
        if keep_unrolls is not None and keep_unrolls < 1:
            raise ValueError(f"keep_unrolls: {keep_unrolls}, at least 1 is needed")
        self._folder, self._description, self._keep = shard_folder(directory, index), description, keep_unrolls
        self._recorded = keep_unrolls is None
        self._part_unrolls = -(-part_bytes // description.unroll_bytes)
        if keep_unrolls is not None:
            self._part_unrolls = min(self._part_unrolls, max(1, keep_unrolls // PARTS_OF_A_TAIL))
        self._part: PartWriter | None = None
        # Newer than the shard's. Most parts of a tail are deleted before a snapshot needs their checksums.
        self._unlisted: tuple[PartWriter, ...] = ()
        self._folder.mkdir(parents=True, exist_ok=True)
        self._lock = lock_shard(self._folder, wait_s)
        with self._closed_on_error():
            self._shard = recover(self._folder, index, description, self._recorded)
            self._delete_oldest()

    @property
    def next_number(self) -> int:
        """Number after the newest unroll; 0 for an empty shard."""
        part = self._part or next(reversed(self._unlisted), None)  # read once: another thread may ask
        return part.first + part.unrolls if part else self._shard.next_number

    def write(self, columns: Columns, number: int) -> None:
        """Writes unroll `number`: Columns `[N, T, ...]`, numpy.

        When it returns, the unroll survives this process, and the arrays may be reused. Raises ValueError for other
        shapes and types, and for a number before `next_number`; OSError if the disk is full.
        """
        batch = self._batch(columns)
        if number < self.next_number:
            raise ValueError(f"{self._folder}: unroll {number} after unroll {self.next_number - 1}; they count upwards")
        with self._closed_on_error():
            if number > self.next_number:
                self._finish_part()
            if self._part is None:
                self._part = PartWriter(self._folder, number, self._description, self._recorded)
            self._part.write(batch)
            if self._part.unrolls >= self._part_unrolls:
                self._finish_part()

    def cut(self) -> ShardSummary:
        """Finishes the last part and returns all that is kept, for a snapshot. Raises as `close` does.

        Reads what a tail got since the last call: about half a second for a GB.
        """
        with self._closed_on_error():
            self._finish_part()
            self._list_parts()
        return self._shard

    def close(self) -> ShardSummary:
        """Finishes the last part. Raises OSError if the disk is full, ValueError if called twice."""
        shard = self.cut()
        self._release()
        return shard

    def _batch(self, columns: Columns) -> pa.RecordBatch:
        sizes = self._description
        host = on_host(columns, sizes.environments, sizes.unroll_length, sizes.row_floats)
        arrays = [
            pa.FixedSizeListArray.from_arrays(pa.array(array.reshape(-1)), type=field.type)
            for array, field in zip(host, sizes.schema, strict=True)
        ]
        return pa.record_batch(arrays, schema=sizes.schema)

    def _finish_part(self) -> None:
        if self._part is not None:
            self._part.finish()
            self._unlisted = (*self._unlisted, self._part)
            self._part = None
            if self._recorded:
                self._list_parts()
            self._delete_oldest()

    def _list_parts(self) -> None:
        """Adds all finished parts to the shard and its index."""
        if self._unlisted:
            self._list((*self._shard.parts, *(part.summary() for part in self._unlisted)))
            self._unlisted = ()

    def _delete_oldest(self) -> None:
        """Deletes the oldest finished parts, as many as the kept unrolls allow."""
        listed = self._shard.parts
        parts: tuple[PartSummary | PartWriter, ...] = (*listed, *self._unlisted)
        spare = 0 if self._keep is None else sum(part.unrolls for part in parts) - self._keep
        gone = 0
        while parts and parts[gone].unrolls <= spare:
            spare -= parts[gone].unrolls
            gone += 1
        if listed[:gone]:
            self._list(listed[gone:])  # before the deletions: what it lists exists
        self._unlisted = self._unlisted[max(gone - len(listed), 0) :]
        for part in parts[:gone]:
            (self._folder / part_name(part.first)).unlink(missing_ok=True)

    def _list(self, parts: tuple[PartSummary, ...]) -> None:
        self._shard = self._shard.model_copy(update={"parts": parts})
        write_index(self._folder, self._shard, self._recorded)

    @contextmanager
    def _closed_on_error(self) -> Iterator[None]:
        if not self._lock.is_locked:
            raise ValueError(f"{self._folder}: this writer is closed, or failed before")
        try:
            yield
        except BaseException:
            self._release()
            raise

    def _release(self) -> None:
        """Lets another writer resume the shard; this one ends."""
        if self._part is not None:
            self._part.abandon()
        self._lock.release()


def write_manifest(directory: Path, description: StreamDescription, shards: Sequence[ShardSummary]) -> None:
    """Completes a recording, whose shards must be closed. Raises ValueError if the counts do not add up."""
    shards = sorted(shards, key=lambda shard: shard.index)
    if wrong := miscount(description, shards):
        raise ValueError(f"{directory}: {wrong}")
    versions: dict[str, str | None] = {"python": platform.python_version(), **dict.fromkeys(_VERSIONED)}
    for package in _VERSIONED:
        with suppress(importlib.metadata.PackageNotFoundError):
            versions[package] = importlib.metadata.version(package)
    manifest = Manifest(format_version=FORMAT_VERSION, description=description, versions=versions, shards=tuple(shards))
    replace_file(Path(directory) / MANIFEST, manifest.model_dump_json(indent=2) + "\n")
