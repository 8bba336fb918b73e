"""Figures of a run's summary, from rows with numbers chosen by hand."""

import io
import json
import math
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from rich.console import Console

from deploy.run.record import RunRecord
from deploy.run.summary import describe_elsewhere, headline, plot, read_summary, run_seconds, summarise, table
from shared.config import ACTIVE, Experiment
from shared.envs.registry import make_envs
from shared.files import write_json
from shared.metrics import Row
from shared.plan import make_plan
from shared.position import Position, start_position
from shared.roles import EVALUATOR, Kind, Role, learner_role
from tests.deploy.cases import PASSIVE, small

EXPERIMENT = Experiment.model_validate(small(collector={"actors": 2}, learners=PASSIVE))
SPEC = make_envs(EXPERIMENT).training.spec
PLAN = make_plan(EXPERIMENT, SPEC)
COLLECTORS = [Role(Kind.COLLECTOR, str(index)) for index in range(2)]


def make_record(run_dir: Path) -> RunRecord:
    """Returns a record in which both collectors have finished, and nothing else has happened."""
    record = RunRecord(run_dir, EXPERIMENT, PLAN)
    for role in COLLECTORS:
        windows = start_position(4, SPEC.num_cells).windows._replace(made=PLAN.windows // 2)
        position = Position(windows, PLAN.unrolls, start_position(4, SPEC.num_cells).visits + 1)
        record.move(role, position)
    return record


def add_rows(record: RunRecord, role: Role, times: list[float], **columns: list[Any]) -> None:
    """Adds a row at each of `times`, with the time since the row before; further columns by name."""
    for index, time in enumerate(times):
        row: Row = {"time": time, "seconds": time - times[index - 1] if index else 1.0, "index": index}
        record.add(role, row | {name: values[index] for name, values in columns.items()})


def collector_rate(record: RunRecord) -> float:
    return summarise(record, SPEC)["collector"]["env_steps_per_second"]


def test_wall_clock_leaves_out_the_time_between_incarnations_of_a_run() -> None:
    status = {"started": 100.0, "resumed": [{"time": 500.0, "seconds": 60.0}]}
    assert [run_seconds(status, time) for time in (130.0, 500.0, 520.0)] == [30.0, 60.0, 80.0]
    assert math.isnan(run_seconds({}, 130.0))


def test_the_rate_of_collection_spans_all_rows_but_the_first_unroll(tmp_path: Path) -> None:
    record = make_record(tmp_path)
    record.status("running")
    first = record.started + 60  # a minute of compilation
    add_rows(record, COLLECTORS[0], [first, first + 10, first + 20], env_steps=[20, 40, 60])
    add_rows(record, COLLECTORS[1], [first + 1, first + 40], env_steps=[20, 80])  # restarted
    assert collector_rate(record) == pytest.approx((60 + 80 - 20) / 40)
    status = json.loads((tmp_path / "status.json").read_text())
    resumed = {"time": first + 35, "seconds": 60 + 15}  # stopped for 20 s
    write_json(tmp_path / "status.json", status | {"resumed": [resumed]})
    assert collector_rate(record) == pytest.approx((60 + 80 - 20) / 20)
    record.close()


def test_further_environments_of_the_evaluation_have_a_line_each() -> None:
    figures = {"time_at_goal": 12.34, "success_rate": 0.5}
    learners = {name: {"elsewhere": {"u": figures, "big": figures | {"time_at_goal": 0.0}}} for name in ("a", "b")}
    assert describe_elsewhere({"learners": learners}) == [
        "time at goal (success) in u: a 12.3 (0.50), b 12.3 (0.50)",
        "time at goal (success) in big: a 0.0 (0.50), b 0.0 (0.50)",
    ]
    assert describe_elsewhere({"learners": {"a": {"elsewhere": {}}}}) == []


def test_the_rate_of_a_learner_leaves_out_the_first_update_of_each_process(tmp_path: Path) -> None:
    record = make_record(tmp_path)
    role = learner_role("passive")
    add_rows(record, role, [10, 20, 30], update_seconds=[9.0, 1.0, 3.0])
    for index, time, seconds in ((3, 60.0, 20.0), (4, 70.0, 10.0)):  # a new process starts at 40
        row = {"time": time, "seconds": seconds, "index": index, "update_seconds": 9.0 if index == 3 else 2.0}
        record.add(role, row)
    learner = summarise(record, SPEC)["learners"]["passive"]
    assert learner["gradient_steps_per_second"] == 4 / 2.0
    assert learner["gradient_steps"] == 4 * 4
    record.close()


def test_a_summary_is_made_of_whatever_there_is(tmp_path: Path) -> None:
    record = make_record(tmp_path)
    add_rows(record, COLLECTORS[0], [10.0], env_steps=[280], policy_lag=[math.nan])
    add_rows(record, learner_role(ACTIVE), [10.0], update_seconds=[2.0], sample_age=[math.nan])
    evaluated = {"learner": ACTIVE, "updates": 0, "env_steps": 0, "time_at_goal": math.nan, "success_rate": 0.5}
    record.add(EVALUATOR, {"time": 10.0, "index": 0, **evaluated})
    summary = summarise(record, SPEC)
    write_json(tmp_path / "summary.json", summary)
    written = json.loads((tmp_path / "summary.json").read_text(), parse_constant=pytest.fail)
    assert written["untrained_time_at_goal"] is None
    assert written["collector"] == {
        "policy_lag": None, "coverage": 1.0, "coverage_entropy": pytest.approx(1.0), "env_steps_per_second": None,
    }  # fmt: skip
    active, passive = (written["learners"][name] for name in (ACTIVE, "passive"))
    assert active["gradient_steps_per_second"] == 4 / 2.0  # the only update there is
    assert (active["sample_age"], active["last_time_at_goal"], active["last_success_rate"]) == (None, None, 0.5)
    assert [passive[name] for name in ("time_at_goal", "success_rate", "sample_age")] == [None] * 3
    assert (passive["gradient_steps"], passive["gradient_steps_per_second"]) == (0, None)
    Console(quiet=True).print(table(summary))
    plot(record, tmp_path / "learning_curve.png")
    assert Image.open(tmp_path / "learning_curve.png").size[0] > 1000
    record.close()


def test_the_headline_is_the_mean_over_the_last_five_evaluations_of_a_trained_policy() -> None:
    rows = [{"updates": updates, "time_at_goal": 2.0**updates} for updates in range(8)]
    assert headline(rows, "time_at_goal") == (8 + 16 + 32 + 64 + 128) / 5
    assert headline(rows[:3], "time_at_goal") == (2 + 4) / 2
    assert math.isnan(headline(rows[:1], "time_at_goal"))


def printed(summary: dict[str, Any]) -> list[str]:
    """Returns the lines of a summary's table in 80 columns."""
    console = Console(width=80, file=io.StringIO())
    console.print(table(summary))
    return console.file.getvalue().splitlines()


def test_the_table_names_objectives_where_they_differ(tmp_path: Path) -> None:
    record = make_record(tmp_path)
    summary = summarise(record, SPEC)
    record.close()
    alone = printed(summary)
    assert "role" in alone[2]
    passive = summary["learners"].pop("passive")
    summary["learners"]["lab-d4"] = passive | {"objective": "lab.objectives:Reward"}
    several = printed(summary)
    assert "objective" in several[2]
    assert "contrastive" in next(line for line in several if line.startswith("active"))
    assert max(map(len, several)) <= 80
    for learner in summary["learners"].values():  # as an older version wrote it
        learner.pop("objective")
    assert "role" in printed(summary)[2]


def test_a_summary_that_cannot_be_read_is_empty(tmp_path: Path) -> None:
    assert read_summary(tmp_path) == {}
    for content in (b'{"env": "po', b"[1]", b"\xff"):
        (tmp_path / "summary.json").write_bytes(content)
        assert read_summary(tmp_path) == {}
