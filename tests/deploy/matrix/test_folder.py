"""Folder of a matrix: runs that are done, depths that are added, and changes that are refused."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from deploy.matrix.expand import MatrixConfig, expand, write_matrix
from deploy.matrix.folder import check_out, is_done, runs_in
from deploy.run.provenance import write_config
from shared.config import Experiment
from shared.errors import ConfigError
from shared.files import write_json

MakeMatrix = Callable[..., MatrixConfig]


def finish(run_dir: Path, experiment: Experiment, state: str = "done") -> None:
    """Writes the files of a finished run."""
    run_dir.mkdir(parents=True)
    write_config(run_dir, experiment)
    write_json(run_dir / "status.json", {"state": state})


def fill(out: Path, matrix: MatrixConfig) -> None:
    """Finishes all runs of `matrix`, with their streams."""
    for run in runs_in(matrix, out):
        if not (out / run.name).exists():
            finish(out / run.name, run.experiment)
            (out / run.name / "stream").mkdir()
            (out / run.name / "stream" / "manifest.json").touch()
    write_matrix(matrix, out / "matrix.yaml")


def names(matrix: MatrixConfig, out: Path) -> list[str]:
    return [run.name.removeprefix("point_u_maze-") for run in runs_in(matrix, out)]


def test_added_depths_are_runs_on_the_streams_of_finished_runs(make_matrix: MakeMatrix, tmp_path: Path) -> None:
    few, more = make_matrix(learner_depths=[4], record=True), make_matrix(learner_depths=[8, 4, 12], record=True)
    assert runs_in(more, tmp_path) == expand(more)
    done, not_done = expand(few)
    finish(tmp_path / done.name, done.experiment)
    finish(tmp_path / not_done.name, not_done.experiment, state="failed")

    kept, d8, d12, whole = runs_in(more, tmp_path)
    assert kept == done
    assert whole == expand(more)[1]  # not done, so it trains all depths
    assert [d8.name, d12.name] == ["point_u_maze-c4-s0-d8", "point_u_maze-c4-s0-d12"]
    assert (d8.learner_depths, d12.learner_depths) == ((8,), (12,))
    assert d8.fed
    assert d12.fed
    # Everything else equals a run that had these learners from the start.
    wanted = expand(more)[0].experiment
    stream = str(tmp_path / done.name / "stream")
    for run, name in ((d8, "d8"), (d12, "d12")):
        changes = {"record": False, "stream": stream, "learners": {name: wanted.learners[name]}}
        assert run.experiment == wanted.model_copy(update=changes)
        assert run.collector_depth == done.collector_depth


def test_depths_are_added_one_after_the_other(make_matrix: MakeMatrix, tmp_path: Path) -> None:
    fill(tmp_path, make_matrix(learner_depths=[8], record=True))
    fill(tmp_path, make_matrix(learner_depths=[8, 16], record=True))
    grown = make_matrix(learner_depths=[4, 8, 16], seeds=[0, 1, 2], record=True)
    assert names(grown, tmp_path) == ["c4-s0", "c4-s0-d4", "c4-s0-d16", "c4-s1", "c4-s1-d4", "c4-s1-d16", "c4-s2"]
    done = [is_done(tmp_path / run.name, run) for run in runs_in(grown, tmp_path)]
    assert done == [True, False, True, True, False, True, False]


def test_learners_can_be_added_to_ordinary_training(make_matrix: MakeMatrix, tmp_path: Path) -> None:
    grown = make_matrix(seeds=[0], record=True)
    fill(tmp_path, grown.model_copy(update={"learner_depths": ()}))
    assert names(grown, tmp_path) == ["c4-s0", "c4-s0-d4", "c4-s0-d8"]
    assert is_done(tmp_path / "point_u_maze-c4-s0", runs_in(grown, tmp_path)[0])


def test_a_run_of_another_experiment_is_no_part_of_the_matrix(make_matrix: MakeMatrix, tmp_path: Path) -> None:
    fill(tmp_path, make_matrix(learner_depths=[4], record=True, collector={"width": 16}))
    assert names(make_matrix(record=True), tmp_path) == ["c4-s0", "c4-s1"]


def test_the_folder_can_be_moved(make_matrix: MakeMatrix, tmp_path: Path) -> None:
    before, after = tmp_path / "before", tmp_path / "after"
    grown = make_matrix(record=True)
    fill(before, make_matrix(learner_depths=[4], record=True))
    fill(before, grown)
    before.rename(after)
    assert [is_done(after / run.name, run) for run in runs_in(grown, after)] == 4 * [True]
    first, added = runs_in(grown, after)[:2]
    assert added.experiment.stream == str(after / first.name / "stream")
    other = added._replace(experiment=added.experiment.model_copy(update={"stream": "/runs/another/stream"}))
    assert not is_done(after / added.name, other)


def test_only_axes_may_grow(make_matrix: MakeMatrix, tmp_path: Path) -> None:
    fill(tmp_path, make_matrix(record=True))
    grown = {"envs": ["ant", "point_u_maze"], "collector_depths": [8, 4], "seeds": [3, 0, 1]}
    check_out(tmp_path, make_matrix(record=True, learner_depths=[4, 16, 8], **grown))
    refused: list[tuple[dict[str, Any], str]] = [
        ({"learner_depths": [4, 16]}, "holds a matrix that also has learner_depths 8; name another folder"),
        ({"seeds": [1]}, "holds a matrix that also has seeds 0; name another folder"),
        ({"budget": {"env_steps": 800}}, "holds a matrix with another experiment; name another folder"),
        (
            {"evaluation_envs": {"point_u_maze": "point_u_maze"}},
            "holds a matrix with other evaluation_envs; name another folder",
        ),
    ]
    for changes, message in refused:
        with pytest.raises(ConfigError, match=message):
            check_out(tmp_path, make_matrix(record=True, **changes))
    with pytest.raises(ConfigError, match="is not empty and holds no matrix; name another folder"):
        check_out(tmp_path / "point_u_maze-c4-s0", make_matrix(record=True))


@pytest.mark.parametrize(
    ("recorded", "remedy"),
    [(False, "set experiment.record: true before the first run, or name another --out"), (True, "put stream/ back")],
)
def test_without_a_stream_no_depth_is_added(
    recorded: bool, remedy: str, make_matrix: MakeMatrix, tmp_path: Path
) -> None:
    fill(tmp_path, make_matrix(record=recorded))
    fill(tmp_path, make_matrix(record=recorded, learner_depths=[4, 8, 12]))
    for manifest in tmp_path.glob("*/stream/manifest.json"):
        manifest.unlink()
    check_out(tmp_path, make_matrix(record=recorded, learner_depths=[4, 8, 12]))  # all done already
    with pytest.raises(ConfigError) as error:
        check_out(tmp_path, make_matrix(record=recorded, learner_depths=[4, 8, 12, 32]))
    run_dir = tmp_path / "point_u_maze-c4-s0"
    assert str(error.value).startswith(f"learner_depths: 32 was added, but {run_dir} kept no stream; {remedy}")
    assert len(str(error.value).splitlines()) == 1
