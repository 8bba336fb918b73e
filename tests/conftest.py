"""Real replay servers for tests, and nothing left running after them."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from deploy.replay_server.provision import reverb_python as provision
from deploy.replay_server.server import ReplayServer, TableSpec

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
