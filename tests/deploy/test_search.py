"""The search: which runs its files stand for, and the tables that it keeps of them."""

import csv
import sys
from pathlib import Path

import pytest
import yaml

from deploy.experiments.search import run as search
from tests.deploy.cases import small
from tests.deploy.matrix.cases import MATRIX

pytestmark = pytest.mark.processes


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a matrix of one run and an experiment of one seed, which stand for the search's files."""
    folder = tmp_path / "files"
    folder.mkdir()
    experiment = small(budget={"env_steps": 400}, learners={"d8": {"depth": 8}})
    for name, values in (("first", MATRIX | {"seeds": [3]}), ("second", experiment)):
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(values))
    monkeypatch.setattr(search, "FOLDER", folder)
    monkeypatch.setattr(search, "SEEDS", (5,))
    return folder


def run(out: Path, results: Path, *options: str) -> int:
    sys.argv = ["run.py", "--out", str(out), "--results", str(results), *options]
    return search.main()


def test_a_search_goes_on_where_it_stopped(
    files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", sys.argv)
    out, results = tmp_path / "runs", tmp_path / "results"
    assert run(out, results, "--only", "first/") == 0
    assert capsys.readouterr().out == "point_u_maze-c4-s3: done\n"
    assert not (results / "second.csv").exists()
    (results / "first.csv").rename(results / "kept.csv")
    assert run(out, results) == 0  # the done run is not trained again
    with open(results / "first.csv") as first, open(results / "kept.csv") as kept:
        rows = list(csv.DictReader(first))
        assert rows == list(csv.DictReader(kept))
    assert {(row["learner"], row["seed"], row["width"], row["bodies"]) for row in rows} == {
        (learner, "3", "8", "1") for learner in ("active", "d4", "d8")
    }
    assert [row["run"] for row in search.read_table(results / "second.csv")][-1] == "second-s5"
    assert int(rows[-1]["gradient_steps"]) > 0
    capsys.readouterr()
    assert run(tmp_path / "elsewhere", results) == 0  # the tables alone say what is done
    assert (capsys.readouterr().out, (tmp_path / "elsewhere").exists()) == ("", False)


def test_a_run_that_fails_is_said(files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (files / "first.yaml").unlink()
    out = tmp_path / "runs"
    (out / "second" / "second-s5").mkdir(parents=True)
    (out / "second" / "second-s5" / "mine").touch()
    assert run(out, tmp_path / "results") == 1
    assert capsys.readouterr().out == f"second-s5: not done, see {out}/second/second-s5.log\n"
    assert search.read_table(tmp_path / "results" / "second.csv") == []
