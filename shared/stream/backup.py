"""A shard in a snapshot, and back: parts are linked, not copied, for a finished part never changes."""

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
    """Makes the folder `target`, a shard of the parts in `summary`, which lie in `source`.

    Hard links, or copies where the disk has no links. On the disk when it returns. A tail's parts are deleted in
    time, so its writer's thread links what `cut` returned, before it goes on. Raises FileExistsError, OSError.
    """
    target.mkdir(parents=True)
    for part in summary.parts:
        _link(source / part.name, target / part.name)
        with open(target / part.name, "rb") as file:
            os.fsync(file.fileno())  # a tail's parts are only with the operating system
    write_index(target, summary)  # and all names in the folder
    sync_folder(target.parent)


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        shutil.copyfile(source, target)


def restore_shard(source: Path, target: Path, wait_s: float = LOCK_SECONDS) -> None:
    """`target` becomes what the snapshot's shard `source` holds, byte for byte verified; `source` stays as it is.

    A writer goes on after the snapshot's last number. When interrupted, do it again before `target` is opened.
    Raises ConfigError, one line, if `source` is damaged or `target` is being written; OSError.
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
