"""A run that ended anywhere goes on as if it had not: the same learners to the bit, curves without gap or repeat."""

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
from deploy.recovery.resume import check_same, find, restore
from deploy.run.in_process import InProcessRun
from deploy.run.record import RunRecord
from deploy.run.summary import summarise
from learner.learner import _jitted_update, _jitted_updates
from shared.config import ACTIVE, Experiment
from shared.config_file import load_experiment
from shared.envs.registry import make_envs
from shared.errors import ConfigError
from shared.metrics import Row, read_metrics
from shared.plan import make_plan

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
PLAN = make_plan(EXPERIMENT, ENVS.training.spec)
NAMES = (ACTIVE, "passive")
ROLES = ("collector-0", "collector-1", "learner-active", "learner-passive", "evaluator", "replay")
TIMES = ("time", "seconds", "update_seconds")


class Killed(Exception):
    """Stands for the end of the process; what it had not written is gone."""


def go(
    directory: Path, end_after: int | None = None, mode: Mode = Mode.IN_PROCESS, fast_disk: bool = False
) -> InProcessRun:
    """A run in `directory`, from its start or from where it ended, up to the end or to some call of its progress.

    `fast_disk`: what is written in the background is there at each call; else a snapshot may take half a run.
    """
    gc.collect()  # a run that was killed has released its files
    snapshot = None
    if (directory / "config.yaml").exists():
        snapshot = find(directory, mode, say=lambda text: None)
        if snapshot is None:
            shutil.rmtree(directory)
        else:
            restore(directory, EXPERIMENT, snapshot)
    directory.mkdir(parents=True, exist_ok=True)
    record = RunRecord(directory, EXPERIMENT, PLAN, snapshot)
    calls = 0

    def progress() -> None:
        nonlocal calls
        calls += 1
        record.status("running")
        if fast_disk:
            run._background.wait()
        if calls == end_after:
            raise Killed

    run = InProcessRun(record, ENVS, mode=mode)
    run.run(progress)
    summarise(record, ENVS.training.spec)
    record.close()
    return run


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, InProcessRun]:
    """A run that was not interrupted."""
    directory = tmp_path_factory.mktemp("whole") / "run"
    return directory, go(directory)


def plain(rows: list[Row]) -> list[dict[str, Any]]:
    return [{k: v for k, v in row.items() if k not in TIMES and not k.startswith("wait/")} for row in rows]


def assert_same(directory: Path, run: InProcessRun, whole: tuple[Path, InProcessRun]) -> None:
    for name in NAMES:
        ours, theirs = run.learners[name].state, whole[1].learners[name].state
        assert jax.random.key_data(ours.key).tolist() == jax.random.key_data(theirs.key).tolist()
        key = np.zeros(())
        jax.tree.map(np.testing.assert_array_equal, ours._replace(key=key), theirs._replace(key=key))
    for role in ROLES:
        assert plain(read_metrics(directory, role)) == plain(read_metrics(whole[0], role)), role


def assert_compiled_once(run: InProcessRun, update: Callable[..., Any]) -> None:
    """By all lives of all runs so far: what comes from a disk is like what comes from a device."""
    assert [source._loop._collect._cache_size() for source in run._sources] == [1, 1]
    assert [update(learner.kind)._cache_size() for learner in run.learners.values()] == [1, 1]


@pytest.mark.timeout(600)
def test_a_run_killed_anywhere_ends_the_same(tmp_path: Path, whole: tuple[Path, InProcessRun]) -> None:
    """At 20 random points of one run: each life ends sooner or later after the one before went on."""
    rng, lives, went_on = random.Random(0), 0, set()
    directory = tmp_path / "run"
    while lives < 20:
        went_on.update(held(directory)[-1:])
        try:
            calls = rng.randint(1, 20 if held(directory) else 60)  # the first snapshot comes half-way
            run = go(directory, end_after=calls, fast_disk=rng.random() < 0.7)
        except Killed:
            lives += 1
        else:
            assert_same(directory, run, whole)
            shutil.rmtree(directory)
    last = go(directory)
    assert len(went_on) >= 4, went_on
    assert_same(directory, last, whole)
    assert_compiled_once(last, _jitted_update)


@pytest.fixture(scope="module")
def ended(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was killed when it had several snapshots."""
    directory = tmp_path_factory.mktemp("ended") / "run"
    with pytest.raises(Killed):
        go(directory, end_after=50, fast_disk=True)
    assert len(held(directory)) >= EXPERIMENT.snapshots.keep
    return directory


def held(directory: Path) -> list[int]:
    """The whole snapshots."""
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
def test_of_a_damaged_snapshot_the_one_before_is_taken(
    what: str, damage: Callable[[Path], None], ended: Path, tmp_path: Path
) -> None:
    directory = tmp_path / "run"
    shutil.copytree(ended, directory)
    *_, before, newest = held(directory)
    path = sorted((directory / "snapshots" / str(newest)).glob(what))[0]
    damage(path)
    told: list[str] = []
    found = find(directory, Mode.IN_PROCESS, say=told.append)
    assert found is not None
    assert int(found.folder.name) == before
    assert told == [] if (what, damage) == ("snapshot.json", Path.unlink) else len(told) == 1
    assert all(str(newest) in line and "\n" not in line for line in told)


def test_what_is_undone_leaves_the_metrics(ended: Path, tmp_path: Path) -> None:
    directory = tmp_path / "run"
    shutil.copytree(ended, directory)
    _cut(directory / "snapshots" / str(held(directory)[-1]) / "snapshot.json")
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
        of_role = {"replay": info.env_steps, "evaluator": info.updates[ACTIVE]}
        of_role |= info.numbers | {f"learner-{name}": updates for name, updates in info.updates.items()}
        assert newest <= of_role[role] if role == "evaluator" else newest == of_role[role], role


def test_without_a_good_snapshot_nothing_is_begun_anew_unasked(ended: Path, tmp_path: Path) -> None:
    directory = tmp_path / "run"
    shutil.copytree(ended, directory)
    for path in (directory / "snapshots").glob("*/learner-passive/part.json"):
        _flip(path)
    with pytest.raises(ConfigError, match=r"no snapshot is whole .* begin again with --overwrite"):
        find(directory, Mode.IN_PROCESS, say=lambda line: None)


def test_a_changed_experiment_is_refused_by_its_keys(ended: Path) -> None:
    held = load_experiment(ended / "config.yaml")
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


def test_a_run_goes_on_in_its_mode_alone(ended: Path, tmp_path: Path) -> None:
    whole, directory = tmp_path / "whole", tmp_path / "run"
    expected = go(whole, mode=Mode.TOGETHER)
    with pytest.raises(Killed):
        go(directory, end_after=50, mode=Mode.TOGETHER, fast_disk=True)
    for began, mode, remedy in (
        (directory, Mode.IN_PROCESS, "started with --in-process --together; resume it so"),
        (ended, Mode.TOGETHER, "started with --in-process without --together; resume it so"),
        (ended, Mode.DISTRIBUTED, "started with --in-process without --together; resume it so"),
    ):
        with pytest.raises(ConfigError, match=re.escape(remedy)):
            find(began, mode, say=lambda line: None)
    last = go(directory, mode=Mode.TOGETHER)
    assert_same(directory, last, (whole, expected))
    assert_compiled_once(last, _jitted_updates)


def test_a_run_that_is_done_is_left_as_it_is(
    whole: tuple[Path, InProcessRun], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    directory = tmp_path / "run"
    shutil.copytree(whole[0], directory)
    (directory / "status.json").write_text(json.dumps({"state": "done"}))
    before = {path: path.read_bytes() for path in directory.rglob("*") if path.is_file()}
    assert run_command(["run", str(directory / "config.yaml"), "--run-dir", str(directory), "--resume"]) == 0
    printed = capsys.readouterr()
    assert ("".join(printed.out.split()), printed.err) == (f"{directory}:alreadydone", "")
    assert {path: path.read_bytes() for path in directory.rglob("*") if path.is_file()} == before


def test_an_older_snapshot_is_named_as_such(ended: Path, tmp_path: Path) -> None:
    directory = tmp_path / "run"
    shutil.copytree(ended, directory)
    for path in (directory / "snapshots").glob("*/snapshot.json"):
        older = json.loads(path.read_text())
        path.write_text(json.dumps(older | {"format_version": 2}))
    with pytest.raises(ConfigError, match=r"snapshot\.json: format version 2, this Fathom reads 3"):
        find(directory, Mode.IN_PROCESS, say=lambda line: None)


def test_snapshots_say_what_they_cost_and_go_with_the_run(whole: tuple[Path, InProcessRun]) -> None:
    rows = read_metrics(whole[0], "snapshots")
    assert len(rows) == EXPERIMENT.snapshots.count
    assert [row["updates"] for row in rows] == sorted(row["updates"] for row in rows)
    for row in rows:
        assert row["bytes"] > 10_000
        assert 0 < row["pause_seconds"] < row["background_seconds"]
    assert not (whole[0] / "snapshots").exists()
    assert not (whole[0] / "stream").exists()


def test_the_newest_and_the_best_are_kept(ended: Path, tmp_path: Path) -> None:
    newest = ended / "snapshots" / str(held(ended)[-1])
    info = json.loads((newest / "snapshot.json").read_text())
    for updates, time_at_goal in ((10, 1.0), (20, 9.0), (30, None), (40, 2.0), (50, 3.0)):
        folder = tmp_path / "snapshots" / str(updates)
        folder.mkdir(parents=True)
        (folder / "snapshot.json").write_text(json.dumps(info | {"time_at_goal": time_at_goal}))
    for unfinished in ("5", "60"):
        (tmp_path / "snapshots" / unfinished).mkdir()
    snapshots.prune(tmp_path, keep=2)
    assert held(tmp_path) == [20, 40, 50]
    assert sorted(path.name for path in (tmp_path / "snapshots").iterdir()) == ["20", "40", "50", "60"]


def test_status_tells_of_every_life(ended: Path, tmp_path: Path) -> None:
    directory = tmp_path / "run"
    shutil.copytree(ended, directory)
    newest = held(directory)[-1]
    before = json.loads((directory / "status.json").read_text())["seconds"]
    with pytest.raises(Killed):
        go(directory, end_after=3)
    status = json.loads((directory / "status.json").read_text())
    assert [life["updates"] for life in status["resumed"]] == [newest]
    assert status["seconds"] > before
