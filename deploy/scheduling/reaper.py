"""Leaves no process behind, even when the driver is killed: a small process that outlives it by seconds.

Ray ends its own processes with the driver, but some of them take a minute, and a stopped one never ends.
The reaper remembers who descends from the driver; when its pipe from the driver closes, those who are left
are given a moment and then killed.
"""

import contextlib
import os
import select
import subprocess
import sys
import time
from collections.abc import Iterator

import psutil

GRACE_S = 5.0
LOOK_S = 1.0
_POLL_S = 0.2


@contextlib.contextmanager
def guarded() -> Iterator[None]:
    """After the block, or after our death inside it, no process that we started in it is left."""
    earlier = [str(child.pid) for child in psutil.Process().children()]  # not ours to end
    reaper = subprocess.Popen(
        [sys.executable, "-m", "deploy.scheduling.reaper", str(os.getpid()), *earlier],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        yield
    finally:
        assert reaper.stdin is not None
        reaper.stdin.close()
        reaper.wait(GRACE_S * 3)


def descendants(driver: int, earlier: set[int], known: set[psutil.Process]) -> set[psutil.Process]:
    """Those of `known` that still run, and everyone who descends from them or from `driver`, but for `earlier`."""
    found = {process for process in known if process.is_running()}
    with contextlib.suppress(psutil.NoSuchProcess):
        found |= {child for child in psutil.Process(driver).children() if child.pid not in earlier}
    for process in list(found):
        with contextlib.suppress(psutil.NoSuchProcess):
            found |= set(process.children(recursive=True))
    return found - {psutil.Process()}


def main(driver: int, earlier: set[int]) -> None:
    known: set[psutil.Process] = set()
    while not select.select([sys.stdin], [], [], LOOK_S)[0]:  # nothing is ever written: readable means closed
        known = descendants(driver, earlier, known)
    known = descendants(driver, earlier, known)
    deadline = time.monotonic() + GRACE_S
    while any(map(_alive, known)) and time.monotonic() < deadline:
        time.sleep(_POLL_S)
    for process in filter(_alive, descendants(driver, earlier, known)):
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()


def _alive(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


if __name__ == "__main__":
    main(int(sys.argv[1]), set(map(int, sys.argv[2:])))
