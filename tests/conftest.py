"""What all tests share: a compilation cache, the layers that they belong to, and real replay servers."""

import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from deploy.replay_server.provision import reverb_python as provision
from deploy.replay_server.server import ReplayServer, TableSpec

ROOT = Path(__file__).parents[1]
STARTS_PROCESSES = {"reverb_python", "browser"}  # fixtures
QUESTIONS = {"git", "nvidia-smi", "ldconfig", "gcc", "cc", "ld", "objdump"}
"""Programs that answer a question at once and end. Tests of the fast layer may ask them."""

_may_start_processes = True


def pytest_configure() -> None:
    """Sets JAX's options before JAX is imported, for this process and those that tests start.

    Compiling takes most of the tests' time. Everything is compiled once, in whatever process, and with few of XLA's
    optimisations: `JAX_DISABLE_MOST_OPTIMIZATIONS=0` brings them back.
    """
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(ROOT / ".cache" / "tests-xla"))
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
    os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
    sys.addaudithook(_refuse_processes)


@pytest.hookimpl(tryfirst=True)  # pytest-xdist reads the groups
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks tests by what they start. Tests with Ray run one at a time, and first; the others file by file."""
    for item in items:
        if STARTS_PROCESSES & set(getattr(item, "fixturenames", ())) or item.get_closest_marker("ray"):
            item.add_marker(pytest.mark.processes)
        if item.get_closest_marker("xdist_group") is None:
            group = "ray" if item.get_closest_marker("ray") else str(item.path.relative_to(ROOT))
            item.add_marker(pytest.mark.xdist_group(group))
    items.sort(key=lambda item: item.get_closest_marker("ray") is None)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    global _may_start_processes
    _may_start_processes = item.get_closest_marker("processes") is not None
    try:
        return (yield)
    finally:
        _may_start_processes = True


def _refuse_processes(event: str, arguments: tuple[Any, ...]) -> None:
    """Fails a test that starts a process without the marker, or the fast layer would grow slow unnoticed."""
    if _may_start_processes or event not in ("subprocess.Popen", "os.posix_spawn", "os.fork", "os.system"):
        return
    program = os.path.basename(os.fsdecode(arguments[0])) if event == "subprocess.Popen" else event
    if program not in QUESTIONS:
        raise AssertionError(f"this test starts a process ({program}): mark it with pytest.mark.processes")


StartServer = Callable[..., tuple[ReplayServer, str]]


@pytest.fixture(scope="session")
def reverb_python() -> Path:
    """The Python of Reverb's environment, which the first run builds."""
    return provision(say=lambda _: None)


@pytest.fixture
def start_server(reverb_python: Path, tmp_path: Path) -> Iterator[StartServer]:
    """`start_server(*tables, port=None)` gives a running server and its address; stopped after the test."""
    servers: list[ReplayServer] = []

    def start(*tables: TableSpec, port: int | None = None) -> tuple[ReplayServer, str]:
        server = ReplayServer(reverb_python, tmp_path / f"server-{len(servers)}.log")
        servers.append(server)
        return server, server.start(tables, port)

    yield start
    for server in servers:
        server.stop()
