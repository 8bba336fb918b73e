"""Connection to an existing Ray cluster."""

import socket
import time

import pytest

from deploy.scheduling.ray_cluster import cluster
from shared.errors import RunFailed


def test_a_missing_cluster_is_an_error_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    started = time.monotonic()
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))  # and never listens
        address = f"127.0.0.1:{unused.getsockname()[1]}"
        monkeypatch.setenv("RAY_ADDRESS", address)
        with pytest.raises(RunFailed) as failed, cluster(0, namespace="tests"):
            pass
    assert str(failed.value).startswith(
        f"RAY_ADDRESS: no connection to a Ray cluster at {address} (ConnectionRefusedError"
    )
    assert len(str(failed.value).splitlines()) == 1
    assert time.monotonic() - started < 5
