"""What any file of a stream needs: names that outlive a power cut, errors in one line, a lock for its writer."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import filelock
import pyarrow as pa

from shared.errors import ConfigError

LOCK = "lock"
LOCK_SECONDS = 5.0


@contextmanager
def reading(path: Path, remedy: str) -> Iterator[None]:
    """Raises ConfigError, one line, where `path` cannot be read or is no Arrow file."""
    try:
        yield
    except (OSError, pa.ArrowException) as error:
        of_the_system = isinstance(error, OSError) and error.errno is not None  # Arrow's own have no number
        cause = error.strerror if of_the_system else "not an Arrow file"
        raise ConfigError(f"{path}: cannot be read ({cause}); {remedy}") from error


def lock_shard(folder: Path, wait_s: float) -> filelock.BaseFileLock:
    """The right to change the shard in `folder`, until it is released or the process dies, however it dies.

    Raises ConfigError when another writer still has it after `wait_s` seconds.
    """
    # Released by the writer, in whichever thread it is closed; two writers of one process exclude each other, too.
    lock = filelock.FileLock(folder / LOCK, thread_local=False, is_singleton=False)
    try:
        lock.acquire(timeout=wait_s)
    except filelock.Timeout as error:
        raise ConfigError(
            f"{folder / LOCK}: another process has been writing this shard for {wait_s:g} s; end it, then start again"
        ) from error
    return lock
