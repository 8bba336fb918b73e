"""Benchmarks of scaling, row bytes and entries. A small simulation is real: its processes start, fail and end."""

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import psutil
import pytest

from deploy.bench.entries import bench_entries, item_bytes
from deploy.bench.row_bytes import bench_row_bytes
from deploy.bench.scaling import bench_scaling
from deploy.bench.scaling_measure import DETAILS, FIGURES, saturated
from shared.envs.registry import make_env
from shared.errors import ConfigError

ROOT = Path(__file__).parents[3]
SMALL: dict[str, Any] = {"environments": 8, "seconds": 0.5, "episode_length": 100, "unroll_length": 25}
END_S = 20.0


def all_ended(processes: list[psutil.Process]) -> bool:
    """Returns True if all processes end within `END_S`. A zombie has ended."""
    deadline = time.monotonic() + END_S
    while time.monotonic() < deadline:
        if not any(p.is_running() and p.status() != psutil.STATUS_ZOMBIE for p in processes):
            return True
        time.sleep(0.1)
    return False


def descendants() -> list[psutil.Process]:
    """Returns all descendants of the current process."""
    return psutil.Process().children(recursive=True)


class Simulated(NamedTuple):
    """Result of a simulation, its messages, and the killed processes, one in each of the first three rows."""

    result: dict[str, Any]
    messages: list[str]
    killed: list[psutil.Process]


SAMPLES_PER_INSERT = 4.0
TO_KILL = ("a role", "the roles' parent", "the server")


@pytest.fixture(scope="module")
def simulated(reverb_python: Path) -> Simulated:
    """Five rows with two learners each. In the first three a process is killed; the last two are measured."""
    before, messages, killed = descendants(), [], []

    def kill(text: str) -> None:
        messages.append(text)
        if not text.startswith("measuring") or len(killed) == len(TO_KILL):
            return
        new = [process for process in descendants() if process not in before]
        parents = [process for process in new if process.children()]
        servers = [p for p in new if p not in parents and p.parent() == psutil.Process()]
        roles = [p for p in new if p not in parents and p not in servers]
        choice = {"a role": roles, "the roles' parent": parents, "the server": servers}
        killed.append(choice[TO_KILL[len(killed)]][0])
        killed[-1].kill()

    result = bench_scaling(
        [1, 1, 1, 1, 2],
        [2],
        **SMALL,
        state_size=5,
        action_size=2,
        goal_size=3,
        samples_per_insert=SAMPLES_PER_INSERT,
        say=kill,
    )
    assert descendants() == before
    return Simulated(result, messages, killed)


def test_figures_of_a_small_simulation(simulated: Simulated) -> None:
    result, messages, _ = simulated
    json.dumps(result)
    assert result["row_bytes"] == 4 * (5 + 2 + 3) + 16
    assert result["window_rows"] == 125  # ceil((100 + 24) / 25) = 5 chunks
    assert result["window_bytes"] == 125 * 56
    rows, details = result["rows"][-2:], result["details"][-2:]
    assert [row["roles"] for row in rows] == ["1 x 2", "2 x 2"]
    assert [(row["collectors"], row["learners"]) for row in rows] == [(1, 2), (2, 2)]
    for row, detail in zip(rows, details, strict=True):
        assert list(row) == ["roles", "collectors", "learners", *FIGURES, "error"]
        assert list(detail) == ["roles", "collectors", "learners", *DETAILS, "load_average"]
        assert (detail["collectors"], detail["learners"]) == (row["collectors"], row["learners"])
        assert row["error"] == ""
        for name in ("env_steps_per_second", "windows_per_second", "server_megabytes"):
            assert row[name] > 0, name
        assert row["megabytes_in"] == pytest.approx(row["env_steps_per_second"] * 56 / 1e6)
        assert row["megabytes_out"] == pytest.approx(row["windows_per_second"] * 7000 / 1e6)
        assert row["saturated"] in ("server CPU", "client CPU", "limiter", "nothing")
        assert detail["environments"] == 8 * row["collectors"]
        assert detail["seconds"] >= 0.5
        assert detail["clients_megabytes"] > 0
        assert detail["received_windows"] >= 2 * 64  # every learner's first batch
        # A learner counts a batch's windows before its bytes.
        assert detail["received_bytes"] % (64 * 7000) == 0
        apart = detail["received_bytes"] // 7000 - detail["received_windows"]
        assert -64 * row["learners"] <= apart <= 0
        assert detail["error_buffer"] == 2 * detail["environments"] * SAMPLES_PER_INSERT + 2 * 64
        least, most = detail["samples_ahead"]
        assert -detail["error_buffer"] <= least <= most <= detail["error_buffer"]
    assert [text.partition(":")[0] for text in messages if " steps/s " in text] == [
        "1 collectors, 2 learners",
        "2 collectors, 2 learners",
    ]


def test_the_error_names_the_killed_process(simulated: Simulated) -> None:
    failed = dict(zip(TO_KILL, simulated.result["rows"], strict=False))
    for row in failed.values():
        assert row["error"]
        assert "\n" not in row["error"]
        assert {row[name] for name in FIGURES} == {None}
    assert failed["a role"]["error"] == f"a simulated role failed: process {simulated.killed[0].pid} died"
    assert "SIGKILL" in failed["the server"]["error"]


def test_an_exception_leaves_no_process(reverb_python: Path) -> None:
    before, during = descendants(), []

    def fail(text: str) -> None:
        during.extend(descendants())
        raise RuntimeError(text)

    with pytest.raises(RuntimeError, match="measuring 2 collectors, 1 learners"):
        bench_scaling([2], [1], **SMALL, say=fail)
    assert len(during) - len(before) == 5  # the server, the roles' parent, three roles
    assert descendants() == before


def test_a_signal_leaves_no_process(reverb_python: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "deploy.cli", "bench", "scaling", "--quick", "--seconds", "100"]
    command += ["--collectors", "2", "--learners", "1"]
    pipes: dict[str, Any] = {"stderr": subprocess.PIPE, "stdout": subprocess.DEVNULL, "text": True}
    with ExitStack() as stack:
        benches = {}
        for sent in (signal.SIGINT, signal.SIGKILL):
            folder = tmp_path / sent.name  # a killed benchmark leaves its folder with logs
            folder.mkdir()
            environ = {**os.environ, "TMPDIR": str(folder)}
            benches[sent] = stack.enter_context(subprocess.Popen(command, cwd=ROOT, env=environ, **pipes))
            stack.callback(benches[sent].kill)
        for sent, bench in benches.items():
            assert bench.stderr is not None
            while not (line := bench.stderr.readline()).startswith("measuring"):
                assert line, "the benchmark ended before it measured"
            started = psutil.Process(bench.pid).children(recursive=True)
            assert len(started) == 5
            bench.send_signal(sent)
            bench.communicate(timeout=END_S)
            assert bench.returncode != 0
            assert all_ended(started)
    assert not list((tmp_path / "SIGINT").glob("fathom-bench-*"))


@pytest.mark.parametrize(
    ("collectors", "learners", "options", "message"),
    [
        ([], [1], {}, "collectors: name one or more numbers"),
        ([1], [], {}, "learners: name one or more numbers"),
        ([0], [1], {}, r"collectors: 0 is not within 1\.\.64"),
        ([1], [1, 65], {}, r"learners: 65 is not within 1\.\.64"),
        ([1], [1], {"seconds": 0.0}, "seconds: 0 is not a positive number"),
        ([1], [1], {"seconds": float("nan")}, "seconds: nan is not a positive number"),
        ([1], [1], {"environments": 0}, "environments: 0 is not a positive number"),
        ([1], [1], {"state_size": 0}, "state_size: 0 is not a positive number"),
        ([1], [1], {"samples_per_insert": -1.0}, "samples_per_insert: -1 is not a positive number"),
        (
            [64],
            [1],
            {"environments": 10**6},
            "collectors: 64 with 1 learners may take .* fewer environments or seconds",
        ),
    ],
)
def test_bad_arguments_give_a_one_line_error(
    collectors: list[int], learners: list[int], options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=f"^{message}") as raised:
        bench_scaling(collectors, learners, **options)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("figures", "expected"),
    [
        # cores, server, collectors, learners, busiest client, others, inserts waited, samples waited
        ((2, 1.2, 0.3, 0.4, 0.4, 0.0, 0.9, 0.0), "server CPU"),
        ((2, 0.5, 0.7, 0.7, 0.2, 0.0, 0.9, 0.0), "client CPU"),
        ((2, 0.2, 0.5, 0.1, 0.3, 1.1, 0.9, 0.0), "client CPU"),  # other processes use the rest
        ((16, 1.0, 0.5, 1.0, 0.95, 0.0, 0.9, 0.0), "client CPU"),  # one client fills a core
        ((16, 1.0, 0.5, 1.0, 0.4, 0.0, 0.9, 0.0), "limiter"),
        ((16, 1.0, 0.5, 1.0, 0.4, 0.0, 0.0, 0.6), "limiter"),
        ((16, 1.0, 0.5, 1.0, 0.4, 0.0, 0.2, 0.2), "nothing"),
    ],
)
def test_the_saturated_part_by_hand(figures: tuple[float, ...], expected: str) -> None:
    cpu = ("server_cpu", "collectors_cpu", "learners_cpu", "busiest_client_cpu", "other_cpu")
    names = (*cpu, "inserts_waited", "samples_waited")
    assert saturated(int(figures[0]), dict(zip(names, figures[1:], strict=True))) == expected


@pytest.mark.slow
def test_bytes_of_an_environments_rows() -> None:
    (row,) = bench_row_bytes({"point_u_maze": make_env("point_u_maze")}, unrolls=6)["rows"]
    assert (row["state"], row["action"], row["chunks_per_window"]) == (4, 2, 5)
    assert row["raw"] == 4 * (4 + 2 + 2) + 16
    assert row["item"] == item_bytes(5) / 62
    assert row["sampled"] == pytest.approx(5 * row["wire"] + row["item"])
    assert 12 < row["recorded"] < row["raw"]  # zstd: integers compress well, positions and actions hardly
    for name in ("wire", "tail"):
        assert row["raw"] < row[name] < 1.1 * row["raw"], name  # uncompressed


def test_entries_are_counted_for_each_table(reverb_python: Path) -> None:
    before = descendants()
    (row,) = bench_entries([2], unrolls=40)["rows"]
    assert descendants() == before
    assert row["entries_per_second"] == pytest.approx(2 * row["env_steps_per_second"] / 62)
    assert row["collector_cpu_us"] > 0
    assert row["server_cpu_us"] > 0
    for tables in ([], [0]):
        with pytest.raises(ConfigError, match=r"^--tables: positive numbers are needed, not \["):
            bench_entries(tables)
