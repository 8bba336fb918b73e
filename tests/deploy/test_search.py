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
    said, _, table, headings, _, *means = capsys.readouterr().out.splitlines()
    assert (said, table) == ("first/point_u_maze-c4-s3: done", str(results / "first.csv"))
    assert headings == "| task | bodies | width | seeds | gradient steps | active | d4 | d8 |"
    assert len(means) == 1
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
    assert run(tmp_path / "elsewhere", results) == 0  # the tables alone say what is done
    assert not (tmp_path / "elsewhere").exists()


def test_means_are_of_the_last_evaluations_that_all_learners_have_made() -> None:
    def curve(seed: str, learner: str, times: list[float]) -> list[dict[str, str]]:
        of_run = {"env": "ant", "bodies": "1", "width": "8", "seed": seed, "learner": learner}
        return [of_run | {"gradient_steps": str(10 * at), "time_at_goal": str(time)} for at, time in enumerate(times)]

    rows = [*curve("0", "d4", [0, 1, 2, 3, 4, 5, 99]), *curve("0", "d8", [0, 10, 20, 30, 40, 50])]
    rows += [*curve("3", "d4", [0, 3, 4, 5, 6, 7]), *curve("3", "d8", [0, 10, 20, 30, 40, 60])]
    assert search.means(rows)[2:] == ["| `ant` | 1 | 8 | 0, 3 | 50 | 4 | 31 |"]


def test_a_run_that_fails_is_said(files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (files / "first.yaml").unlink()
    out = tmp_path / "runs"
    (out / "second" / "second-s5").mkdir(parents=True)
    (out / "second" / "second-s5" / "mine").touch()
    assert run(out, tmp_path / "results") == 1
    assert capsys.readouterr().out.splitlines()[0] == f"second/second-s5: not done, see {out}/second/second-s5.log"
    assert search.read_table(tmp_path / "results" / "second.csv") == []
