"""Options of JAX and Ray for all tests, the layers that tests belong to, and real replay servers.

Compilation takes most of the tests' time. All processes share one compilation cache, and XLA makes few optimisations;
`JAX_DISABLE_MOST_OPTIMIZATIONS=0` enables all of them. XLA's older code generators, which JAX 0.11 no longer has, and
one thread compile in two thirds of the processor time. Their tanh rounds differently in loops of different form, and
an action's log-probability magnifies that (`log(1 - tanh(x)**2)`), so no test may ask for more than 1e-3 of it.

Starts of processes take the second most time. Python keeps bytecode, from which processes import JAX and Ray in a third
of the time.
"""

# ruff: noqa: E402 - the options hold for this process and those that tests start, so they are set before any import

import os
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

ROOT = Path(__file__).parents[1]
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(ROOT / ".cache" / "tests-xla"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
if version("jaxlib").startswith("0.10."):  # other versions do not know these, and end the process
    XLA_FLAGS = "--xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1"
    os.environ["XLA_FLAGS"] = f"{XLA_FLAGS} {os.environ.get('XLA_FLAGS', '')}".strip()
os.environ.setdefault("RAY_prestart_worker_first_driver", "0")  # roles' workers have environments of their own
os.environ.setdefault("RAY_metrics_report_interval_ms", "1000")  # instead of 10 s
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False

from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

import mujoco  # noqa: F401 - its first import starts a process, so it comes before any test
import pytest

from deploy.replay.server.process import ReplayServer, TableSpec
from deploy.replay.server.provision import reverb_python as provision
from deploy.scheduling.fork_server import PYTHON
from shared.metrics import parse_rows
from shared.metrics_catalogue import unknown_metrics

STARTS_PROCESSES = {"reverb_python", "browser"}  # fixtures
GALLERY = "tests/deploy/report/gallery/"
QUERY_PROGRAMS = {"git", "nvidia-smi", "ldconfig", "gcc", "cc", "ld", "objdump"}
"""Programs that print facts about the machine and end at once. Tests of the fast layer may start them."""

_may_start_processes = True


def pytest_configure() -> None:
    sys.addaudithook(_refuse_processes)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks tests that start processes, and puts tests that start Ray first, because they take longest."""
    for item in items:
        marked = any(item.get_closest_marker(layer) for layer in ("ray", "chaos", "deploy"))
        if marked or STARTS_PROCESSES & set(getattr(item, "fixturenames", ())):
            item.add_marker(pytest.mark.processes)
    items.sort(key=lambda item: not _starts_ray(item.path))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Gives each worker whole files.

    All files that start Ray go to one worker, so only one cluster runs at a time; all files about galleries to another,
    which trains their matrices once.
    """
    from xdist.scheduler import LoadScopeScheduling

    class ByFile(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = nodeid.partition("::")[0]
            if _starts_ray(config.rootpath / file):
                return "ray"
            return GALLERY if file.startswith(GALLERY) else file

    return ByFile(config, log)


@cache
def _starts_ray(path: Path) -> bool:
    return "pytest.mark.ray" in path.read_text(encoding="utf-8")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    global _may_start_processes
    _may_start_processes = item.get_closest_marker("processes") is not None
    if not _may_start_processes:
        os.environ[PYTHON] = sys.executable  # commands open no fork server
    try:
        return (yield)
    finally:
        _may_start_processes = True
        if os.environ.get(PYTHON) == sys.executable:
            del os.environ[PYTHON]


def _refuse_processes(event: str, arguments: tuple[Any, ...]) -> None:
    """Fails a test that starts a process without the marker `processes`, so that the fast layer stays fast."""
    if _may_start_processes or event not in ("subprocess.Popen", "os.posix_spawn", "os.fork", "os.system"):
        return
    program = os.path.basename(os.fsdecode(arguments[0])) if event == "subprocess.Popen" else event
    if program not in QUERY_PROGRAMS:
        raise AssertionError(f"this test starts a process ({program}): mark it with pytest.mark.processes")


MountDisk = Callable[[str], Path]


@pytest.fixture
def mount_disk(tmp_path: Path) -> Iterator[MountDisk]:
    """`mount_disk("size=64m")` gives the folder of a disk in memory, with these options of tmpfs."""
    folder = tmp_path / "disk"

    def mount(options: str) -> Path:
        folder.mkdir()
        command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
        if subprocess.run(command, capture_output=True).returncode:
            folder.rmdir()
            pytest.skip("only root may mount a small disk")
        return folder

    yield mount
    if folder.exists():
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


StartServer = Callable[..., tuple[ReplayServer, str]]


@pytest.fixture(scope="session")
def reverb_python() -> Path:
    """Path of the Python of Reverb's environment. The first run of the tests builds the environment."""
    return provision(say=lambda _: None)


@pytest.fixture
def start_server(reverb_python: Path, tmp_path: Path) -> Iterator[StartServer]:
    """`start_server(*tables, port=None)` starts a server and returns the server and its address.

    All servers are stopped after the test.
    """
    servers: list[ReplayServer] = []

    def start(*tables: TableSpec, port: int | None = None) -> tuple[ReplayServer, str]:
        server = ReplayServer(reverb_python, tmp_path / f"server-{len(servers)}.log")
        servers.append(server)
        return server, server.start(tables, port)

    yield start
    for server in servers:
        server.stop()


@pytest.fixture(scope="session")
def uncatalogued() -> Callable[[Path], dict[str, list[str]]]:
    """`uncatalogued(run_dir)` returns the metrics of a run that the catalogue lacks, by file."""

    def find(run_dir: Path) -> dict[str, list[str]]:
        found = {}
        for path in (run_dir / "metrics").glob("*.jsonl"):
            names = {name for row in parse_rows(path.read_bytes()) for name in row}
            if unknown := unknown_metrics(path.stem.partition("-")[0], names):
                found[path.stem] = unknown
        return found

    return find
