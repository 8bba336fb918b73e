"""Reaper: a small process that outlives the driver by seconds and leaves none of its descendants behind.

Ray ends its own processes with the driver, but some of them take a minute, and a stopped one never ends. The reaper
records the descendants of the driver. When its pipe from the driver closes, it kills those that do not end soon.
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
    """Ends all processes that were started in the block, after the block or after the death of this process in it."""
    earlier = [str(child.pid) for child in psutil.Process().children()]  # not started in the block
    reaper = subprocess.Popen(
        [sys.executable, "-m", "deploy.scheduling.reaper", str(os.getpid()), *earlier],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        yield
    finally:
        end_child(reaper, GRACE_S * 3)


def end_child(child: subprocess.Popen, grace_s: float) -> None:
    """Closes the standard input of a child that ends with it; kills the child if it takes longer than `grace_s`."""
    assert child.stdin is not None
    with contextlib.suppress(BrokenPipeError):  # the child has ended already
        child.stdin.close()
    try:
        child.wait(grace_s)
    except subprocess.TimeoutExpired:
        child.kill()
        child.wait(grace_s)


def descendants(driver: int, earlier: set[int], known: set[psutil.Process]) -> set[psutil.Process]:
    """Returns the `known` processes that still run, and all descendants of them and of `driver` except `earlier`."""
    found = {process for process in known if process.is_running()}
    with contextlib.suppress(psutil.NoSuchProcess):
        found |= {child for child in psutil.Process(driver).children() if child.pid not in earlier}
    for process in list(found):
        with contextlib.suppress(psutil.NoSuchProcess):
            found |= set(process.children(recursive=True))
    return found - {psutil.Process()}


def main(driver: int, earlier: set[int]) -> None:
    known: set[psutil.Process] = set()
    closed = False
    while not closed:
        closed = bool(select.select([sys.stdin], [], [], LOOK_S)[0])  # nothing is ever written: readable means closed
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
