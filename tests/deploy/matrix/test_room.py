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

from deploy.matrix.config import MatrixConfig, expand, fed_run
from deploy.matrix.room import NOTHING, Demand, demand, may_start, refuse_too_large
from shared.config import ConfigError

DEADLINE_S = 200
RESOURCES = {
    "collector": {
        "width": 8,
        "environments": 4,
        "unroll_length": 5,
        "actors": 2,
        "resources": {"cpus": 0.1, "gpus": 0.2},
        "actor_resources": {"cpus": 0.5},
    },
}


def test_a_run_asks_for_the_sum_of_its_roles(make_matrix: Callable[..., MatrixConfig], tmp_path: Path) -> None:
    assert demand(expand(make_matrix())[0].experiment) == NOTHING
    evaluation = {"episodes": 8, "count": 2, "resources": {"gpus": 0.5}}
    run = expand(make_matrix(**RESOURCES, evaluation=evaluation))[0]
    # The collector learner and two others, two collectors, the evaluator.
    assert demand(run.experiment) == pytest.approx((3 * 0.1 + 2 * 0.5, 3 * 0.2 + 0.5))
    assert demand(fed_run(run, 8, tmp_path).experiment) == pytest.approx((0.1, 0.2 + 0.5))


def test_runs_go_at_once_as_far_as_there_is_room() -> None:
    total, third = Demand(8, 1), Demand(2, 1 / 3)
    assert may_start(third, [third, third], total, None)
    assert not may_start(third, [third, third, third], total, None)  # no GPU left
    assert not may_start(third, [third, third], total, 2)
    assert not may_start(third, [Demand(7, 0)], total, None)
    assert may_start(Demand(0.1, 0), [Demand(0.1, 0)] * 79, total, None)  # as in decimals, not as in floats
    assert not may_start(Demand(0.1, 0), [Demand(0.1, 0)] * 80, total, None)


def test_runs_that_ask_for_nothing_go_one_after_the_other_or_as_told() -> None:
    assert may_start(NOTHING, [], NOTHING, None)
    assert not may_start(NOTHING, [NOTHING], NOTHING, None)
    assert may_start(NOTHING, [Demand(1, 1)], Demand(1, 1), None)
    assert may_start(NOTHING, [NOTHING] * 2, NOTHING, 3)
    assert not may_start(NOTHING, [NOTHING] * 3, NOTHING, 3)


def test_a_run_larger_than_the_cluster_is_named() -> None:
    refuse_too_large({"small": Demand(2, 1), "large": Demand(4, 2)}, Demand(4, 2))
    message = "run large asks for 4 CPUs in its roles' resources, the Ray cluster has 2; ask for less"
    with pytest.raises(ConfigError, match=message):
        refuse_too_large({"small": Demand(2, 0), "large": Demand(4, 2)}, Demand(2, 1))


def matrix(path: Path, out: Path) -> subprocess.Popen:
    command = [sys.executable, "-m", "deploy.cli", "matrix", str(path), "--out", str(out)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def named(processes: Iterable[psutil.Process], what: str) -> set[psutil.Process]:
    found = set()
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            if any(what in part for part in process.cmdline()):
                found.add(process)
    return found


@pytest.mark.timeout(2 * DEADLINE_S)
def test_runs_share_one_cluster_and_leave_nothing(write_matrix: Callable[..., Path], tmp_path: Path) -> None:
    sizes = {"width": 8, "environments": 4, "unroll_length": 5}
    driver = matrix(write_matrix(collector={**sizes, "resources": {"cpus": 0.1}}), tmp_path / "out")
    started: set[psutil.Process] = set()
    deadline = time.monotonic() + DEADLINE_S
    while len(named(started, "ray::ParamStoreActor")) < 2:  # one of each run
        assert driver.poll() is None, driver.communicate()
        assert time.monotonic() < deadline
        started |= set(psutil.Process(driver.pid).children(recursive=True))
        time.sleep(0.2)
    assert len(named(started, "gcs_server")) == 1
    os.kill(driver.pid, signal.SIGINT)
    printed, errors = driver.communicate(timeout=DEADLINE_S)
    assert (driver.returncode, errors) == (130, "fathom: interrupted\n")
    assert printed.count("started") == 2
    assert psutil.wait_procs(started, timeout=20)[1] == []

    large = write_matrix(collector={**sizes, "resources": {"gpus": 1000}})
    driver = matrix(large, tmp_path / "other")
    printed, errors = driver.communicate(timeout=DEADLINE_S)
    assert (driver.returncode, printed) == (2, "")
    assert "run point_u_maze-c4-s0 asks for 3000 GPUs in its roles' resources, the Ray cluster has" in errors
    assert len(errors.splitlines()) == 1
    assert not (tmp_path / "other").exists()
