"""The catalogue against what runs write and pages show."""

from collections.abc import Callable
from pathlib import Path

import pytest

from deploy.mode import Mode
from deploy.run.in_process import InProcessRun
from deploy.run.record import RunRecord
from deploy.telemetry.gauges import LABELS
from shared.config import Experiment
from shared.envs.registry import make_envs
from shared.metrics_catalogue import (
    CATALOGUE,
    EVERYWHERE,
    FAMILIES,
    RATES,
    describe_gauges,
    find_metric,
    metrics_page,
    tensorboard_tag,
    unknown_metrics,
)
from shared.plan import make_plan

ROOT = Path(__file__).parents[2]


def test_the_page_is_made_from_the_catalogue() -> None:
    assert (ROOT / "docs" / "metrics.md").read_text() == metrics_page(), "docs/metrics.md is stale; run make docs"


def test_every_metric_is_said_once_for_each_file() -> None:
    for kind in EVERYWHERE:
        names = [metric.name for metric in CATALOGUE if kind in metric.files]
        assert len(names) == len(set(names)), kind
    assert all(metric.meaning.endswith(".") for metric in CATALOGUE)


def test_metrics_are_found_by_file_and_name() -> None:
    assert unknown_metrics("learner", ["critic/loss", "wait/replay starved", "index"]) == []
    assert unknown_metrics("learner", ["critic/los", "wait/lunch"]) == ["critic/los", "wait/lunch"]
    assert unknown_metrics("evaluator", ["critic/loss"]) == ["critic/loss"]
    found = find_metric("replay", "d16/inserted")
    assert found is not None
    assert found.name == "<learner>/inserted"
    assert tensorboard_tag("evaluator", "time_at_goal") == "result/time_at_goal"
    assert tensorboard_tag("learner", "critic/loss") == "critic/loss"


def test_every_gauge_has_labels_and_a_meaning() -> None:
    named = {metric.gauge for metric in CATALOGUE if metric.gauge}
    assert named | set(RATES) == set(LABELS) == set(describe_gauges())
    assert set(FAMILIES) <= named


@pytest.mark.slow
def test_a_run_writes_nothing_that_the_catalogue_lacks(tmp_path: Path, uncatalogued: Callable[[Path], dict]) -> None:
    experiment = Experiment.model_validate(
        {
            "env": "point_u_maze",
            "env_options": {"episode_length": 20},
            "collector": {"depth": 4, "width": 8, "environments": 4, "unroll_length": 5, "actors": 2},
            "learners": {"passive": {"depth": 4, "width": 8}},
            "algorithm": {"batch_size": 16, "windows_per_update": 8, "minibatches_per_update": 4},
            "replay": {"steps_per_environment": 400, "prefill_steps": 40, "samples_per_insert": 2.0},
            "evaluation": {"episodes": 8, "count": 3},
            "budget": {"env_steps": 560},
        }
    )
    envs = make_envs(experiment)
    record = RunRecord(tmp_path, experiment, make_plan(experiment, envs.training.spec))
    InProcessRun(record, envs, mode=Mode.IN_PROCESS).run()
    record.close()
    assert uncatalogued(tmp_path) == {}
