"""Resuming a killed run: learners equal to the bit, metrics without gap or repeat, and damaged snapshots."""

import gc
import json
import random
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from deploy.cli.main import run_command
from deploy.mode import Mode
from deploy.recovery import snapshots
from deploy.recovery.resume import changed_results, check_same, find, restore
from deploy.run.in_process import InProcessRun
from deploy.run.record import RunRecord
from deploy.run.summary import summarise
from learner.learner import _jitted_update, _jitted_updates
from shared.algorithm_config import OWN_CONSTANTS
from shared.config import ACTIVE, Experiment, LearnerConfig
from shared.config_file import load_experiment
from shared.envs.registry import make_envs
from shared.errors import ConfigError
from shared.metrics import Row, read_metrics
from shared.plan import make_plan
from shared.roles import EVALUATOR, REPLAY, learner_roles, source_roles

pytestmark = pytest.mark.slow
SIZES = {"depth": 4, "width": 8}
EXPERIMENT = Experiment.model_validate(
    {
        "env": "point_u_maze",
        "env_options": {"episode_length": 20},
        "collector": SIZES | {"environments": 4, "unroll_length": 5, "actors": 2},
        "learners": {"passive": SIZES},
        "algorithm": {"batch_size": 16, "windows_per_update": 8, "minibatches_per_update": 4},
        "replay": {"steps_per_environment": 60, "prefill_steps": 40, "samples_per_insert": 2.0},
        "evaluation": {"episodes": 8, "count": 3},
        "snapshots": {"count": 5},
        "budget": {"env_steps": 960},
    }
)
ENVS = make_envs(EXPERIMENT)
NAMES = (ACTIVE, "passive")
ROLES = ("collector-0", "collector-1", "learner-active", "learner-passive", "evaluator", "replay")
TIMES = ("time", "seconds", "update_seconds")


class Killed(Exception):
    """Death of the process of a run: data that the process had not written are lost."""


def run_or_resume(
    directory: Path,
    kill_after: int | None = None,
    mode: Mode = Mode.IN_PROCESS,
    fast_disk: bool = False,
    kill_at_snapshot: bool = False,
    experiment: Experiment = EXPERIMENT,
) -> InProcessRun:
    """Starts or resumes the run in `directory`. Raises Killed at call `kill_after` of its progress function.

    `fast_disk`: each call waits for the background writer; without it, a snapshot may take half a run.
    `kill_at_snapshot`: raises Killed at the first call after a complete snapshot.
    """
    gc.collect()  # releases the files of a killed run
    snapshot = None
    if (directory / "config.yaml").exists():
        snapshot = find(directory, mode, say=lambda text: None)
        if snapshot is None:
            shutil.rmtree(directory)
        else:
            restore(directory, experiment, snapshot)
    directory.mkdir(parents=True, exist_ok=True)
    record = RunRecord(directory, experiment, make_plan(experiment, ENVS.training.spec), snapshot)
    calls = 0

    def progress(states: object) -> None:
        nonlocal calls
        calls += 1
        record.status("running")
        if fast_disk:
            run._background.wait()
        if calls == kill_after or (kill_at_snapshot and complete_snapshots(directory)):
            raise Killed

    run = InProcessRun(record, ENVS, mode=mode)
    run.run(progress)
    summarise(record, ENVS.training.spec)
    record.remove_backups()
    record.close()
    return run


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, InProcessRun]:
    """A run that was not interrupted."""
    directory = tmp_path_factory.mktemp("uninterrupted") / "run"
    return directory, run_or_resume(directory)


def plain(rows: list[Row]) -> list[dict[str, Any]]:
    return [{k: v for k, v in row.items() if k not in TIMES and not k.startswith("wait/")} for row in rows]


def roles_of(run: InProcessRun) -> list[str]:
    experiment = run.record.experiment
    return [*map(str, (*source_roles(experiment), *learner_roles(experiment), EVALUATOR, REPLAY))]


def assert_same(directory: Path, run: InProcessRun, uninterrupted: tuple[Path, InProcessRun]) -> None:
    for name, learner in uninterrupted[1].learners.items():
        ours, theirs = run.learners[name].state, learner.state
        assert jax.random.key_data(ours.key).tolist() == jax.random.key_data(theirs.key).tolist()
        key = np.zeros(())
        jax.tree.map(np.testing.assert_array_equal, ours._replace(key=key), theirs._replace(key=key))
    for role in roles_of(uninterrupted[1]):
        assert plain(read_metrics(directory, role)) == plain(read_metrics(uninterrupted[0], role)) != [], role


def assert_compiled_once(run: InProcessRun, update: Callable[..., Any]) -> None:
    """Asserts that all incarnations so far shared one compilation: restored arrays must be like computed ones."""
    assert [source._loop._collect._cache_size() for source in run._sources] == [1, 1]
    assert [update(learner.kind)._cache_size() for learner in run.learners.values()] == [1, 1]


@pytest.mark.timeout(600)
def test_a_run_killed_at_random_points_ends_with_the_same_result(
    tmp_path: Path, uninterrupted: tuple[Path, InProcessRun]
) -> None:
    """Kills and resumes a run 20 times. A run that reaches its end is compared, and a new one starts."""
    rng, num_kills, resumed_from = random.Random(0), 0, set()
    directory = tmp_path / "run"
    while num_kills < 20:
        resumed_from.update(complete_snapshots(directory)[-1:])
        try:
            calls = rng.randint(1, 20 if complete_snapshots(directory) else 60)  # the first snapshot comes half-way
            run = run_or_resume(directory, kill_after=calls, fast_disk=rng.random() < 0.7)
        except Killed:
            num_kills += 1
        else:
            assert_same(directory, run, uninterrupted)
            shutil.rmtree(directory)
    last = run_or_resume(directory)
    assert len(resumed_from) >= 4, resumed_from
    assert_same(directory, last, uninterrupted)
    assert_compiled_once(last, _jitted_update)


@pytest.mark.timeout(600)
def test_every_objective_resumes_to_the_bit(tmp_path: Path) -> None:
    """All learners decide two actions at once, so that kills fall into chunks, too."""
    sizes = {"depth": 1, "width": 8}  # compiles soonest
    learners = {
        name: sizes | {"algorithm": {"objective": name, "chunk": 2}} for name in OWN_CONSTANTS if name != "contrastive"
    }
    changes = {"learners": learners, "algorithm": EXPERIMENT.algorithm.model_dump() | {"chunk": 2}}
    changes["collector"] = EXPERIMENT.collector.model_dump() | sizes
    changes |= {"evaluation": {"episodes": 8, "count": 1}, "snapshots": {"count": 2}, "budget": {"env_steps": 480}}
    experiment = Experiment.model_validate(EXPERIMENT.model_dump() | changes)
    whole, directory = tmp_path / "whole", tmp_path / "killed"
    uninterrupted = whole, run_or_resume(whole, experiment=experiment)
    with pytest.raises(Killed):
        run_or_resume(directory, fast_disk=True, kill_at_snapshot=True, experiment=experiment)
    assert_same(directory, run_or_resume(directory, experiment=experiment), uninterrupted)


@pytest.fixture(scope="module")
def killed_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Directory of a run that was killed when it had several snapshots."""
    directory = tmp_path_factory.mktemp("killed") / "run"
    with pytest.raises(Killed):
        run_or_resume(directory, kill_after=50, fast_disk=True)
    assert len(complete_snapshots(directory)) >= EXPERIMENT.snapshots.keep
    return directory


def complete_snapshots(directory: Path) -> list[int]:
    """Returns the updates of the complete snapshots in `directory`, in ascending order."""
    return sorted(int(path.parent.name) for path in (directory / "snapshots").glob("*/snapshot.json"))


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def _flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.write_bytes(data)


@pytest.mark.parametrize("damage", [_cut, _flip, Path.unlink])
@pytest.mark.parametrize(
    "what",
    [
        "snapshot.json",
        "learner-active/part.json",
        "learner-active/state/**/d/*",
        "collector-1/position.json",
        "collector-1/stream/*.arrow",
        "driver/generators.json",
    ],
)
def test_the_snapshot_before_a_damaged_one_is_used(
    what: str, damage: Callable[[Path], None], killed_run: Path, tmp_path: Path
) -> None:
    directory = tmp_path / "run"
    shutil.copytree(killed_run, directory)
    *_, before, newest = complete_snapshots(directory)
    path = sorted((directory / "snapshots" / str(newest)).glob(what))[0]
    damage(path)
    messages: list[str] = []
    found = find(directory, Mode.IN_PROCESS, say=messages.append)
    assert found is not None
    assert int(found.folder.name) == before
    assert messages == [] if (what, damage) == ("snapshot.json", Path.unlink) else len(messages) == 1
    assert all(str(newest) in line and "\n" not in line for line in messages)


def test_restoring_a_snapshot_drops_later_metrics(killed_run: Path, tmp_path: Path) -> None:
    directory = tmp_path / "run"
    shutil.copytree(killed_run, directory)
    _cut(directory / "snapshots" / str(complete_snapshots(directory)[-1]) / "snapshot.json")
    before = {role: read_metrics(directory, role) for role in ROLES}
    snapshot = find(directory, Mode.IN_PROCESS, say=lambda text: None)
    assert snapshot is not None
    restore(directory, EXPERIMENT, snapshot)
    info = snapshot.info
    for role in ROLES:
        rows = read_metrics(directory, role)
        assert 0 < len(rows) < len(before[role]), role
        assert rows == before[role][: len(rows)]
        newest = rows[-1]["index"]
        newest_by_role = {"replay": info.env_steps, "evaluator": info.updates[ACTIVE]}
        newest_by_role |= info.numbers | {f"learner-{name}": updates for name, updates in info.updates.items()}
        assert newest <= newest_by_role[role] if role == "evaluator" else newest == newest_by_role[role], role


def test_a_run_whose_snapshots_are_all_damaged_does_not_start_over(killed_run: Path, tmp_path: Path) -> None:
    directory = tmp_path / "run"
    shutil.copytree(killed_run, directory)
    for path in (directory / "snapshots").glob("*/learner-passive/part.json"):
        _flip(path)
    with pytest.raises(ConfigError, match=r"no snapshot is whole .* begin again with --overwrite"):
        find(directory, Mode.IN_PROCESS, say=lambda line: None)


def test_a_changed_experiment_is_refused_with_its_changed_keys(killed_run: Path) -> None:
    held = load_experiment(killed_run / "config.yaml")
    changed = EXPERIMENT.model_dump()
    changed["algorithm"]["batch_size"] = 8
    changed["replay"]["port"] = 4444
    changed["learners"]["passive"]["resources"]["cpus"] = 1
    with pytest.raises(ConfigError) as caught:
        check_same(held, Experiment.model_validate(changed), anyway=False)
    keys = [line.split()[1] for line in str(caught.value).splitlines()]
    assert sorted(keys) == ["algorithm.batch_size", "learners.passive.resources.cpus", "replay.port"]
    with pytest.raises(ConfigError, match=r"^--resume: algorithm.batch_size was 16 and is 8 now; [^\n]*$"):
        check_same(held, Experiment.model_validate(changed), anyway=True)
    changed["algorithm"]["batch_size"] = 16
    check_same(held, Experiment.model_validate(changed), anyway=True)


def test_a_learner_that_comes_or_goes_is_one_short_key(killed_run: Path) -> None:
    held = load_experiment(killed_run / "config.yaml")
    learners = {"default": {}, "deep": {"depth": 8, "layer_norm": False, "resources": {"cpus": 2}}}
    asked = Experiment.model_validate(EXPERIMENT.model_dump() | {"learners": learners})
    with pytest.raises(ConfigError) as caught:
        check_same(held, asked, anyway=True)
    remedy = "set it back, or name another --run-dir"
    assert str(caught.value).splitlines() == [
        f"--resume: learners.passive was {{depth: 4, width: 8}} and is absent now; {remedy}",
        f"--resume: learners.default was absent and is {{depth: 4}} now; {remedy}",
        "--resume: learners.deep was absent and is "
        f"{{depth: 8, layer_norm: false, resources: {{cpus: 2.0}}}} now; {remedy}",
    ]


def test_a_learner_called_resources_is_a_learner() -> None:
    one, other = (
        EXPERIMENT.model_copy(update={"learners": {"resources": LearnerConfig(depth=depth)}}) for depth in (4, 8)
    )
    assert [change.key for change in changed_results(one, other)] == ["learners.resources.depth"]
    more = LearnerConfig.model_validate({"depth": 4, "resources": {"cpus": 1}})
    assert changed_results(one, one.model_copy(update={"learners": {"resources": more}})) == []


def test_a_stream_that_was_moved_with_its_run_is_the_same_stream() -> None:
    here, moved, another = (
        EXPERIMENT.model_copy(update={"stream": stream}) for stream in ("/a/run/stream", "/b/run/stream", "/b/c/stream")
    )
    assert changed_results(here, moved) == []
    for one, other in ((here, another), (here, EXPERIMENT), (EXPERIMENT, here)):
        assert [change.key for change in changed_results(one, other)] == ["stream"]


def test_a_trained_run_does_not_begin_again(killed_run: Path, tmp_path: Path) -> None:
    """The run died after it had removed its snapshots, and before it wrote its summary."""
    directory = tmp_path / "run"
    shutil.copytree(killed_run, directory)
    shutil.rmtree(directory / "snapshots")
    for name in NAMES:
        assert find(directory, Mode.IN_PROCESS, say=lambda line: None) is None
        (directory / "checkpoints" / name).mkdir(parents=True)
    with pytest.raises(ConfigError, match=r"trained to its end, but wrote no summary.json; it is kept [^\n]*$"):
        find(directory, Mode.IN_PROCESS, say=lambda line: None)


def test_a_run_resumes_only_in_its_own_mode(killed_run: Path, tmp_path: Path) -> None:
    other, directory = tmp_path / "other", tmp_path / "run"
    expected = run_or_resume(other, mode=Mode.TOGETHER)
    with pytest.raises(Killed):
        run_or_resume(directory, kill_after=50, mode=Mode.TOGETHER, fast_disk=True)
    for run_dir, mode, remedy in (
        (directory, Mode.IN_PROCESS, "started with --in-process --together; resume it so"),
        (killed_run, Mode.TOGETHER, "started with --in-process without --together; resume it so"),
        (killed_run, Mode.DISTRIBUTED, "started with --in-process without --together; resume it so"),
    ):
        with pytest.raises(ConfigError, match=re.escape(remedy)):
            find(run_dir, mode, say=lambda line: None)
    last = run_or_resume(directory, mode=Mode.TOGETHER)
    assert_same(directory, last, (other, expected))
    assert_compiled_once(last, _jitted_updates)


@pytest.mark.parametrize(
    ("status", "options"),
    [
        ('{"state": "done"}', ["--resume"]),
        ('{"state": "done"}', ["--resume-anyway", "--supervision.heartbeat-seconds", "5"]),
        ('{"state": "do', ["--resume"]),
        ('{"state": "running"}', ["--resume"]),
    ],
    ids=["done", "a harmless key changed", "damaged status", "died before the last status"],
)
def test_resuming_a_completed_run_changes_nothing(
    status: str,
    options: list[str],
    uninterrupted: tuple[Path, InProcessRun],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    directory = tmp_path / "run"
    shutil.copytree(uninterrupted[0], directory)
    (directory / "status.json").write_text(status)
    (directory / "summary.json").write_text("{}")
    before = {path: path.read_bytes() for path in directory.rglob("*") if path.is_file()}
    command = ["run", str(directory / "config.yaml"), "--run-dir", str(directory), "--in-process"]
    assert run_command([*command, *options]) == 0
    printed = capsys.readouterr()
    assert ("".join(printed.out.split()), printed.err) == (f"{directory}:alreadydone", "")
    assert {path: path.read_bytes() for path in directory.rglob("*") if path.is_file()} == before


def test_a_snapshot_of_an_older_format_is_refused(killed_run: Path, tmp_path: Path) -> None:
    directory = tmp_path / "run"
    shutil.copytree(killed_run, directory)
    for path in (directory / "snapshots").glob("*/snapshot.json"):
        older = json.loads(path.read_text())
        path.write_text(json.dumps(older | {"format_version": 3}))
    with pytest.raises(ConfigError, match=r"snapshot\.json: format version 3, this Fathom reads 4"):
        find(directory, Mode.IN_PROCESS, say=lambda line: None)


def test_snapshots_report_their_cost_and_are_removed_with_the_stream(uninterrupted: tuple[Path, InProcessRun]) -> None:
    rows = read_metrics(uninterrupted[0], "snapshots")
    assert len(rows) == EXPERIMENT.snapshots.count
    assert [row["updates"] for row in rows] == sorted(row["updates"] for row in rows)
    for row in rows:
        assert row["bytes"] > 10_000
        assert 0 < row["pause_seconds"] < row["background_seconds"]
    assert not (uninterrupted[0] / "snapshots").exists()
    assert not (uninterrupted[0] / "stream").exists()


def test_the_newest_and_the_best_snapshots_are_kept(killed_run: Path, tmp_path: Path) -> None:
    newest = killed_run / "snapshots" / str(complete_snapshots(killed_run)[-1])
    info = json.loads((newest / "snapshot.json").read_text())
    for updates, time_at_goal in ((10, 1.0), (20, 9.0), (30, None), (40, 2.0), (50, 3.0)):
        folder = tmp_path / "snapshots" / str(updates)
        folder.mkdir(parents=True)
        (folder / "snapshot.json").write_text(json.dumps(info | {"time_at_goal": time_at_goal}))
    for unfinished in ("5", "60"):
        (tmp_path / "snapshots" / unfinished).mkdir()
    snapshots.prune(tmp_path, keep=2)
    assert complete_snapshots(tmp_path) == [20, 40, 50]
    assert sorted(path.name for path in (tmp_path / "snapshots").iterdir()) == ["20", "40", "50", "60"]


def test_status_lists_every_resume(killed_run: Path, tmp_path: Path) -> None:
    directory = tmp_path / "run"
    shutil.copytree(killed_run, directory)
    newest = complete_snapshots(directory)[-1]
    before = json.loads((directory / "status.json").read_text())["seconds"]
    with pytest.raises(Killed):
        run_or_resume(directory, kill_after=3)
    status = json.loads((directory / "status.json").read_text())
    assert [resume["updates"] for resume in status["resumed"]] == [newest]
    assert status["seconds"] > before
