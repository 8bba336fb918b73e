"""Parts of every access to a stream's files: one-line errors, and the lock of a shard's writer."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import filelock
import pyarrow as pa

from shared.errors import ConfigError

LOCK = "lock"
LOCK_SECONDS = 60.0  # the last writer may be a hung process that its driver is still ending on another node


@contextmanager
def reading(path: Path, remedy: str) -> Iterator[None]:
    """Turns errors of reading `path` into ConfigError, one line that ends with `remedy`."""
    try:
        yield
    except (OSError, pa.ArrowException) as error:
        from_system = isinstance(error, OSError) and error.errno is not None  # Arrow's own errors have no number
        cause = error.strerror if from_system else "not an Arrow file"
        raise ConfigError(f"{path}: cannot be read ({cause}); {remedy}") from error


def lock_shard(folder: Path, wait_s: float) -> filelock.BaseFileLock:
    """Acquires the right to change the shard in `folder`; it ends with `release`, or with the process.

    Raises ConfigError if another writer still has it after `wait_s` seconds.
    """
    # Any thread may close the writer; two writers of one process exclude each other, too.
    lock = filelock.FileLock(folder / LOCK, thread_local=False, is_singleton=False)
    try:
        lock.acquire(timeout=wait_s)
    except filelock.Timeout as error:
        raise ConfigError(
            f"{folder / LOCK}: another process has been writing this shard for {wait_s:g} s; end it, then start again"
        ) from error
    return lock
