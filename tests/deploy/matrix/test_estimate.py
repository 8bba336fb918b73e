"""Estimate of a matrix's steps, memory and disk space."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from deploy.cli.main import run_command
from deploy.matrix.estimate import check_disk, estimate_matrix, readable_bytes
from deploy.matrix.expand import MatrixConfig, expand, load_matrix
from deploy.run.provenance import write_config
from shared.disk import GB
from shared.errors import ConfigError
from shared.files import write_json


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
    assert {row["stream_bytes"] for row in rows} == {400 * 4 * (4 + 2 + 2 + 4)}
    assert totals["stream_bytes"] == 800 * 4 * (4 + 2 + 2 + 4)
    assert estimate["recorded"] == recorded
    assert rows[0]["parameters"] == rows[1]["parameters"] < rows[2]["parameters"]
    assert rows[0]["memory_bytes"] == 16 * rows[0]["parameters"]


def test_learners_are_estimated_with_their_objectives(make_matrix: Callable[..., MatrixConfig]) -> None:
    rows = estimate_matrix(make_matrix(objectives=["contrastive", "cloning"], seeds=[0]))["rows"]
    assert [row["learner"] for row in rows] == [
        "active",
        "contrastive-d4",
        "contrastive-d8",
        "cloning-d4",
        "cloning-d8",
    ]
    parameters = {row["learner"]: row["parameters"] for row in rows}
    assert parameters["cloning-d4"] < parameters["contrastive-d4"] == parameters["active"]  # cloning has no critic
    assert {row["objective"] for row in rows[3:]} == {"cloning"}


def test_the_references_humanoid_records_117_gigabytes() -> None:
    experiment = {"env_options": {"reference_state": True}, "budget": {"env_steps": 10**8}}
    axes = {"envs": ("humanoid",), "collector_depths": (4,), "learner_depths": (4,)}
    estimate = estimate_matrix(MatrixConfig.model_validate({**axes, "experiment": experiment}))
    assert readable_bytes(estimate["totals"]["stream_bytes"]) == "117 GB"


def test_a_dry_run_starts_nothing(
    write_matrix: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["matrix", str(write_matrix()), "--out", str(tmp_path / "out"), "--dry-run"]
    assert run_command([*command, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["totals"]["cells"] == 4
    assert run_command(command) == 0
    printed = capsys.readouterr().out
    assert printed.count("point_u_maze-c4-s0") == 1  # a group of rows for each run
    assert "2 runs, 4 cells, 800 environment steps, 120 gradient steps, streams of 38.4 kB (not recorded)" in printed
    assert not (tmp_path / "out").exists()


def test_a_dry_run_names_runs_that_are_kept(
    write_matrix: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, out = write_matrix(), tmp_path / "out"
    first, second = expand(load_matrix(path))
    for run, update in ((first, {"seed": 7}), (second, {})):
        (out / run.name).mkdir(parents=True)
        write_config(out / run.name, run.experiment.model_copy(update=update))
        write_json(out / run.name / "status.json", {"state": "done"})
    (out / "matrix.yaml").write_text(path.read_text())
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    command = ["matrix", str(path), "--out", str(out), "--dry-run"]

    assert run_command(command) == 1
    printed = capsys.readouterr().out
    text = "its folder holds a finished run with another configuration (seed was 7 and is 0 now)"
    assert f"{first.name}: kept and not executed, {text}; set it back, name another --out, or add --over" in printed
    assert f"{second.name}: done before" in printed
    assert run_command([*command, "--json"]) == 1
    plan = json.loads(capsys.readouterr().out)
    assert (plan["done"], list(plan["kept"]), plan["replaced"]) == ([second.name], [first.name], {})

    assert run_command([*command, "--overwrite"]) == 0
    assert f"{first.name}: replaced, {text}" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*")} == before


HUGE = {"seeds": [*range(100)], "budget": {"env_steps": "1e12"}, "record": True}


@pytest.mark.parametrize(
    ("options", "changes", "message"),
    [
        (["--parallel", "0"], {}, "--parallel: 0 is not positive"),
        (["--json"], {}, "--json: prints the dry run; add --dry-run"),
        (["--dry-run"], {"replay": {"same_batches": True}}, "experiment.replay.same_batches: the replay server draws"),
        (["--dry-run"], {"replay": {"port": 4444}}, "experiment.replay.port: 4444 is one port, and 2 runs may need it"),
        (["--dry-run"], HUGE, "free, all runs together keep about 4,800 TB more and leave 1 GB free (supervision."),
        (["--dry-run"], {"envs": ["point_u_mase"]}, "envs: unknown environment 'point_u_mase'; did you mean"),
        (["--dry-run"], {"evaluation_envs": {"point_u_maze": "ant"}}, "evaluation_envs.point_u_maze: ant has state"),
        (["--dry-run"], {"evaluation": {"env": "maze"}}, "experiment.evaluation.envs: unknown environment 'maze'"),
        (["--dry-run"], {"budget": {"env_steps": 10}}, "experiment.budget.env_steps: 10 steps end before the first"),
        (["--dry-run"], {"budgets": {"point_u_maze": 10}}, "budgets.point_u_maze: 10 steps end before the first"),
        (["--dry-run"], {"envs": ["a:B", "a.B"]}, "envs: two of them differ in ':' and '.' alone"),
        (["--dry-run"], {"objectives": ["sax"]}, "fathom: objectives: unknown objective 'sax'; did you mean 'sac'?"),
        (
            ["--dry-run"],
            {"objectives": {"chunks": {"objective": "sax"}}},
            "fathom: objectives.chunks.objective: unknown objective 'sax'; did you mean 'sac'?",
        ),
        (["--dry-run"], {"objectives": ["a.b:C"]}, "fathom: objectives: a.b:C: cannot be imported (No module named"),
        (
            ["--dry-run"],
            {"objectives": {"sac": {"chunk": 21}}},
            "fathom: objectives.sac.chunk: 21 actions are more than an episode's 20; use fewer",
        ),
    ],
    ids=[
        *(
            "parallel",
            "json",
            "same batches",
            "port",
            "disk",
            "env",
            "evaluation env",
            "evaluation key",
            "budget",
            "own budget",
            "folders",
        ),
        *("objective", "variant", "own objective", "chunk"),
    ],
)
def test_a_plan_that_cannot_hold_is_refused_in_one_line(
    options: list[str],
    changes: dict[str, Any],
    message: str,
    write_matrix: Callable[..., Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    sizes = {"steps_per_environment": 400, "prefill_steps": 40}
    changes = {key: {**sizes, **value} if key == "replay" else value for key, value in changes.items()}
    path, out = write_matrix(**changes), tmp_path / "out"
    assert run_command(["matrix", str(path), "--out", str(out), *options]) == 2
    printed = capsys.readouterr()
    assert message in printed.err
    assert (printed.out, len(printed.err.splitlines())) == ("", 1)
    assert not out.exists()


def test_files_of_an_unfinished_run_count_as_part_of_it(
    make_matrix: Callable[..., MatrixConfig], tmp_path: Path
) -> None:
    free_gb, name = shutil.disk_usage(tmp_path).free / GB, "point_u_maze-c4-s0"
    estimate = estimate_matrix(make_matrix(seeds=[0], record=True))
    check_disk(estimate, [name], tmp_path, reserve_gb=free_gb / 2)
    for row in estimate["rows"]:
        row["stream_bytes"] = 2 * free_gb * GB
    with pytest.raises(ConfigError, match=f"^--out: {tmp_path} has .* free, all runs together keep about"):
        check_disk(estimate, [name], tmp_path / "new" / "out", reserve_gb=0)
    check_disk(estimate, [], tmp_path, reserve_gb=2 * free_gb)
    (tmp_path / name).mkdir()
    with open(tmp_path / name / "part", "wb") as part:
        part.truncate(int(1.5 * free_gb * GB))  # a hole takes no room
    check_disk(estimate, [name], tmp_path, reserve_gb=0)


def test_bytes_are_readable() -> None:
    assert [readable_bytes(count) for count in (0, 999, 14_400, 999_900, 115.2e9, 5.1e15)] == [
        "0 B",
        "999 B",
        "14.4 kB",
        "1 MB",
        "115 GB",
        "5,100 TB",
    ]
