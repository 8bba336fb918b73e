"""Folder of a matrix: runs that are done, depths that are added, and changes that are refused."""

from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest

from deploy.matrix.expand import MatrixConfig, expand, write_matrix
from deploy.matrix.folder import check_out, is_done, make_agenda, progress, runs_in
from deploy.run.provenance import write_config
from deploy.run.setup import make_envs_and_plan
from shared.config import Experiment
from shared.errors import ConfigError
from shared.files import write_json
from shared.stream.format import describe
from tests.deploy.matrix.cases import replace_in_config
from tests.shared.stream_cases import downgrade, record

MakeMatrix = Callable[..., MatrixConfig]
FIVE = ["contrastive", "survival", "cloning", "chrono", "sac"]


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
            record(out / run.name / "stream")
    write_matrix(matrix, out / "matrix.yaml")


def names(matrix: MatrixConfig, out: Path) -> list[str]:
    return [run.name.removeprefix("point_u_maze-") for run in runs_in(matrix, out)]


def test_added_depths_are_runs_on_the_streams_of_finished_runs(make_matrix: MakeMatrix, tmp_path: Path) -> None:
    few, more = make_matrix(learner_depths=[4], record=True), make_matrix(learner_depths=[8, 4, 12], record=True)
    assert runs_in(more, tmp_path) == expand(more)
    done, not_done = expand(few)
    finish(tmp_path / done.name, done.experiment)
    finish(tmp_path / not_done.name, not_done.experiment, state="failed")

    kept, d8, d12, resumed, *later = runs_in(more, tmp_path)
    assert (kept, resumed) == (done, not_done)
    assert [run.name for run in later] == ["point_u_maze-c4-s1-d8", "point_u_maze-c4-s1-d12"]
    assert {run.fed_by for run in later} == {resumed.name}
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


def test_an_unfinished_run_without_a_stream_does_not_grow(make_matrix: MakeMatrix, tmp_path: Path) -> None:
    few, more = make_matrix(learner_depths=[4]), make_matrix(learner_depths=[4, 8])
    unfinished, _ = expand(few)
    finish(tmp_path / unfinished.name, unfinished.experiment, state="failed")
    assert runs_in(more, tmp_path) == expand(more)
    agenda = make_agenda(more, tmp_path, overwrite=False)
    assert list(agenda.waiting) == ["point_u_maze-c4-s1"]
    changed = "learners.d8 was absent and is {depth: 8, width: 8, seed: 1} now"
    assert agenda.kept == {
        unfinished.name: f"its folder holds an unfinished run with another configuration ({changed}); "
        "set it back, name another --out, or add --overwrite"
    }


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


def test_objectives_are_added_as_depths_are(make_matrix: MakeMatrix, tmp_path: Path) -> None:
    few = make_matrix(objectives=["contrastive"], seeds=[0], record=True)
    fill(tmp_path, few)
    grown = make_matrix(objectives={"cloning": {"discount": 0.95}, "contrastive": {}}, seeds=[0, 1], record=True)
    check_out(tmp_path, grown, overwrite=False)
    assert names(grown, tmp_path) == ["c4-s0", "c4-s0-cloning-d4", "c4-s0-cloning-d8", "c4-s1"]
    added = runs_in(grown, tmp_path)[1]
    assert (added.learner_depths, added.fed_by) == ((4,), "point_u_maze-c4-s0")
    assert added.experiment.algorithm_of("cloning-d4") == expand(grown)[0].experiment.algorithm_of("cloning-d4")
    fill(tmp_path, grown)
    again = make_agenda(make_matrix(objectives=[*FIVE], seeds=[0], record=True), tmp_path, overwrite=False)
    assert again.done == ["point_u_maze-c4-s0"]
    assert list(again.kept) == ["point_u_maze-c4-s0-cloning-d4", "point_u_maze-c4-s0-cloning-d8"]  # discount was 0.95
    deeper = make_matrix(objectives=grown.objectives, learner_depths=[4, 8, 12], seeds=[0], record=True)
    assert names(deeper, tmp_path)[1:] == [
        "c4-s0-cloning-d4",
        "c4-s0-cloning-d8",
        "c4-s0-cloning-d12",
        "c4-s0-contrastive-d12",
    ]


def test_objectives_are_added_to_a_matrix_without_the_axis(make_matrix: MakeMatrix, tmp_path: Path) -> None:
    fill(tmp_path, make_matrix(learner_depths=[4], seeds=[0], record=True))
    fill(tmp_path, make_matrix(learner_depths=[4, 8], seeds=[0], record=True))
    grown = make_matrix(objectives=["contrastive", "cloning"], seeds=[0], record=True)
    check_out(tmp_path, grown, overwrite=False)
    agenda = make_agenda(grown, tmp_path, overwrite=False)
    assert agenda.done == ["point_u_maze-c4-s0", "point_u_maze-c4-s0-d8"]  # the learners keep their names
    assert list(agenda.waiting) == ["point_u_maze-c4-s0-cloning-d4", "point_u_maze-c4-s0-cloning-d8"]
    assert (agenda.kept, agenda.replaced) == ({}, {})
    twins = make_matrix(objectives={"contrastive": {}, "twin": {"objective": "contrastive"}}, seeds=[0], record=True)
    added = make_agenda(twins, tmp_path, overwrite=False).waiting
    assert list(added) == ["point_u_maze-c4-s0-twin-d4", "point_u_maze-c4-s0-twin-d8"]


def test_objectives_neither_vanish_nor_change(make_matrix: MakeMatrix, tmp_path: Path) -> None:
    fill(tmp_path, make_matrix(objectives={"contrastive": {}, "sac": {"discount": 0.95}}, record=True))
    gone = "holds a matrix that also has objectives"
    for objectives, message in (
        ({"contrastive": {}}, f"{gone} sac; name another folder"),
        ({"sac": {"discount": 0.95}}, f"{gone} contrastive; name another folder"),
        (
            {"contrastive": {}, "sac": {}},
            r"holds a matrix with other keys of objectives.sac \({'discount': 0.95}\); set them back, name another",
        ),
    ):
        with pytest.raises(ConfigError, match=message):
            check_out(tmp_path, make_matrix(objectives=objectives, record=True), overwrite=False)
    with pytest.raises(ConfigError, match=f"{gone} sac; name"):
        check_out(tmp_path, make_matrix(record=True), overwrite=False)
    check_out(tmp_path, make_matrix(objectives=["sac", "contrastive"], record=True), overwrite=True)


def test_changed_sections_of_an_algorithm_are_named(make_matrix: MakeMatrix, tmp_path: Path) -> None:
    sizes = {"learner_depths": [4], "seeds": [0], "record": True}
    fill(tmp_path, make_matrix(objectives={"survival": {"survival": {"goals": {"random": 0.5}}}}, **sizes))
    (kept,) = make_agenda(make_matrix(objectives=["survival"], **sizes), tmp_path, overwrite=False).kept.values()
    assert "(learners.survival-d4.algorithm.survival was {goals: {random: 0.5}} and is absent now)" in kept


@pytest.mark.parametrize(
    ("objectives", "message"),
    [
        (["contrastive", "sac"], "objectives: sac needs to know how episodes end, and the stream"),
        (
            {"contrastive": {}, "cloning": {"final_goals": True}},
            "objectives.cloning.final_goals: True needs to know how episodes end, and the stream",
        ),
        (["contrastive", "cloning"], ""),
    ],
)
def test_an_old_recording_refuses_objectives_that_need_how_episodes_end(
    objectives: Any, message: str, make_matrix: MakeMatrix, tmp_path: Path
) -> None:
    before = make_matrix(objectives=["contrastive"], seeds=[0], record=True)
    fill(tmp_path, before)
    (run,) = expand(before)
    stream = tmp_path / run.name / "stream"
    envs, plan = make_envs_and_plan(run.experiment)
    downgrade(record(tmp_path / "new", describe(run.experiment, plan, envs.training.spec)), stream)
    with pytest.raises(ConfigError) if message else nullcontext() as raised:
        check_out(tmp_path, make_matrix(objectives=objectives, seeds=[0], record=True), overwrite=False)
    if message:
        line = str(raised.value)
        assert line.startswith(f"{message} {stream} of an older version does not say it; record it again, or leave out")
        assert len(line.splitlines()) == 1


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


Damage = Callable[[Path], object]


def replace_key(old: str, new: str) -> Damage:
    """Returns a function that replaces `old` in a run's config.yaml."""
    return lambda run_dir: replace_in_config(run_dir, old, new)


def set_key(text: str) -> Damage:
    """Returns a function that adds `text` to the end of a run's config.yaml."""
    return lambda run_dir: (run_dir / "config.yaml").write_text((run_dir / "config.yaml").read_text() + text)


@pytest.mark.parametrize("finished", [True, False])
@pytest.mark.parametrize(
    ("change", "reason", "remedy"),
    [
        (replace_key("heartbeat_seconds: 30.0", "heartbeat_seconds: 20.0"), "", ""),
        (
            set_key("later_key: 1\n"),
            "whose config.yaml cannot be read (later_key: unknown key)",
            "use the version that",
        ),
        (set_key("open: {\n"), "whose config.yaml cannot be read (line ", "use the version that"),
        (
            replace_key("batch_size: 16", "batch_size: 8"),
            "with another configuration (algorithm.batch_size was 8 and is 16 now)",
            "set it back",
        ),
    ],
    ids=["harmless key", "key of another version", "damaged", "another result"],
)
def test_a_run_of_another_configuration_is_replaced_only_on_request(
    change: Damage, reason: str, remedy: str, finished: bool, make_matrix: MakeMatrix, tmp_path: Path
) -> None:
    matrix = make_matrix()
    first, second = expand(matrix)
    for run in (first, second):
        finish(tmp_path / run.name, run.experiment, "done" if finished else "interrupted")
    change(tmp_path / first.name)
    agenda, overwritten = (make_agenda(matrix, tmp_path, overwrite) for overwrite in (False, True))
    others = [first.name, second.name] if not reason else [second.name]
    assert (agenda.done, list(agenda.waiting)) == ((others, []) if finished else ([], others))
    assert (agenda.replaced, list(agenda.kept)) == ({}, [first.name] if reason else [])
    assert (overwritten.kept, list(overwritten.replaced)) == ({}, [first.name] if reason else [])
    if reason:
        which = "a finished run" if finished else "an unfinished run"
        assert agenda.kept[first.name].startswith(f"its folder holds {which} {reason}")
        assert f"; {remedy}" in agenda.kept[first.name]
        assert agenda.kept[first.name].endswith("name another --out, or add --overwrite")
        assert list(overwritten.waiting) == ([first.name] if finished else [first.name, second.name])


def test_files_that_are_no_run_are_never_replaced(make_matrix: MakeMatrix, tmp_path: Path) -> None:
    name = "point_u_maze-c4-s0"
    (tmp_path / name).mkdir()
    assert make_agenda(make_matrix(), tmp_path, overwrite=False).kept == {}
    (tmp_path / name / "thesis.tex").touch()
    for overwrite in (False, True):
        agenda = make_agenda(make_matrix(), tmp_path, overwrite)
        assert agenda.kept == {name: "its folder holds files, but no run; move them, or name another --out"}
        assert list(agenda.waiting) == ["point_u_maze-c4-s1"]


@pytest.mark.parametrize("status", ['{"state": "do', '{"state": "running"}', None], ids=["cut", "before", "missing"])
def test_a_run_with_a_summary_is_done(status: str | None, make_matrix: MakeMatrix, tmp_path: Path) -> None:
    run = expand(make_matrix())[0]
    finish(tmp_path / run.name, run.experiment)
    path = tmp_path / run.name / "status.json"
    path.unlink() if status is None else path.write_text(status)
    assert not is_done(tmp_path / run.name, run)
    write_json(tmp_path / run.name / "summary.json", {})
    assert is_done(tmp_path / run.name, run)


def test_keys_that_change_no_result_may_change_in_a_matrix(make_matrix: MakeMatrix, tmp_path: Path) -> None:
    fill(tmp_path, make_matrix())
    again = make_matrix(
        supervision={"heartbeat_seconds": 5},
        wandb={"project": "mazes"},
        snapshots={"count": 20},  # the default
        collector={"width": 8, "environments": 4, "unroll_length": 5, "learner_resources": {"cpus": 1}},
    )
    check_out(tmp_path, again, overwrite=False)
    agenda = make_agenda(again, tmp_path, overwrite=False)
    assert (len(agenda.done), agenda.waiting, agenda.kept) == (2, {}, {})


def test_an_unreadable_matrix_is_named(make_matrix: MakeMatrix, tmp_path: Path) -> None:
    fill(tmp_path, make_matrix())
    path = tmp_path / "matrix.yaml"
    path.write_text(path.read_text() + "later_key: 1\n")
    with pytest.raises(ConfigError, match=r"^--out: .*matrix.yaml: later_key: unknown key.*; name another folder, or"):
        check_out(tmp_path, make_matrix(), overwrite=False)
    check_out(tmp_path, make_matrix(), overwrite=True)
    assert len(make_agenda(make_matrix(), tmp_path, overwrite=True).done) == 2


def test_only_axes_may_grow(make_matrix: MakeMatrix, tmp_path: Path) -> None:
    fill(tmp_path, make_matrix(record=True))
    grown = {"envs": ["ant", "point_u_maze"], "collector_depths": [8, 4], "seeds": [3, 0, 1]}
    check_out(tmp_path, make_matrix(record=True, learner_depths=[4, 16, 8], **grown), overwrite=False)
    refused: list[tuple[dict[str, Any], str]] = [
        ({"learner_depths": [4, 16]}, "holds a matrix that also has learner_depths 8; name another folder"),
        ({"seeds": [1]}, "holds a matrix that also has seeds 0; name another folder"),
        (
            {"budget": {"env_steps": 800}},
            r"holds a matrix with another experiment \(budget.env_steps was 400 and is 800 now\); set it back, name",
        ),
        (
            {"evaluation_envs": {"point_u_maze": "point_u_maze"}},
            "holds a matrix with other evaluation_envs; name another folder",
        ),
        ({"budgets": {"point_u_maze": 800}}, "holds a matrix with other budgets; name another folder"),
    ]
    for changes, message in refused:
        with pytest.raises(ConfigError, match=message):
            check_out(tmp_path, make_matrix(record=True, **changes), overwrite=False)
    check_out(tmp_path, make_matrix(record=True, budget={"env_steps": 800}), overwrite=True)
    with pytest.raises(ConfigError, match="that also has seeds 0"):
        check_out(tmp_path, make_matrix(record=True, seeds=[1]), overwrite=True)
    with pytest.raises(ConfigError, match="is not empty and holds no matrix; name another folder"):
        check_out(tmp_path / "point_u_maze-c4-s0", make_matrix(record=True), overwrite=True)
    with pytest.raises(ConfigError, match=r"cannot be read .*; name another folder"):
        check_out(tmp_path / ("x" * 300), make_matrix(record=True), overwrite=False)


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
    check_out(tmp_path, make_matrix(record=recorded, learner_depths=[4, 8, 12]), overwrite=False)  # all done already
    with pytest.raises(ConfigError) as error:
        check_out(tmp_path, make_matrix(record=recorded, learner_depths=[4, 8, 12, 32]), overwrite=False)
    run_dir = tmp_path / "point_u_maze-c4-s0"
    assert str(error.value).startswith(f"learner_depths: 32 was added, but {run_dir} kept no stream; {remedy}")
    assert len(str(error.value).splitlines()) == 1


def test_a_run_without_a_readable_status_is_not_called_unstarted(tmp_path: Path) -> None:
    assert progress(tmp_path) == "not started"
    (tmp_path / "config.yaml").touch()
    (tmp_path / "status.json").write_text('{"state": "do')
    assert progress(tmp_path) == "begun, but its status.json cannot be read"


def test_a_run_with_a_summary_is_done_while_its_process_still_ends(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").touch()
    (tmp_path / "status.json").write_text('{"state": "running"}')
    (tmp_path / "summary.json").write_text("{}")
    assert progress(tmp_path) == "done"
