"""The table of a run's episodes, made from rows of the evaluator."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import pyarrow as pa
import pytest

from collector.evaluator import Evaluator
from deploy.run.episodes import EPISODES, read_episodes, write_episodes
from deploy.run.record import RunRecord
from shared.config import ACTIVE, Experiment
from shared.envs.registry import make_envs
from shared.metrics import rewind
from shared.params import Policy
from shared.plan import make_plan
from shared.roles import EVALUATOR
from tests.deploy.cases import PASSIVE, small

EXPERIMENT = Experiment.model_validate(small(learners=PASSIVE, evaluation={"episodes": 5}))
ENVS = make_envs(EXPERIMENT)
PLAN = make_plan(EXPERIMENT, ENVS.training.spec)


def still(params: Any, state: jax.Array, goal: jax.Array, key: jax.Array) -> jax.Array:
    return jnp.zeros((len(state), 2))


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a run whose learners were each evaluated after 0 and 2 updates, the collector learner twice after 2."""
    record = RunRecord(tmp_path_factory.mktemp("run"), EXPERIMENT, PLAN)
    evaluator = Evaluator(EXPERIMENT, PLAN, ENVS.evaluations, dict.fromkeys(EXPERIMENT.all_learners, still))
    for updates in (0, 2):
        for learner in (ACTIVE, "passive"):
            row = evaluator.evaluate(learner, Policy(updates, None))
            record.add(EVALUATOR, {"index": updates, "time": 1.0, **row})
    rewind(record.run_dir, EVALUATOR, 1, ACTIVE)
    evaluated = evaluator.evaluate(ACTIVE, Policy(3, None))
    record.close()
    resumed = RunRecord(record.run_dir, EXPERIMENT, PLAN)
    resumed.add(EVALUATOR, {"index": 3, "time": 1.0, **evaluated})
    assert "episodes" in evaluated
    assert all("episodes" not in row for row in (*resumed.evaluations(ACTIVE), *resumed.recent(EVALUATOR)))
    resumed.close()
    write_episodes(record.run_dir)
    return record.run_dir


def test_each_episode_of_each_evaluation_has_a_row(run_dir: Path) -> None:
    table = read_episodes(run_dir)
    evaluated = table.group_by(["learner", "updates"], use_threads=False).aggregate([("episode", "count")]).to_pylist()
    assert {(row["learner"], row["updates"]): row["episode_count"] for row in evaluated} == {
        (ACTIVE, 0): 5, ("passive", 0): 5, ("passive", 2): 5, (ACTIVE, 3): 5,
    }  # fmt: skip
    first = table.slice(0, 1).to_pylist()[0]
    assert len(first["start"]) == len(first["goal"]) == 2
    assert first["steps"] == ENVS.evaluation.spec.episode_length
    assert first["env_steps"] == 0
    assert first["behaviour/path_length"] == 0
    assert first["shortest_path"] > 0
    assert table.schema.field("time_at_goal").type == pa.int32()
    assert table.schema.field("behaviour/detour").type == pa.float32()


def test_episodes_of_equal_updates_pair_across_learners(run_dir: Path) -> None:
    rows = read_episodes(run_dir).to_pylist()
    places = {
        learner: [(row["start"], row["goal"]) for row in rows if (row["learner"], row["updates"]) == (learner, 0)]
        for learner in (ACTIVE, "passive")
    }
    assert places[ACTIVE] == places["passive"]
    assert len({tuple(goal) for _, goal in places[ACTIVE]}) == 5


def test_a_missing_or_damaged_table_is_named(run_dir: Path, tmp_path: Path) -> None:
    with pytest.raises(OSError, match=r"episodes\.arrow is missing"):
        read_episodes(tmp_path)
    for size in (0, 10, 500, -100, -1):
        (tmp_path / EPISODES).write_bytes((run_dir / EPISODES).read_bytes()[:size])
        with pytest.raises(OSError, match=r"episodes\.arrow is damaged"):
            read_episodes(tmp_path)
    write_episodes(tmp_path / "none")
    assert not (tmp_path / "none").exists()
