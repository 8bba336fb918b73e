"""Shipped experiments by name: from any folder, beside the user's own files, and as a list."""

import os
from pathlib import Path

import pytest

from deploy.cli.experiments import FOLDER, find_file, shipped
from deploy.cli.main import run_command
from deploy.cli.output import make_console
from shared.errors import ConfigError

EXPERIMENTS = [
    *(
        "ant",
        "ant_u_maze",
        "chrono",
        "cloning",
        "humanoid_u_maze_1024",
        "humanoid_u_maze_1024_ref",
        "plain",
        "point_hardest_maze",
        "point_u_maze",
    ),
    *("sac", "survival"),
]
MATRICES = [
    *("collector_learner_ant_big_maze", "collector_learner_ant_big_maze_ref"),
    *("collector_learner_arm_push_easy", "collector_learner_arm_push_easy_ref"),
    *("collector_learner_humanoid", "collector_learner_humanoid_ref"),
    *("depth_by_objective", "depth_decoupled"),
    *("depth_sweep", "depth_sweep_humanoids_ref", "depth_sweep_ref"),
    "objectives_matrix",
    "point_matrix",
]


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_shipped_files_are_found_by_name() -> None:
    assert find_file(Path("point_u_maze"), "experiment") == FOLDER / "point_u_maze.yaml"
    assert find_file(Path("point_matrix"), "matrix") == FOLDER / "point_matrix.yaml"
    Path("point_u_maze").mkdir()  # a folder is no experiment
    assert find_file(Path("point_u_maze"), "experiment") == FOLDER / "point_u_maze.yaml"


@pytest.mark.parametrize("own", ["plain", "plain.yaml"])
def test_an_own_file_of_the_same_name_wins_and_this_is_said(own: str, capsys: pytest.CaptureFixture[str]) -> None:
    Path(own).write_text("env: ant\n")
    assert find_file(Path("plain"), "experiment") == Path(own)
    line = f"fathom: plain: takes the file {own}, not the shipped experiment of that name\n"
    assert capsys.readouterr() == ("", line)
    assert find_file(Path(os.curdir).absolute() / own, "experiment").name == own
    assert capsys.readouterr() == ("", "")


def test_own_files_of_other_names_may_be_pipes_and_need_no_suffix(capsys: pytest.CaptureFixture[str]) -> None:
    Path("mine.yaml").write_text("env: ant\n")
    os.mkfifo("pipe")
    assert find_file(Path("mine"), "experiment") == Path("mine.yaml")
    assert find_file(Path("pipe"), "experiment") == Path("pipe")
    assert capsys.readouterr() == ("", "")


UNKNOWN = ["point_u_mase", "point_u_maze.yml", "deploy/experiments/plain.yaml", ".", "[/b]", "a" * 300]


@pytest.mark.parametrize("name", UNKNOWN)
def test_an_unknown_name_lists_the_known_ones(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    for command, kind, known in (("run", "experiment", EXPERIMENTS), ("matrix", "matrix", MATRICES)):
        assert run_command([command, name]) == 2
        line = f"fathom: {name}: no such file; name the {kind}'s YAML file, or a shipped one: {', '.join(known)}\n"
        assert capsys.readouterr() == ("", line)


def test_the_other_command_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ConfigError, match="plain: is a shipped experiment; use: fathom run plain"):
        find_file(Path("plain"), "matrix")
    assert run_command(["run", "point_matrix"]) == 2
    assert "point_matrix: is a shipped matrix; use: fathom matrix point_matrix" in capsys.readouterr().err


def test_commands_take_names(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(["run", "point_u_maze", "--learners.deep.depth", "6"]) == 2
    assert "learners.deep.depth: depth 6" in capsys.readouterr().err
    assert run_command(["matrix", "point_matrix", "--dry-run"]) == 0
    assert "4 runs, 8 cells" in capsys.readouterr().out
    assert run_command(["bench", "end-to-end", "nothing"]) == 2
    assert "nothing: no such file; name the experiment's YAML file" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["point_u_maze", str(FOLDER / "point_u_maze.yaml")])
def test_help_of_a_named_experiment_lists_its_keys(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        run_command(["run", name, "--help"])
    assert "--learners.deep.depth" in capsys.readouterr().out


def test_the_list_has_a_line_of_80_columns_for_each_file(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(["experiments"]) == 0
    lines = [line.rstrip() for line in capsys.readouterr().out.splitlines()]
    assert make_console().width > 80
    assert max(map(len, lines)) <= 80
    begin = lines.index("fathom matrix")
    assert lines[0] == "fathom run"
    assert [line.split()[0] for line in lines[1:begin]] == sorted(EXPERIMENTS)
    assert [line.split()[0] for line in lines[begin + 1 :]] == MATRICES
    found = {line.split()[0]: line for line in lines}
    for name, one in shipped().items():
        assert one.description == one.path.read_text().splitlines()[0].removeprefix("# ")
        assert found[name].endswith(f"  {one.description}")


def test_files_that_were_put_beside_the_shipped_ones_need_no_comment_and_break_no_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Users of the container image add their experiments to this folder."""
    monkeypatch.setattr("deploy.cli.experiments.FOLDER", tmp_path)
    texts = {"broken": b"{", "empty": b"", "mine": b"# Mine\nenvs: [a]\n", "other": b"env: a\n", "binary": b"\xff\n"}
    for name, text in texts.items():
        (tmp_path / f"{name}.yaml").write_bytes(text)
    found = {name: (one.kind, one.description) for name, one in shipped().items()}
    assert found == dict.fromkeys(texts, ("experiment", "")) | {"mine": ("matrix", "Mine")}
