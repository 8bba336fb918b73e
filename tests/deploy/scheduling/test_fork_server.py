"""The fork server, in commands of their own: forks of this process would not be those of a command."""

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from deploy.scheduling import fork_client

pytestmark = pytest.mark.processes
ROOT = Path(__file__).parents[3]
HOLDER = """
import sys
from deploy.scheduling.fork_server import fork_server, python_program
with fork_server(sys.argv[1:]):
    print(python_program(), flush=True)
    sys.stdin.read()
"""
PROGRAM = """
import json, os, random, sys, time
if sys.argv[1:2] == ["sleep"]:
    print(os.getpid(), flush=True)
    time.sleep(60)
if sys.argv[1:2] == ["exit"]:
    sys.exit(int(sys.argv[2]) if sys.argv[2].isdigit() else sys.argv[2])
config = getattr(sys.modules.get("jax"), "config", None)
print(json.dumps({
    "arguments": sys.argv[1:], "name": __name__, "folder": os.getcwd(), "path": sys.path[0],
    "variable": os.environ.get("SAYS"), "platforms": config and config.jax_platforms,
    "shortest": config and config.jax_persistent_cache_min_compile_time_secs,
    "parent": os.getppid(), "random": random.random(), "input": sys.stdin.read(), "executable": sys.executable,
}))
print("a warning", file=sys.stderr)
"""


@pytest.fixture(scope="module")
def holder() -> Iterator[subprocess.Popen]:
    """A command with a fork server that has imported JAX."""
    with start_holder("jax") as process:
        yield process


def start_holder(*modules: str) -> subprocess.Popen:
    command = [sys.executable, "-c", HOLDER, *modules]
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    process = subprocess.Popen(command, cwd=ROOT, text=True, **pipes)
    assert process.stdout
    process.python = process.stdout.readline().strip()  # type: ignore[attr-defined]
    return process


@pytest.fixture
def program(tmp_path: Path) -> Path:
    path = tmp_path / "packages.py"  # a name that is forked
    path.write_text(PROGRAM)
    return path


def run(holder: Any, program: Path, *arguments: str, **options: Any) -> subprocess.CompletedProcess:
    pipes: dict[str, Any] = {"input": "", "capture_output": True, "text": True, "timeout": 30} | options
    return subprocess.run([holder.python, "-u", str(program), *arguments], **pipes)


def start(holder: Any, program: Path) -> tuple[subprocess.Popen, psutil.Process]:
    """Starts a program that sleeps; returns the process that stands for it, and the program's own."""
    process = subprocess.Popen([holder.python, str(program), "sleep"], stdout=subprocess.PIPE, text=True)
    assert process.stdout
    return process, psutil.Process(int(process.stdout.readline()))


def test_a_fork_is_as_python_would_have_started_it(holder: Any, program: Path, tmp_path: Path) -> None:
    environ = os.environ | {
        "SAYS": "one line\nmore",
        "JAX_PLATFORMS": "cpu",
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.25",
    }
    ran = run(holder, program, "--with", "a b", cwd=tmp_path, env=environ, input="typed")
    said = json.loads(ran.stdout)
    assert (ran.returncode, ran.stderr) == (0, "a warning\n")
    assert said["arguments"] == ["--with", "a b"]
    assert (said["name"], said["folder"], said["path"]) == ("__main__", str(tmp_path), str(tmp_path))
    assert (said["variable"], said["input"]) == ("one line\nmore", "typed")
    assert (said["platforms"], said["shortest"]) == ("cpu", 0.25)  # JAX was imported before, and has read them again
    assert said["executable"] == sys.executable
    assert psutil.Process(said["parent"]).ppid() == holder.pid
    again = json.loads(run(holder, program).stdout)
    assert again["random"] != said["random"]
    assert again["variable"] is None


@pytest.mark.parametrize(("status", "returned", "said"), [("3", 3, ""), ("no room", 1, "no room\n"), ("0", 0, "")])
def test_its_exit_status_is_passed_on(holder: Any, program: Path, status: str, returned: int, said: str) -> None:
    ran = run(holder, program, "exit", status)
    assert (ran.returncode, ran.stderr) == (returned, said)


def test_a_program_that_ends_at_once_has_its_exit_status(program: Path, tmp_path: Path) -> None:
    """Its process id and its exit status may come in one piece."""
    path = tmp_path / "socket"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        client = subprocess.Popen([sys.executable, fork_client.__file__, str(path), sys.executable, str(program)])
        server, _ = listener.accept()
        with server:
            size = fork_client.from_bytes(server.recv(fork_client.NUMBER_BYTES, socket.MSG_WAITALL))
            server.recv(size, socket.MSG_WAITALL)
            server.sendall(fork_client.as_bytes(1 << 20) + fork_client.as_bytes(7))
        assert client.wait(10) == 7


def test_an_error_is_a_traceback(holder: Any, program: Path) -> None:
    program.write_text("1 / 0")
    ran = run(holder, program)
    assert ran.returncode == 1
    assert ran.stderr.endswith("ZeroDivisionError: division by zero\n")


def test_signals_reach_the_program(holder: Any, program: Path) -> None:
    process, forked = start(holder, program)
    process.terminate()
    assert process.wait(10) == -signal.SIGTERM
    psutil.wait_procs([forked], timeout=10)
    assert not forked.is_running()


def test_a_program_ends_with_the_process_that_stands_for_it(holder: Any, program: Path) -> None:
    process, forked = start(holder, program)
    forked.suspend()  # a stopped one, too
    process.kill()
    process.wait(10)
    _, alive = psutil.wait_procs([forked], timeout=10)
    assert not alive


def test_a_killed_program_ends_the_process_that_stands_for_it(holder: Any, program: Path) -> None:
    process, forked = start(holder, program)
    forked.kill()
    assert process.wait(10) == -signal.SIGKILL


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_all_end_with_the_command(program: Path, number: signal.Signals) -> None:
    holder = start_holder("json")
    process, forked = start(holder, program)
    server = forked.parent()
    assert server is not None
    holder.send_signal(number)
    holder.wait(10)
    process.wait(10)
    _, alive = psutil.wait_procs([forked, server], timeout=10)
    assert not alive


def test_python_itself_runs_what_no_server_runs(holder: Any, program: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.py"  # not a program that is forked
    other.write_text(PROGRAM)
    assert json.loads(run(holder, other).stdout)["parent"] == os.getpid()
    command = [sys.executable, "-IS", fork_client.__file__, str(tmp_path / "no-socket"), sys.executable, str(program)]
    ran = subprocess.run(command, input="", capture_output=True, text=True, timeout=30)
    assert json.loads(ran.stdout)["platforms"] is None


def test_nothing_is_served_once_jax_computes(tmp_path: Path) -> None:
    probe = (
        "import sys, jax; from deploy.scheduling.fork_server import fork_server, python_program\n"
        "jax.numpy.ones(2)\n"
        "with fork_server([]): assert python_program() == sys.executable"
    )
    subprocess.run([sys.executable, "-c", probe], cwd=ROOT, check=True, timeout=60)


@pytest.mark.slow
def test_rays_workers_are_forks_in_their_own_environment() -> None:
    probe = """
import os, sys
from deploy.scheduling.fork_server import fork_server
with fork_server(["jax"]):
    import ray, psutil
    from deploy.scheduling.ray_cluster import cluster

    class Actor:
        def about(self):
            modules = "jax" in sys.modules
            import jax
            return os.getppid(), modules, os.environ["SAYS"], jax.config.jax_platforms, os.getpid()

    with cluster(100 * 2**20, "forks"):
        actors = []
        for says in ("one", "two"):
            runtime_env = {"env_vars": {"SAYS": says, "JAX_PLATFORMS": "cpu"}}
            actors.append(ray.remote(num_cpus=0, runtime_env=runtime_env)(Actor).remote())
        answers = ray.get([actor.about.remote() for actor in actors], timeout=60)
        assert [answer[1:4] for answer in answers] == [(True, "one", "cpu"), (True, "two", "cpu")], answers
        assert {psutil.Process(answer[0]).ppid() for answer in answers} == {os.getpid()}
        ray.kill(actors[0])
        gone, alive = psutil.wait_procs([psutil.Process(answers[0][4])], timeout=20)
        assert not alive
"""
    subprocess.run([sys.executable, "-c", probe], cwd=ROOT, check=True, timeout=120)
