"""Ray jobs on a head that requires a token: submitted, refused, stopped."""

import contextlib
import os
import re
import secrets
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

pytestmark = pytest.mark.deploy

ROOT = Path(__file__).parents[3]
BIN = Path(sys.executable).parent
JOB_PROCESS = re.compile(r"ray::\w*Actor|deploy[./](cli|scheduling[./]reaper|replay[./]server)|bin/fathom")
MARK = "FATHOM_TEST_JOB"  # in the environment of all processes that the head starts


def free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        probes = [stack.enter_context(socket.socket()) for _ in range(count)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [probe.getsockname()[1] for probe in probes]


class Head:
    """Head node of a Ray cluster with a token, on free ports of this machine."""

    def __init__(self, tmp_path: Path) -> None:
        token = tmp_path / "token"
        token.write_text(secrets.token_hex(32))
        token.chmod(0o600)
        self.mark = secrets.token_hex(8)
        self.environ = {**os.environ, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token)}
        self.environ |= {"PATH": f"{BIN}:{os.environ['PATH']}"}
        port, dashboard, agent = free_ports(3)  # other heads may run on this machine
        self.address = f"http://127.0.0.1:{dashboard}"
        options = [f"--port={port}", f"--dashboard-port={dashboard}", f"--dashboard-agent-listen-port={agent}"]
        options += ["--num-cpus=2", "--disable-usage-stats"]
        self.process = subprocess.Popen(
            ["ray", "start", "--head", "--block", "--object-store-memory=300000000", *options],
            env={**self.environ, MARK: self.mark},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.STDOUT,
        )

    def ray(self, *arguments: str, **environ: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["ray", "job", *arguments],
            cwd=ROOT,
            env={**self.environ, "RAY_API_SERVER_ADDRESS": self.address, **environ},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=220,
        )

    def submit(self, *command: str, wait: bool, **environ: str) -> subprocess.CompletedProcess[str]:
        options = [] if wait else ["--no-wait"]
        return self.ray("submit", *options, "--working-dir", str(ROOT), "--", *command, **environ)

    def stop(self) -> None:
        for process in self._started():
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        self.process.wait(30)

    def _started(self) -> list[psutil.Process]:
        """Returns all descendants of the head, found by the mark in their environment."""
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                if process.environ().get(MARK) == self.mark:
                    found.append(process)
        return found

    def job_processes(self) -> list[psutil.Process]:
        """Returns the processes of jobs: drivers, actors and the replay server, without the head's own processes."""
        found = []
        for process in self._started():
            with contextlib.suppress(psutil.Error):
                if JOB_PROCESS.search(" ".join(process.cmdline())):
                    found.append(process)
        return found


@pytest.fixture(scope="module")
def head(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Head]:
    started = Head(tmp_path_factory.mktemp("head"))
    try:
        deadline = time.monotonic() + 90
        while started.submit("true", wait=True).returncode:  # the agent that accepts jobs starts last
            assert time.monotonic() < deadline
            time.sleep(1)
        yield started
    finally:
        started.stop()


@pytest.mark.timeout(400)
def test_a_job_succeeds_and_prints_plain_lines(head: Head) -> None:
    experiment = "deploy/experiments/point_u_maze.yaml"
    ran = head.submit("fathom", "run", experiment, "--total-env-steps", "60000", wait=True)
    assert "succeeded" in ran.stdout, ran.stdout
    progress = [line for line in ran.stdout.splitlines() if "environment steps, " in line and line.startswith("[")]
    assert progress
    assert not any("\x1b" in line or "\r" in line for line in progress)
    assert head.job_processes() == []


def test_a_job_without_the_token_is_refused(head: Head, tmp_path: Path) -> None:
    refused = head.submit("true", wait=True, RAY_AUTH_MODE="disabled", RAY_AUTH_TOKEN_PATH="", HOME=str(tmp_path))
    assert refused.returncode != 0
    assert "Authentication required" in refused.stdout


@pytest.mark.timeout(400)
def test_a_stopped_job_leaves_no_process(head: Head) -> None:
    submitted = head.submit("fathom", "run", "deploy/experiments/point_u_maze.yaml", wait=False)
    name = re.search(r"raysubmit_\w+", submitted.stdout)
    assert name, submitted.stdout
    deadline = time.monotonic() + 200
    while not any("Collector" in " ".join(process.cmdline()) for process in head.job_processes()):
        assert time.monotonic() < deadline
        time.sleep(1)
    assert any("serve.py" in " ".join(process.cmdline()) for process in head.job_processes())
    head.ray("stop", name[0])
    deadline = time.monotonic() + 30
    while left := head.job_processes():
        assert time.monotonic() < deadline, left
        time.sleep(1)
