"""Termination of an actor's process by its number."""

import subprocess
import sys

import pytest

from deploy.scheduling.processes import _end_process

pytestmark = pytest.mark.processes
SLEEP = [sys.executable, "-c", "import time; print(flush=True); time.sleep(60)"]


@pytest.mark.parametrize("dump", [False, True])
def test_only_a_ray_process_is_ended(dump: bool) -> None:
    """An actor may have ended, and another program may have its number by now."""
    actor, stranger = (subprocess.Popen([*SLEEP, title], stdout=subprocess.PIPE) for title in ("ray::Actor", "other"))
    for child in (actor, stranger):
        assert child.stdout is not None
        child.stdout.readline()
        _end_process(child.pid, dump)
    assert actor.wait(10) < 0
    assert stranger.poll() is None
    stranger.kill()
    stranger.wait(10)
    _end_process(stranger.pid, dump)  # gone
