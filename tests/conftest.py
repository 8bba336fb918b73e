"""Real replay servers for tests, and nothing left running after them."""

import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from deploy.replay_server.provision import reverb_python as provision
from deploy.replay_server.server import ReplayServer, TableSpec

_compiled = tempfile.TemporaryDirectory(prefix="fathom-tests-")


def pytest_configure() -> None:
    """Before JAX is imported: what two tests or two processes of a run share is compiled once."""
    os.environ["JAX_COMPILATION_CACHE_DIR"] = _compiled.name
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"


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
