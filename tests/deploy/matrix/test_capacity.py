"""Resources of a matrix's runs, runs that execute at once, and the cluster that they share."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import psutil
import pytest

from deploy.matrix.capacity import check_port, demands, may_start
from deploy.matrix.expand import MatrixConfig, expand, fed_run
from deploy.scheduling.placement import Node, asks_nothing
from shared.config import Resources
from shared.errors import ConfigError

DEADLINE_S = 200
RESOURCES = {
    "collector": {
        "width": 8,
        "environments": 4,
        "unroll_length": 5,
        "actors": 2,
        "learner_resources": {"cpus": 0.1, "gpus": 0.2},
        "collector_resources": {"cpus": 0.5, "gpus": 0},
    },
}


def roles(**sizes: tuple[float, float]) -> dict[str, Resources]:
    """Returns resources by role, from CPUs and GPUs."""
    return {role: Resources(cpus=cpus, gpus=gpus) for role, (cpus, gpus) in sizes.items()}


def test_a_run_demands_the_resources_of_all_its_roles(make_matrix: Callable[..., MatrixConfig], tmp_path: Path) -> None:
    nodes = [Node("a", cpus=8, gpus=2)]
    evaluation = {"episodes": 8, "count": 2, "resources": {"gpus": 0.5}}
    run = expand(make_matrix(**RESOURCES, evaluation=evaluation))[0]
    asked = demands([run, fed_run(run, "d8", tmp_path)], nodes)
    for name, cpus, gpus in ((run.name, 3 * 0.1 + 2 * 0.5, 3 * 0.2 + 0.5), (f"{run.name}-d8", 0.1, 0.2 + 0.5)):
        assert sum(role.cpus for role in asked[name].values()) == pytest.approx(cpus)
        assert sum(role.gpus or 0 for role in asked[name].values()) == pytest.approx(gpus)


def test_runs_without_a_number_of_gpus_execute_one_after_the_other(make_matrix: Callable[..., MatrixConfig]) -> None:
    runs = expand(make_matrix())
    nodes = [Node("a", cpus=8, gpus=1)]
    first, second = demands(runs, nodes).values()
    assert may_start(first, [], nodes, None)
    assert not may_start(second, [first], nodes, None)
    assert all(map(asks_nothing, demands(runs, [Node("a", cpus=8)]).values()))


def test_runs_execute_at_once_as_far_as_they_fit() -> None:
    nodes, third = [Node("a", cpus=8, gpus=1)], roles(learner=(2, 1 / 3))
    assert may_start(third, [third, third], nodes, None)
    assert not may_start(third, [third, third, third], nodes, None)  # no GPU left
    assert not may_start(third, [third, third], nodes, 2)
    assert not may_start(third, [roles(learner=(7, 0))], nodes, None)
    tenth = roles(learner=(0.1, 0))
    assert may_start(tenth, [tenth] * 79, nodes, None)  # exact in decimals, not in floats
    assert not may_start(tenth, [tenth] * 80, nodes, None)
    two_thirds = roles(learner=(0, 0.6))
    assert not may_start(two_thirds, [two_thirds] * 2, [Node("a", gpus=2)], None)  # one GPU each
    assert not may_start(roles(learner=(0, 2)), [], [Node("a", gpus=1), Node("b", gpus=1)], None)


def test_runs_that_ask_for_nothing_execute_one_after_the_other_unless_parallel_is_set() -> None:
    nothing = roles(learner=(0, 0))
    assert may_start(nothing, [], [], None)
    assert not may_start(nothing, [nothing], [], None)
    assert may_start(nothing, [roles(learner=(1, 1))], [Node("a", cpus=1, gpus=1)], None)
    assert may_start(nothing, [nothing] * 2, [], 3)
    assert not may_start(nothing, [nothing] * 3, [], 3)


def test_an_error_names_the_run_that_is_larger_than_the_cluster(make_matrix: Callable[..., MatrixConfig]) -> None:
    runs = expand(make_matrix(**RESOURCES))
    demands(runs, [Node("a", cpus=2, gpus=1)])
    message = "run point_u_maze-c4-s0: collector-0 needs 0.5 CPUs, the largest node has 0.4; ask for less"
    with pytest.raises(ConfigError, match=message):
        demands(runs, [Node("a", cpus=0.4, gpus=1), Node("b", cpus=0.4)])


def test_one_port_is_refused_for_several_runs_at_once(make_matrix: Callable[..., MatrixConfig]) -> None:
    fixed = expand(make_matrix(replay={"steps_per_environment": 400, "prefill_steps": 40, "port": 4444}))
    for parallel in (None, 2):
        with pytest.raises(ConfigError) as error:
            check_port(fixed, parallel, in_process=False)
        line = "experiment.replay.port: 4444 is one port, and 2 runs may need it at once; leave it out, or add"
        assert str(error.value).startswith(line)
        check_port(fixed[:1], parallel, in_process=False)
        check_port(fixed, parallel, in_process=True)
        check_port(expand(make_matrix()), parallel, in_process=False)
    check_port(fixed, 1, in_process=False)


def start_matrix(path: Path, out: Path) -> subprocess.Popen:
    command = [sys.executable, "-m", "deploy.cli", "matrix", str(path), "--out", str(out)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def named(processes: Iterable[psutil.Process], text: str) -> set[psutil.Process]:
    found = set()
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            if any(text in part for part in process.cmdline()):
                found.add(process)
    return found


@pytest.mark.ray
@pytest.mark.timeout(2 * DEADLINE_S)
def test_runs_share_one_cluster_and_leave_no_process(
    write_matrix: Callable[..., Path], tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    sizes = {"width": 8, "environments": 4, "unroll_length": 5}
    endless = write_matrix(collector={**sizes, "learner_resources": {"cpus": 0.1}}, budget={"env_steps": 100_000_000})
    driver = start_matrix(endless, tmp_path / "out")
    request.addfinalizer(driver.kill)
    started: set[psutil.Process] = set()
    deadline = time.monotonic() + DEADLINE_S
    while len(named(started, "ray::ParamStoreActor")) < 2:  # one of each run
        assert driver.poll() is None, driver.communicate()
        assert time.monotonic() < deadline
        started |= set(psutil.Process(driver.pid).children(recursive=True))
        time.sleep(0.1)
    assert len(named(started, "gcs_server")) == 1
    os.kill(driver.pid, signal.SIGINT)
    printed, errors = driver.communicate(timeout=DEADLINE_S)
    assert (driver.returncode, errors) == (130, "fathom: interrupted\n")
    assert printed.count("started") == 2
    assert psutil.wait_procs(started, timeout=20)[1] == []


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.timeout(2 * DEADLINE_S)
def test_runs_go_on_after_the_death_of_their_cluster(
    write_matrix: Callable[..., Path], tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    sizes = {"width": 8, "environments": 4, "unroll_length": 5, "learner_resources": {"cpus": 0.1}}
    driver = start_matrix(write_matrix(collector=sizes, budget={"env_steps": 4000}), tmp_path / "out")
    request.addfinalizer(driver.kill)
    deadline = time.monotonic() + DEADLINE_S
    started: set[psutil.Process] = set()
    while not named(started, "ray::LearnerActor"):
        assert driver.poll() is None, driver.communicate()
        assert time.monotonic() < deadline
        started |= set(psutil.Process(driver.pid).children(recursive=True))
        time.sleep(0.1)
    for server in named(started, "raylet/raylet"):
        server.kill()
    printed, errors = driver.communicate(timeout=DEADLINE_S)
    assert (driver.returncode, errors) == (0, "")
    assert printed.count("the Ray cluster that the runs share died; they go on in another one") == 1
    assert printed.count(": done after") == 2
    assert psutil.wait_procs(started, timeout=20)[1] == []


@pytest.mark.ray
@pytest.mark.usefixtures("shared_cluster")
def test_a_matrix_too_large_for_the_cluster_starts_nothing(write_matrix: Callable[..., Path], tmp_path: Path) -> None:
    sizes = {"width": 8, "environments": 4, "unroll_length": 5}
    large = write_matrix(collector={**sizes, "collector_resources": {"gpus": 1000}})
    driver = start_matrix(large, tmp_path / "out")
    printed, errors = driver.communicate(timeout=DEADLINE_S)
    assert (driver.returncode, printed) == (2, "")
    assert "run point_u_maze-c4-s0: collector-0 needs 1000 GPUs, the largest node has" in errors
    assert len(errors.splitlines()) == 1
    assert not (tmp_path / "out").exists()
