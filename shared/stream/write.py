"""Writing a stream: a writer in each collector; for a recording, the manifest by the driver."""

import importlib.metadata
import platform
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pyarrow as pa

from shared.files import replace_file
from shared.replay.codec import INT_COLUMNS, Columns
from shared.stream.files import LOCK_SECONDS, lock_shard
from shared.stream.format import (
    FORMAT_VERSION,
    MANIFEST,
    Manifest,
    PartSummary,
    ShardSummary,
    StreamDescription,
    miscount,
    shard_folder,
)
from shared.stream.index import write_index
from shared.stream.part import PartWriter
from shared.stream.salvage import recover

PART_BYTES = 64 * 2**20  # uncompressed; a part ends with the unroll that reaches this
PARTS_OF_A_TAIL = 8  # so a tail has at most a quarter more than it has to hold: an old part and a new one
_VERSIONED = ("fathom-rl", "jax", "numpy", "pyarrow")


class StreamWriter:
    """Writes one collector's unrolls, synchronously, in one thread.

    After an error the writer is spent, and what it wrote is there for the next one.
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
        """Goes on in the shard of collector `index` in the stream `directory`, or begins it.

        `keep_unrolls`: the newest so many are kept, in finished parts, and a few more, for as long as the machine
        runs; none: all, a recording, whose finished parts outlive a power cut.
        `wait_s`: seconds to wait for another writer of the shard to end. Raises ConfigError, one line, when it
        does not, or where the shard is damaged or of another run; ValueError; OSError.
        """
        if keep_unrolls is not None and keep_unrolls < 1:
            raise ValueError(f"keep_unrolls: {keep_unrolls}, at least 1 is needed")
        self._folder, self._description, self._keep = shard_folder(directory, index), description, keep_unrolls
        self._part_unrolls = -(-part_bytes // description.unroll_bytes)
        self._compression = "zstd"
        self._recorded = keep_unrolls is None
        if keep_unrolls is not None:
            self._part_unrolls = min(self._part_unrolls, max(1, keep_unrolls // PARTS_OF_A_TAIL))
            self._compression = "lz4"  # 1.7 times as fast; what is soon deleted need not be small
        self._part: PartWriter | None = None
        self._folder.mkdir(parents=True, exist_ok=True)
        self._lock = lock_shard(self._folder, wait_s)
        self._spent = False
        with self._spent_on_error():
            self._shard = recover(self._folder, index, description, self._compression)
            self._keep_newest(self._shard.parts)

    @property
    def next_number(self) -> int:
        """After the newest unroll; 0 for an empty shard."""
        part = self._part  # once: other threads may ask
        return part.first + part.unrolls if part else self._shard.next_number

    def write(self, columns: Columns, number: int) -> None:
        """Unroll `number`: `floats` `[N, T, S + A]` float32, `ints` `[N, T, 3]` int32, numpy.

        When it returns, the unroll outlives this process, however it ends, and the arrays may be reused. Raises
        ValueError for other shapes and types, and for a number before `next_number`; OSError when the disk is full.
        """
        batch = self._batch(columns)
        if number < self.next_number:
            raise ValueError(f"{self._folder}: unroll {number} after unroll {self.next_number - 1}; they count upwards")
        with self._spent_on_error():
            if number > self.next_number:
                self._finish_part()
            if self._part is None:
                self._part = PartWriter(self._folder, number, self._description, self._compression, sync=self._recorded)
            self._part.write(batch)
            if self._part.unrolls >= self._part_unrolls:
                self._finish_part()

    def cut(self) -> ShardSummary:
        """All that is kept, in finished parts: what a snapshot takes along. Raises as `close` does."""
        with self._spent_on_error():
            self._finish_part()
        return self._shard

    def close(self) -> ShardSummary:
        """Finishes the last part. Raises OSError when the disk is full, ValueError when called twice."""
        shard = self.cut()
        self._spend()
        return shard

    def _batch(self, columns: Columns) -> pa.RecordBatch:
        schema = self._description.schema
        arrays = [
            pa.FixedSizeListArray.from_arrays(pa.array(array.reshape(-1)), type=field.type)
            for array, field in zip(self._checked(columns), schema, strict=True)
        ]
        return pa.record_batch(arrays, schema=schema)

    def _checked(self, columns: Columns) -> tuple[np.ndarray, np.ndarray]:
        description = self._description
        leading = (description.environments, description.unroll_length)
        floats, ints = np.ascontiguousarray(columns.floats), np.ascontiguousarray(columns.ints)
        for name, array, size, dtype in (
            ("floats", floats, description.state_size + description.action_size, np.float32),
            ("ints", ints, INT_COLUMNS, np.int32),
        ):
            if array.shape != (*leading, size) or array.dtype != dtype:
                raise ValueError(
                    f"{name}: {np.dtype(dtype)} {[*leading, size]} is needed, not {array.dtype} {list(array.shape)}"
                )
        return floats, ints

    def _finish_part(self) -> None:
        """If there is one."""
        if self._part is None:
            return
        self._keep_newest((*self._shard.parts, self._part.finish()))
        self._part = None

    def _keep_newest(self, parts: tuple[PartSummary, ...]) -> None:
        """Of finished `parts` those that hold all that is to be kept; the others are deleted, the oldest first."""
        held = sum(part.unrolls for part in parts)
        spare = 0 if self._keep is None else held - self._keep
        gone = 0
        while parts and parts[gone].unrolls <= spare:
            spare -= parts[gone].unrolls
            gone += 1
        if parts[gone:] != self._shard.parts:
            self._shard = self._shard.model_copy(update={"parts": parts[gone:]})
            write_index(self._folder, self._shard, self._recorded)  # before the deletions: what it lists is there
        for part in parts[:gone]:
            (self._folder / part.name).unlink(missing_ok=True)

    @contextmanager
    def _spent_on_error(self) -> Iterator[None]:
        if self._spent:
            raise ValueError(f"{self._folder}: this writer is closed, or failed before")
        try:
            yield
        except BaseException:
            self._spend()
            raise

    def _spend(self) -> None:
        """Nothing more is written by this writer; another one may."""
        self._spent = True
        if self._part is not None:
            self._part.abandon()
        self._lock.release()


def write_manifest(directory: Path, description: StreamDescription, shards: Sequence[ShardSummary]) -> None:
    """Finishes a recording: every shard must be closed. Raises ValueError where the counts do not add up."""
    shards = sorted(shards, key=lambda shard: shard.index)
    if wrong := miscount(description, shards):
        raise ValueError(f"{directory}: {wrong}")
    manifest = Manifest(
        format_version=FORMAT_VERSION, description=description, versions=_versions(), shards=tuple(shards)
    )
    replace_file(Path(directory) / MANIFEST, manifest.model_dump_json(indent=2) + "\n")


def _versions() -> dict[str, str | None]:
    versions: dict[str, str | None] = {"python": platform.python_version()}
    for package in _VERSIONED:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = None
    return versions
