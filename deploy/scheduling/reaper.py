"""Reaper: a small process that outlives the driver by seconds and leaves none of the driver's processes behind.

Ray ends its own processes with the driver, but some of them take a minute, and a stopped one never ends. The driver
puts a mark into its environment variables, which all processes that it starts from then on inherit. The reaper records
the processes that carry the mark. When its pipe from the driver closes, it kills those that do not end soon. It touches
no other process.
"""

import contextlib
import os
import secrets
import select
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator

import psutil

from deploy.scheduling.packages import module_command

GRACE_S = 5.0
LOOK_S = 1.0
_MARK = "FATHOM_MARK_"  # with the token, the name of a variable: a process may carry several marks
_POLL_S = 0.2
_INIT = 1  # the first process of the machine or of a container


@contextlib.contextmanager
def guarded() -> Iterator[None]:
    """Ends all processes that were started in the block, after the block or after the death of this process in it."""
    token = _new_token()
    reaper = subprocess.Popen(
        module_command("deploy.scheduling.reaper", token),
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        with _marking(token):
            yield
    finally:
        end_child(reaper, GRACE_S * 3)


@contextlib.contextmanager
def marked() -> Iterator[str]:
    """Marks all processes that are started in the block. Yields the mark's token, for `kill_marked`."""
    token = _new_token()
    with _marking(token):
        yield token


def _new_token() -> str:
    return secrets.token_hex(8).upper()


@contextlib.contextmanager
def _marking(token: str) -> Iterator[None]:
    os.environ[_MARK + token] = "1"
    try:
        yield
    finally:
        del os.environ[_MARK + token]


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


def find_marked(token: str, known: Iterable[psutil.Process] = ()) -> set[psutil.Process]:
    """Returns the processes that carry the mark, the `known` ones that still run, and all descendants of both.

    Some programs overwrite their environment variables when they set their title. Such a process is found by its
    parent, or, if its parent has ended, only if it is `known`.
    """
    found = {process for process in known if process.is_running()}
    parents = {}
    for process in psutil.process_iter(["environ", "ppid"], ad_value=None):  # None: another user's process
        if process.pid in (_INIT, os.getpid()):
            continue
        parents[process] = process.info["ppid"]
        if _MARK + token in (process.info["environ"] or ()):
            found.add(process)
    children = found
    while children:
        pids = {process.pid for process in children}
        children = {process for process, parent in parents.items() if parent in pids} - found
        found |= children
    return found


def kill_marked(token: str, known: Iterable[psutil.Process] = ()) -> None:
    """Kills the processes that `find_marked` returns."""
    for process in filter(is_alive, find_marked(token, known)):
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()


def main(token: str) -> None:
    known: set[psutil.Process] = set()
    closed = False
    while not closed:
        closed = bool(select.select([sys.stdin], [], [], LOOK_S)[0])  # nothing is ever written: readable means closed
        known = find_marked(token, known)
    deadline = time.monotonic() + GRACE_S
    while any(map(is_alive, known)) and time.monotonic() < deadline:
        time.sleep(_POLL_S)
    kill_marked(token, known)


def is_alive(process: psutil.Process) -> bool:
    """Returns whether a process still runs: one that ended and was not waited for does not."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


if __name__ == "__main__":
    main(sys.argv[1])
