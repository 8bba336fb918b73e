"""One replay server for all tests that do not stop their server; each test has tables of its own."""

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from deploy.bench.replay import StockClient
from deploy.replay.server.process import ReplayServer, TableSpec

UNLIMITED = [
    *("from_ours", "from_stock", "from_steps", "order/a", "order/b", "shapes", "exact", "empty", "stop"),
    *("slow/ahead", "many", "oversized", "kept", "again/a", "again/b", "without", "void"),
]
LIMITED = [
    TableSpec("slow/behind", 1000, min_size_to_sample=8, samples_per_insert=1.0, error_buffer=8.0),
    TableSpec("ratio", 1000, min_size_to_sample=8, samples_per_insert=2.0, error_buffer=16.0),
    TableSpec("partial", 1000, min_size_to_sample=1, samples_per_insert=1.0, error_buffer=1.0),
    TableSpec("blocked", 1000, min_size_to_sample=8, samples_per_insert=1.0, error_buffer=8.0),
    TableSpec("queued", 1000, min_size_to_sample=8, samples_per_insert=1.0, error_buffer=8.0),
    TableSpec("full", 1000, min_size_to_sample=1, samples_per_insert=1.0, error_buffer=1.0),
]


@pytest.fixture(scope="session")
def address(reverb_python: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    server = ReplayServer(reverb_python, tmp_path_factory.mktemp("replay") / "server.log")
    try:
        yield server.start([*(TableSpec(name, 1000, min_size_to_sample=1) for name in UNLIMITED), *LIMITED])
    finally:
        server.stop()


@pytest.fixture(scope="session")
def stock(reverb_python: Path) -> Iterator[StockClient]:
    client = StockClient(reverb_python)
    yield client
    client.close()


@pytest.fixture(autouse=True)
def no_thread_left() -> Iterator[None]:
    before = set(threading.enumerate())
    yield
    deadline = time.monotonic() + 5.0
    while (left := set(threading.enumerate()) - before) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not left
