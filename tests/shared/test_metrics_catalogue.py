"""Tests of the metrics catalogue, of its page and of its gauges."""

from pathlib import Path

from deploy.telemetry.gauges import LABELS
from shared.metrics_catalogue import (
    CATALOGUE,
    EVERYWHERE,
    FAMILIES,
    RATES,
    describe_gauges,
    find_metric,
    tensorboard_tag,
    unknown_metrics,
)
from shared.metrics_page import metrics_page

ROOT = Path(__file__).parents[2]


def test_the_page_is_made_from_the_catalogue() -> None:
    assert (ROOT / "docs" / "metrics.md").read_text() == metrics_page(), "docs/metrics.md is stale; run make docs"


def test_every_metric_is_listed_once_for_each_file() -> None:
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
