"""Recording a stream: a writer in each collector, the manifest by the driver."""

import hashlib
import importlib.metadata
import os
import platform
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pyarrow as pa

from shared.replay.codec import INT_COLUMNS, Columns
from shared.stream.format import (
    FORMAT_VERSION,
    MANIFEST,
    PARTIAL,
    Manifest,
    PartSummary,
    ShardSummary,
    StreamDescription,
    miscount,
    part_name,
    shard_folder,
)

PART_BYTES = 64 * 2**20  # uncompressed; a part ends with the unroll that reaches this
_VERSIONED = ("fathom-rl", "jax", "numpy", "pyarrow")
# One thread: recording shares its cores with the environments.
_OPTIONS = pa.ipc.IpcWriteOptions(compression="zstd", use_threads=False)


class StreamWriter:
    """Records one collector's unrolls, synchronously. After an error the writer is spent."""

    def __init__(
        self, directory: Path, index: int, description: StreamDescription, part_bytes: int = PART_BYTES
    ) -> None:
        """`directory` is the stream's. Raises FileExistsError where collector `index` has recorded before."""
        self._folder = shard_folder(directory, index)
        self._folder.mkdir(parents=True)
        self._index, self._description, self._part_bytes = index, description, part_bytes
        self._parts: list[PartSummary] = []
        self._file: pa.NativeFile | None = None
        self._batches: pa.RecordBatchFileWriter | None = None
        self._unrolls = self._bytes = 0  # of the part being written
        self._spent = False

    def write(self, columns: Columns) -> None:
        """One unroll: `floats` `[N, T, S + A]` float32, `ints` `[N, T, 3]` int32, numpy.

        The arrays may be reused when it returns. Raises ValueError for other shapes and types, OSError when
        the disk is full.
        """
        floats, ints = self._checked(columns)
        with self._spent_on_error():
            if self._batches is None:
                self._file = pa.OSFile(str(self._partial), "wb")
                self._batches = pa.ipc.new_file(self._file, self._description.schema, options=_OPTIONS)
            schema = self._description.schema
            arrays = [
                pa.FixedSizeListArray.from_arrays(pa.array(array.reshape(-1)), type=field.type)
                for array, field in zip((floats, ints), schema, strict=True)
            ]
            self._batches.write_batch(pa.record_batch(arrays, schema=schema))
            self._unrolls += 1
            self._bytes += floats.nbytes + ints.nbytes
            if self._bytes >= self._part_bytes:
                self._finish_part()

    def close(self) -> ShardSummary:
        """Finishes the last part. Raises OSError when the disk is full, ValueError when called twice."""
        with self._spent_on_error():
            if self._batches is not None:
                self._finish_part()
        self._spent = True
        return ShardSummary(index=self._index, parts=tuple(self._parts))

    @property
    def _partial(self) -> Path:
        return self._folder / (part_name(len(self._parts)) + PARTIAL)

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
        """The name of a whole part is given last, when its bytes are on the disk."""
        assert self._batches is not None
        assert self._file is not None
        self._batches.close()
        self._file.close()
        partial, name = self._partial, part_name(len(self._parts))
        with open(partial, "rb") as file:
            os.fsync(file.fileno())
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        part = PartSummary(
            name=name,
            unrolls=self._unrolls,
            rows=self._unrolls * self._description.environments,
            bytes=partial.stat().st_size,
            sha256=digest,
        )
        partial.rename(self._folder / name)
        _sync_folder(self._folder)
        self._parts.append(part)
        self._file = self._batches = None
        self._unrolls = self._bytes = 0

    @contextmanager
    def _spent_on_error(self) -> Iterator[None]:
        if self._spent:
            raise ValueError(f"{self._folder}: this writer is closed, or failed before")
        self._spent = True
        yield
        self._spent = False


def recording(insert: Callable[[Columns], object], writer: StreamWriter) -> Callable[[Columns], None]:
    """`insert`, and what went in is written down."""

    def record(columns: Columns) -> None:
        insert(columns)
        writer.write(columns)

    return record


def write_manifest(directory: Path, description: StreamDescription, shards: Sequence[ShardSummary]) -> None:
    """Finishes the stream: every shard must be closed. Raises ValueError where the counts do not add up."""
    shards = sorted(shards, key=lambda shard: shard.index)
    if wrong := miscount(description, shards):
        raise ValueError(f"{directory}: {wrong}")
    manifest = Manifest(
        format_version=FORMAT_VERSION, description=description, versions=_versions(), shards=tuple(shards)
    )
    beside = Path(directory) / (MANIFEST + PARTIAL)
    with open(beside, "w", encoding="utf-8") as file:
        file.write(manifest.model_dump_json(indent=2) + "\n")
        file.flush()
        os.fsync(file.fileno())
    beside.replace(Path(directory) / MANIFEST)
    _sync_folder(Path(directory))


def _versions() -> dict[str, str | None]:
    versions: dict[str, str | None] = {"python": platform.python_version()}
    for package in _VERSIONED:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = None
    return versions


def _sync_folder(path: Path) -> None:
    """So that a new name in the folder outlives a power cut."""
    folder = os.open(path, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
