"""A run that ended anywhere goes on as if it had not: the same learners to the bit, curves without gap or repeat."""

import shutil
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from deploy.in_process import InProcessRun
from deploy.record import RunRecord
from deploy.resume import find, restore
from deploy.summary import summarise
from shared.config import ACTIVE, Experiment
from shared.envs.registry import make_envs
from shared.metrics import Row, read_metrics
from shared.plan import make_plan

EXPERIMENT = Experiment.model_validate(
    {
        "env": "point_u_maze",
        "env_options": {"episode_length": 20},
        "collector": {"depth": 4, "width": 8, "environments": 4, "unroll_length": 5, "actors": 2},
        "learners": {"passive": {"depth": 4, "width": 8}},
        "algorithm": {"batch_size": 16, "windows_per_update": 8, "minibatches_per_update": 4},
        "replay": {"steps_per_environment": 100, "prefill_steps": 40, "samples_per_insert": 2.0},
        "evaluation": {"episodes": 8, "count": 3},
        "snapshots": {"count": 5},
        "budget": {"env_steps": 1600},
    }
)
ENVS = make_envs(EXPERIMENT)
PLAN = make_plan(EXPERIMENT, ENVS.training.spec)
NAMES = (ACTIVE, "passive")
ROLES = ("collector-0", "collector-1", "learner-active", "learner-passive", "evaluator", "replay")
TIMES = ("time", "seconds", "update_seconds")


class Killed(Exception):
    """Stands for the end of the process; what it had not written is gone."""


def go(directory: Path, end_after: int | None = None, experiment: Experiment = EXPERIMENT) -> InProcessRun:
    """A run in `directory`, from its start or from where it ended, up to the end or to some call of its progress."""
    snapshot = None
    if (directory / "config.yaml").exists():
        snapshot = find(directory, experiment, in_process=True, anyway=False, say=lambda text: None)
        if snapshot is None:
            shutil.rmtree(directory)
        else:
            restore(directory, experiment, snapshot)
    directory.mkdir(parents=True, exist_ok=True)
    record = RunRecord(directory, experiment, PLAN, snapshot)
    calls = 0

    def progress() -> None:
        nonlocal calls
        calls += 1
        record.status("running")
        if calls == end_after:
            raise Killed

    run = InProcessRun(record, ENVS)
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


@pytest.mark.timeout(600)
def test_a_run_killed_anywhere_ends_the_same(tmp_path: Path, whole: tuple[Path, InProcessRun]) -> None:
    """At 20 random points of one run: each life ends sooner or later after the one before went on."""
    rng, lives = random.Random(0), 0
    directory = tmp_path / "run"
    while lives < 20:
        try:
            run = go(directory, end_after=rng.randint(1, 60))
        except Killed:
            lives += 1
        else:
            assert_same(directory, run, whole)
            shutil.rmtree(directory)
    assert_same(directory, go(directory), whole)
