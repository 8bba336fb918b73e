"""The reaper ends the processes that a driver started in its block, and no others."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator

import psutil
import pytest

from deploy.scheduling.reaper import find_marked, guarded, kill_marked, marked

pytestmark = pytest.mark.processes
SLEEP = ["sleep", "60"]
WAIT_S = 10
PIPES = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
# A process without the variables of its parent, as after a program has set its title; the shell ends with its input.
WITHOUT_VARIABLES = ["sh", "-c", "env -i sleep 60 & echo $!; read line"]
INSIDE = """
import sys, psutil
from deploy.scheduling.reaper import find_marked
print(*sorted(process.name() for process in find_marked("A")), psutil.Process(1).environ().get("FATHOM_MARK_A"))
"""


@pytest.fixture
def stranger() -> Iterator[subprocess.Popen]:
    """A child that was started before the test's block."""
    child = subprocess.Popen(SLEEP)
    yield child
    child.kill()
    child.wait(WAIT_S)


def test_all_processes_of_the_block_end_and_no_others(stranger: subprocess.Popen) -> None:
    with marked():  # of another driver, started by this one's or not
        other = subprocess.Popen(SLEEP)
    with guarded():
        inside = subprocess.Popen(SLEEP, start_new_session=True)
        shell = subprocess.run(["sh", "-c", "sleep 60 >/dev/null & echo $!"], stdout=subprocess.PIPE, check=True)
        orphan = psutil.Process(int(shell.stdout))
        unmarked = subprocess.Popen(SLEEP, env={"PATH": os.environ["PATH"]})
    assert inside.wait(WAIT_S) == -signal.SIGKILL
    orphan.wait(WAIT_S)
    for process in (stranger, other, unmarked):
        assert process.poll() is None
    for process in (other, unmarked):
        process.kill()
        process.wait(WAIT_S)
    assert not [name for name in os.environ if name.startswith("FATHOM_MARK")]


def test_a_process_without_variables_is_found_by_its_parent_or_because_it_is_known() -> None:
    with marked() as token:
        shell = subprocess.Popen(WITHOUT_VARIABLES, **PIPES)
    assert shell.stdin is not None
    assert shell.stdout is not None
    child = psutil.Process(int(shell.stdout.readline()))
    known = find_marked(token)
    assert known == {psutil.Process(shell.pid), child}
    shell.stdin.close()
    shell.wait(WAIT_S)
    assert find_marked(token) == set()
    assert find_marked(token, known) == {child}
    kill_marked(token, known)
    child.wait(WAIT_S)
    assert find_marked(token, known) == set()


@pytest.mark.parametrize("token", ["", "PATH", "HOME"])
def test_a_token_that_no_driver_made_finds_nothing(token: str, stranger: subprocess.Popen) -> None:
    assert find_marked(token) == set()


def test_the_first_process_of_a_container_is_never_found() -> None:
    as_user = [] if os.geteuid() == 0 else ["--user", "--map-root-user"]
    container = ["unshare", *as_user, "--pid", "--fork", "--mount-proc", "sh", "-c", 'sleep 60 & "$@"; exit', "sh"]
    command = [*container, sys.executable, "-c", INSIDE]
    ran = subprocess.run(command, env=os.environ | {"FATHOM_MARK_A": "1"}, capture_output=True, text=True, timeout=60)
    assert ran.stdout.split() == ["sleep", "1"], ran.stderr
