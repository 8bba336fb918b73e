"""`fathom run` from its start to its last line, with names of folders that make trouble."""

import json
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import yaml

from deploy.cli.main import run_command
from deploy.cli.run import _new_run_dir
from tests.deploy.cases import PASSIVE, small

NAME = "[x] :boom: [/b] " + "long" * 50


@pytest.mark.slow
def test_a_run_ends_well_in_a_folder_with_any_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The folder is a symbolic link, its name holds markup and wildcards, and it holds an older run."""
    monkeypatch.chdir(tmp_path)
    Path("x.yaml").write_text(yaml.safe_dump(small(learners=PASSIVE)))
    run_dir, disk = tmp_path / NAME, tmp_path / "disk"
    (disk / "metrics").mkdir(parents=True)
    (disk / "config.yaml").touch()
    run_dir.parent.mkdir()  # the slash of the markup
    run_dir.symlink_to(disk)
    assert run_command(["run", "x", "--in-process", "--run-dir", NAME, "--overwrite"]) == 0
    printed = capsys.readouterr()
    assert printed.out.splitlines()[-1] == f"results: {run_dir}"
    assert printed.err == ""
    assert json.loads((disk / "status.json").read_text())["state"] == "done"
    assert run_command(["run", "x", "--in-process", "--run-dir", NAME, "--resume"]) == 0
    assert capsys.readouterr().out == f"{run_dir}: already done\n"
    assert run_command(["eval", NAME, "--learner", "passive", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["learner"] == "passive"


def test_runs_that_start_in_the_same_second_get_folders_of_their_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("time.strftime", lambda form: "20260101-120000")
    together = threading.Barrier(8)

    def start(_: int) -> Path:
        together.wait()
        return _new_run_dir("plain", 0o750)

    with ThreadPoolExecutor(8) as pool:
        folders = set(pool.map(start, range(8)))
    first = "plain-20260101-120000"
    assert folders == {Path("runs") / name for name in (first, *(f"{first}-{number}" for number in range(2, 9)))}
    assert {folder.stat().st_mode & 0o777 for folder in folders} == {0o750}


def test_a_folder_for_runs_that_cannot_be_made_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("runs").touch()
    assert run_command(["run", "plain", "--in-process"]) == 2
    assert capsys.readouterr().err == "fathom: runs/: cannot be written (File exists); name a folder by --run-dir\n"


def test_a_run_dir_that_cannot_be_made_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(["run", "plain", "--in-process", "--run-dir", "/proc/nowhere/x"]) == 2
    line = "fathom: --run-dir: /proc/nowhere/x cannot be created (No such file or directory); name another folder\n"
    assert capsys.readouterr().err == line
