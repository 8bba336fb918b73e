"""A Ray cluster that tests share, and environments that only tests use."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from deploy.matrix.capacity import _answer

OWN_ENVS = Path(__file__).with_name("own_envs")
STORE_BYTES = 256 * 2**20
STOP_S = 60


@pytest.fixture(scope="session")
def pace_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of the files by which a test slows down the environments of `own_envs/paced.py` on the shared cluster."""
    return tmp_path_factory.mktemp("pace")


@pytest.fixture(scope="session")
def _cluster(pace_dir: Path) -> Iterator[tuple[psutil.Process, dict[str, str]]]:
    """The holder of a Ray cluster of one node without GPUs, and the environment variables of processes that join it."""
    command = [sys.executable, "-m", "deploy.scheduling.ray_cluster", str(STORE_BYTES)]
    # Ray workers inherit the environment variables of the cluster, not of the run.
    path = os.pathsep.join(filter(None, (str(OWN_ENVS), os.environ.get("PYTHONPATH"))))
    holder = subprocess.Popen(
        command,
        env=os.environ | {"PYTHONPATH": path, "PACE_DIR": str(pace_dir)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        start_new_session=True,
    )
    assert holder.stdin is not None
    try:
        yield psutil.Process(holder.pid), _answer(holder)["environ"]
    finally:
        holder.stdin.close()
        try:
            holder.wait(STOP_S)
        finally:
            holder.kill()


@pytest.fixture
def own_envs(monkeypatch: pytest.MonkeyPatch) -> Path:
    """Folder of environments that the test and its child processes can import."""
    monkeypatch.syspath_prepend(OWN_ENVS)
    monkeypatch.setenv("PYTHONPATH", str(OWN_ENVS), prepend=os.pathsep)
    return OWN_ENVS


@pytest.fixture
def shared_cluster(_cluster: tuple[psutil.Process, dict[str, str]], monkeypatch: pytest.MonkeyPatch) -> psutil.Process:
    """Makes the test's processes join the shared Ray cluster; returns the ancestor process of all its actors."""
    holder, environ = _cluster
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    return holder
