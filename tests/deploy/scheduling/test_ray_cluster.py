"""Connection to a Ray cluster, and the start of a new one."""

import json
import os
import re
import socket
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest

from deploy.scheduling.packages import PACKAGES
from deploy.scheduling.ray_cluster import LONGEST_PATH, _ray_folder, cluster
from shared.errors import RunFailed

ROOT = Path(__file__).parents[3]
UV_RUN = [Path(sys.executable).with_name("uv"), "run", "--no-project", "--python", sys.executable]
# A driver whose first try to start Ray fails. It prints what it said, its processes, and what a worker imports.
DRIVER = """
import json, os
from deploy.cli.__main__ import prepare_process
prepare_process()
import psutil, ray
from deploy.scheduling.ray_cluster import cluster

said = []

def say(text):
    said.append(text)
    if "once more" in text:
        del os.environ["RAY_gcs_server_port_wait_time_s"]

class Worker:
    def look(self):
        import collector, deploy, learner, shared
        from shared.config import EnvOptions
        from shared.envs.registry import make_env
        files = [package.__file__ for package in (collector, deploy, learner, shared)]
        return files, make_env("slope:Slope", EnvOptions()).spec.num_cells, os.getcwd()

with cluster(100 * 2**20, "tests", say):
    seen = ray.get(ray.remote(num_cpus=0)(Worker).remote().look.remote())
    names = [process.name() for process in psutil.Process().children(recursive=True)]
print(json.dumps([said, names, seen]))
"""


@pytest.mark.ray
def test_a_cluster_starts_at_the_second_try_wherever_the_user_is(tmp_path: Path) -> None:
    """The working directory has packages of our names and an own environment, and TMPDIR is too long for sockets."""
    folder, driver, temporary = tmp_path / "folder", tmp_path / "driver.py", tmp_path / ("long" * 20)
    temporary.mkdir()
    for name in PACKAGES:
        (folder / name).mkdir(parents=True)
        (folder / name / "__init__.py").touch()
    page = (ROOT / "docs" / "own_environment.md").read_text()
    (folder / "slope.py").write_text(re.findall(r"```python\n(.*?)```", page, flags=re.DOTALL)[0])
    driver.write_text(DRIVER)
    environ = os.environ | {"TMPDIR": str(temporary), "RAY_gcs_server_port_wait_time_s": "0"}
    command = [*UV_RUN, "python", "-P", driver]
    ran = subprocess.run(command, cwd=folder, env=environ, capture_output=True, text=True, timeout=120)
    assert ran.returncode == 0, ran.stderr
    said, processes, (files, cells, worker_folder) = json.loads(ran.stdout.splitlines()[-1])
    assert said[0] == (
        f"Ray's logs and sockets are in /tmp/fathom-ray-{os.getuid()}, because {temporary}/ray is too long for the "
        "path of a socket; RAY_TMPDIR names another folder"
    )
    assert re.fullmatch(r"Ray did not start \(\w+: .*\); trying once more", said[1])
    assert len(said) == 2
    assert processes.count("gcs_server") == processes.count("raylet") == 1  # the first try's have ended
    assert "uv" not in processes
    assert files == [str(ROOT / name / "__init__.py") for name in PACKAGES]
    assert (cells, worker_folder) == (20, str(folder))


def test_a_missing_cluster_is_an_error_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    def init(**options: Any) -> None:
        pytest.fail("Ray itself retries for a quarter of an hour")

    monkeypatch.setattr("ray.init", init)
    for family, host, shown in ((socket.AF_INET, "127.0.0.1", "127.0.0.1"), (socket.AF_INET6, "::1", "[::1]")):
        with socket.socket(family) as unused:
            unused.bind((host, 0))  # and never listens
            address = f"{shown}:{unused.getsockname()[1]}"
            monkeypatch.setenv("RAY_ADDRESS", address)
            with pytest.raises(RunFailed) as failed, cluster(0, namespace="tests"):
                pass
        assert str(failed.value).startswith(
            f"RAY_ADDRESS: no connection to a Ray cluster at {address} (ConnectionRefusedError"
        )
        assert len(str(failed.value).splitlines()) == 1


@pytest.mark.parametrize("address", ["ray://head:10001", "http://head:8265"])
def test_an_address_for_clients_outside_is_refused(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", address)
    refused = f"RAY_ADDRESS: {address} is an address for clients outside.*ray job submit"
    with pytest.raises(RunFailed, match=refused), cluster(0, namespace="tests"):
        pass


def test_rays_own_folder_is_used_if_it_can_be(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    for name in ("RAY_TMPDIR", "TMPDIR"):
        monkeypatch.delenv(name, raising=False)
    assert _ray_folder(said.append) == "/tmp/ray"
    with tempfile.TemporaryDirectory(dir="/tmp") as short:
        folder = f"{short}/".ljust(LONGEST_PATH - len("/ray"), "x")
        monkeypatch.setenv("TMPDIR", folder)  # does not exist
        assert _ray_folder(said.append) == f"{folder}/ray"
        assert said == []
        monkeypatch.setenv("TMPDIR", f"{folder}x")
        assert _ray_folder(said.append) == f"/tmp/fathom-ray-{os.getuid()}"
    monkeypatch.setenv("RAY_TMPDIR", "/proc")  # not even root can write there
    assert _ray_folder(said.append) == f"/tmp/fathom-ray-{os.getuid()}"
    assert [text.split("because ")[1].split(";")[0] for text in said] == [
        f"{folder}x/ray is too long for the path of a socket",
        "/proc/ray cannot be written (No such file or directory)",
    ]
