"""Estimate of a matrix's steps, memory and disk space."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from deploy.cli.main import run_command
from deploy.matrix.estimate import estimate_matrix, readable_bytes
from deploy.matrix.expand import MatrixConfig


@pytest.mark.parametrize("recorded", [False, True])
def test_the_estimate_adds_up(recorded: bool, make_matrix: Callable[..., MatrixConfig]) -> None:
    estimate = estimate_matrix(make_matrix(record=recorded))
    rows, totals = estimate["rows"], estimate["totals"]
    assert [(row["learner"], row["depth"]) for row in rows] == 2 * [("active", 4), ("d4", 4), ("d8", 8)]
    assert totals["runs"] == 2
    assert totals["cells"] == 4
    assert totals["env_steps"] == 2 * 400
    # 20 unrolls make (20 - 5 + 1) x 4 windows, the first 24 (the error buffer) are not trained on, 8 make an update.
    assert {row["gradient_steps"] for row in rows} == {(16 * 4 - 24) // 8 * 4}
    assert totals["gradient_steps"] == 6 * 20
    assert {row["stream_bytes"] for row in rows} == {400 * 4 * (4 + 2 + 3)}
    assert totals["stream_bytes"] == 800 * 4 * (4 + 2 + 3)
    assert estimate["recorded"] == recorded
    assert rows[0]["parameters"] == rows[1]["parameters"] < rows[2]["parameters"]
    assert rows[0]["memory_bytes"] == 16 * rows[0]["parameters"]


def test_the_references_humanoid_records_115_gigabytes() -> None:
    experiment = {"env_options": {"reference_state": True}, "budget": {"env_steps": 10**8}}
    axes = {"envs": ("humanoid",), "collector_depths": (4,), "learner_depths": (4,)}
    estimate = estimate_matrix(MatrixConfig.model_validate({**axes, "experiment": experiment}))
    assert readable_bytes(estimate["totals"]["stream_bytes"]) == "115 GB"


def test_a_dry_run_starts_nothing(
    write_matrix: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["matrix", str(write_matrix()), "--out", str(tmp_path / "out"), "--dry-run"]
    assert run_command([*command, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["totals"]["cells"] == 4
    assert run_command(command) == 0
    printed = capsys.readouterr().out
    assert printed.count("point_u_maze-c4-s0") == 1  # a group of rows for each run
    assert "2 runs, 4 cells, 800 environment steps, 120 gradient steps, streams of 28.8 kB (not recorded)" in printed
    assert not (tmp_path / "out").exists()


def test_bytes_are_readable() -> None:
    assert [readable_bytes(count) for count in (0, 999, 14_400, 999_900, 115.2e9, 5.1e15)] == [
        "0 B",
        "999 B",
        "14.4 kB",
        "1 MB",
        "115 GB",
        "5,100 TB",
    ]
