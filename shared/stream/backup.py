"""Copies of a shard in snapshots, and back. A finished part never changes, so that it is linked, not copied."""

import errno
import os
import shutil
from pathlib import Path

from shared.files import sync_folder
from shared.stream.files import LOCK_SECONDS, lock_shard
from shared.stream.format import ShardSummary
from shared.stream.index import read_index, write_index
from shared.stream.part import check_bytes

_NO_LINKS = {errno.EXDEV, errno.EPERM, errno.EACCES, errno.EMLINK, errno.ENOSYS, errno.EOPNOTSUPP}


def link_shard(summary: ShardSummary, source: Path, target: Path) -> None:
    """Makes the folder `target`, a shard with the parts of `summary` in `source`; returns when it is on the disk.

    Uses hard links, or copies if the disk has no links. A tail's writer deletes old parts, so its thread links what
    `cut` returned before it writes again. Raises FileExistsError, OSError.
    """
    target.mkdir(parents=True)
    for part in summary.parts:
        try:
            os.link(source / part.name, target / part.name)
        except OSError as error:
            if error.errno not in _NO_LINKS:
                raise
            shutil.copyfile(source / part.name, target / part.name)
        with open(target / part.name, "rb") as file:
            os.fsync(file.fileno())  # the operating system alone has a tail's parts
    write_index(target, summary)  # waits for the names in the folder, too
    sync_folder(target.parent)


def restore_shard(source: Path, target: Path, wait_s: float = LOCK_SECONDS) -> None:
    """Replaces `target` by the snapshot's shard `source`, of which every byte is verified.

    If it is interrupted, call it again before a writer opens `target`. Raises ConfigError, one line, if `source` is
    damaged or `target` is being written; OSError.
    """
    remedy = "resume from another snapshot"
    shard = read_index(source, remedy)
    for part in shard.parts:
        check_bytes(source / part.name, part, "snapshot", remedy)
    beside, before = target.with_name(target.name + ".restored"), target.with_name(target.name + ".before")
    for left in (beside, before):
        if left.exists():
            shutil.rmtree(left)
    link_shard(shard, source, beside)
    if target.exists():
        lock = lock_shard(target, wait_s)
        try:
            target.rename(before)
        finally:
            lock.release()
    beside.rename(target)
    sync_folder(target.parent)
    shutil.rmtree(before, ignore_errors=True)
