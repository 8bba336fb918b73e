"""Reading of runs that were restarted, cut short, damaged, or written by another version."""

import csv
import json
import math
from collections.abc import Callable
from dataclasses import astuple
from html import unescape
from pathlib import Path

import numpy as np
import pytest

from deploy.cli.main import run_command
from deploy.report.read import _points, read_matrix
from deploy.report.records import MatrixRecord, Missing
from shared.files import write_json
from shared.metrics import MetricsWriter, metrics_file, read_metrics, read_scalars
from tests.deploy.matrix.cases import replace_in_config

RUN = "point_u_maze-c4-s0"
OTHERS = tuple(f"point_u_maze-c{depth}-s{seed}" for depth in (4, 16) for seed in range(3))[1:]
WriteRuns = Callable[..., Path]
Damage = Callable[[Path], object]


def change_json(path: Path, change: Callable[[dict], object]) -> None:
    values = json.loads(path.read_text())
    change(values)
    write_json(path, values)


def change_rows(path: Path, change: Callable[[list[dict]], list[dict]]) -> None:
    rows = change([json.loads(line) for line in path.read_text().splitlines()])
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def in_learner(change: Callable[[dict], object]) -> Damage:
    """Returns a function that changes the figures of learner d16 in a run's summary."""
    return lambda run_dir: change_json(run_dir / "summary.json", lambda summary: change(summary["learners"]["d16"]))


def in_rows(name: str, change: Callable[[list[dict]], list[dict]]) -> Damage:
    return lambda run_dir: change_rows(run_dir / "metrics" / f"{name}.jsonl", change)


def without_d16(rows: list[dict]) -> list[dict]:
    return [row for row in rows if row["learner"] != "d16"]


def last_unknown(rows: list[dict]) -> list[dict]:
    """Returns the rows; the last evaluation of d16 has null as its time at goal."""
    last = [row for row in rows if row["learner"] == "d16"][-1]
    return [row | {"time_at_goal": None} if row is last else row for row in rows]


DAMAGES: dict[str, tuple[Damage, list[tuple[str, str]]]] = {
    "no summary": (
        lambda run_dir: (run_dir / "summary.json").unlink(),
        [("treatment and speed", "summary.json is missing or damaged")],
    ),
    "half a summary": (
        lambda run_dir: (run_dir / "summary.json").write_text('{"env": "point'),
        [("treatment and speed", "summary.json is missing or damaged")],
    ),
    "a summary of another version": (
        in_learner(lambda learner: [learner.pop(name) for name in ("sample_age", "parameters")]),
        [("learner d16", "summary.json has no sample_age, parameters")],
    ),
    "null": (
        in_learner(lambda learner: learner.update(samples_per_insert=None)),
        [("learner d16", "summary.json has no samples_per_insert")],
    ),
    "no rate": (lambda run_dir: change_json(run_dir / "summary.json", lambda values: values.pop("collector")), []),
    "no origin": (
        lambda run_dir: (run_dir / "config.yaml").write_text(
            "env:" + (run_dir / "config.yaml").read_text().partition("\nenv:")[2]
        ),
        [("origin", "config.yaml has no provenance")],
    ),
    "damaged status": (
        lambda run_dir: (run_dir / "status.json").write_text('{"state": "do'),
        [("wall clock", "status.json is damaged")],
    ),
    "no evaluation": (
        in_rows("evaluator", without_d16),
        [("learner d16", "0 evaluations; a learning curve needs at least 2")],
    ),
    "no last evaluation": (
        in_rows("evaluator", last_unknown),
        [("learner d16", "the last evaluation is of update 2 of 5")],
    ),
    "evaluations repeated": (in_rows("evaluator", lambda rows: rows + rows), []),
    "no evaluator": (
        lambda run_dir: (run_dir / "metrics" / "evaluator.jsonl").unlink(),
        [(f"learner {name}", "0 evaluations; a learning curve needs at least 2") for name in ("active", "d4", "d16")],
    ),
    "rows cut short": (
        in_rows("learner-d16", lambda rows: rows[:3]),
        [("wall clock of learner d16", "its rows end at update 3 of 5")],
    ),
    "all rows rewound": (
        in_rows("learner-d16", lambda rows: [row | {"index": row["updates"]} for row in rows] + [{"rewound_to": 0}]),
        [("wall clock of learner d16", "its rows end at update 0 of 5")],
    ),
    "an empty file": (
        in_rows("collector-0", lambda rows: []),
        [("coverage", "collector-0 has no rows with visits")],
    ),
    "visits that are no counts": (
        in_rows("collector-0", lambda rows: [row | {"visits": [None] * 20} for row in rows]),
        [("coverage", "collector-0 has no rows with visits")],
    ),
    "a collector cut short": (
        in_rows("collector-0", lambda rows: rows[:15]),
        [("coverage", "the collectors' rows end at 300 of 400 environment steps")],
    ),
    "half a line": (
        lambda run_dir: (run_dir / "metrics" / "learner-d16.jsonl").open("ab").write(b'{"updates": 6, "ti'),
        [],
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_run_is_used_as_far_as_possible(damage: str, write_runs: WriteRuns) -> None:
    folder = write_runs(skip=OTHERS)
    apply, expected = DAMAGES[damage]
    apply(folder / RUN)
    record = read_matrix(folder)
    assert [(each.part, each.reason) for each in record.missing if each.run == RUN] == expected
    lost = {part for part, reason in expected if "evaluation" in reason}
    assert {f"learner {name}" for name in ("active", "d4", "d16")} - lost == parts(record)
    assert len(record.explorations) == ("coverage" not in dict(expected))


def test_a_run_of_another_configuration_is_left_out(write_runs: WriteRuns) -> None:
    folder = write_runs(skip=OTHERS)
    replace_in_config(folder / RUN, "batch_size: 16", "batch_size: 8")
    record = read_matrix(folder)
    assert [each for each in record.missing if each.run == RUN] == [Missing(RUN, "", "done with another configuration")]
    assert record.trials == []


def test_runs_of_older_versions_have_the_contrastive_objective(write_runs: WriteRuns) -> None:
    folder = write_runs(skip=OTHERS)
    change_json(folder / RUN / "summary.json", lambda values: values["learners"]["d16"].pop("critic_layers"))
    record = read_matrix(folder)
    assert [each for each in record.missing if each.run == RUN] == []
    found = [(each.objective, each.chunk, each.discount, each.critic_layers) for each in record.trials]
    assert found[:2] == [("contrastive", 1, 0.99, 4)] * 2
    assert found[2][:3] == ("contrastive", 1, 0.99)
    assert np.isnan(found[2][3])


def parts(record: MatrixRecord) -> set[str]:
    return {f"learner {'active' if trial.active else f'd{trial.learner_depth}'}" for trial in record.trials}


LINE = b'{"time": 1.5, "index": 1, "learner": "d4", "updates": 1, "visits": [1, 2], "episodes": {"goal": [[1.0, 2.0]]}}'
LATER = LINE.replace(b": 1,", b": 2,")
OTHER = LATER.replace(b"d4", b"d16")
CONTENTS = {
    "whole": [LINE, LATER, OTHER],
    "null": [LINE.replace(b'"updates": 1', b'"updates": null'), LATER],
    "a number of another form": [LINE.replace(b'"updates": 1', b'"updates": 1.0'), LATER],
    "a metric more": [LINE, LATER.replace(b'"updates"', b'"wait/weights": 0.5, "updates"')],
    "rewound": [LINE, LATER, OTHER, b'{"time": 3.0, "learner": "d4", "rewound_to": 1}'],
    "rewound and made again": [LINE, LATER, b'{"time": 3.0, "learner": "d4", "rewound_to": 0}', LATER],
    "a text in the place of a number": [LINE, LATER.replace(b"1.5", b'"late"')],
    "a damaged line": [LINE, LATER[:50], OTHER],
    "bytes that are no text": [LINE, b"\xff\xfe\x00", LATER],
    "two rows in a line": [LINE, LATER + OTHER],
    "a line without a row": [LINE, b"5", b"", LATER],
    "nothing": [],
}


@pytest.mark.parametrize("content", CONTENTS)
@pytest.mark.parametrize("end", [b"", LINE[:40], LINE], ids=["", "half a line", "a line that has no end"])
@pytest.mark.parametrize("numbers", [(), ("time", "updates")], ids=["all", "two"])
def test_scalars_are_those_of_all_rows(content: str, end: bytes, numbers: tuple[str, ...], tmp_path: Path) -> None:
    MetricsWriter(tmp_path).close()
    metrics_file(tmp_path, "evaluator").write_bytes(b"".join(line + b"\n" for line in CONTENTS[content]) + end)

    def known(rows: list[dict]) -> list[dict]:
        scalars = [{key: value for key, value in row.items() if not isinstance(value, (list, dict))} for row in rows]
        return [
            {
                key: value
                for key, value in row.items()
                if (not numbers or key in numbers) and not (isinstance(value, float) and math.isnan(value))
            }
            for row in scalars
        ]

    assert known(read_scalars(tmp_path, "evaluator", numbers)) == known(read_metrics(tmp_path, "evaluator"))
    assert read_scalars(tmp_path, "collector-0", numbers) == []


def test_a_report_names_what_it_cannot_use(write_runs: WriteRuns, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_runs()
    names = sorted(run.name for run in folder.iterdir() if run.is_dir())
    for number, (apply, _) in enumerate(DAMAGES.values()):
        apply(folder / names[number % len(names)])
    missing = read_matrix(folder).missing
    assert len(missing) > 10
    assert run_command(["report", str(folder)]) == 0
    printed = capsys.readouterr()
    page = unescape((folder / "report.html").read_text())
    for each in missing:
        assert ": ".join(filter(None, astuple(each))) + "\n" in printed.out
        assert f'>{each.part or "all"}</td>\n<td class="left wide">{each.reason}<' in page
    assert "5 of 6 runs" in printed.out  # one has neither its summary nor its status
    assert printed.err == ""
    text = (folder / "report" / "report.json").read_text()
    json.loads(text, parse_constant=lambda constant: pytest.fail(f"{constant} is not JSON"))
    with open(folder / "report" / "fairness.csv", encoding="utf-8") as file:
        assert "" in {row["sample_age"] for row in csv.DictReader(file)}


def test_unknown_treatment_is_marked(write_runs: WriteRuns, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_runs(skip=OTHERS)
    in_learner(lambda learner: learner.update(sample_age=None, gradient_steps=None))(folder / RUN)
    assert run_command(["report", str(folder)]) == 0
    page = (folder / "report.html").read_text()
    assert "unknown gradient steps; unknown sample age" in page
    assert "1 learner was not treated" in page


def unrolls(times: list[int], visits: list[list[int]]) -> list[dict]:
    """Returns the rows of a collector with 10 environment steps an unroll."""
    return [
        {"time": time, "env_steps": 10 * (index + 1), "visits": counts}
        for index, (time, counts) in enumerate(zip(times, visits, strict=True))
    ]


def test_points_of_a_run_have_the_newest_row_of_every_collector() -> None:
    steady = unrolls([1, 2, 3, 4], [[1, 0], [2, 0], [2, 1], [2, 2]])
    restarted = unrolls([1, 5, 6, 5, 8, 9], [[0, 1]] * 6)  # its clock was set back
    points = [[row["env_steps"] for row in rows] for rows in _points([steady, restarted])]
    assert points == [
        [10], [10, 10], [20, 10], [30, 10], [40, 10], [40, 20], [40, 30], [40, 40], [40, 50], [40, 60],
    ]  # fmt: skip
    many = unrolls([*range(100)], [[1, 1]] * 100)
    chosen = [sum(row["env_steps"] for row in rows) for rows in _points([many, many])]
    assert len(chosen) == 40
    assert (chosen[0], chosen[-1]) == (10, 2000)
    assert np.all(np.diff(chosen) > 0)


def test_collectors_with_different_numbers_of_unrolls_give_one_coverage(two_collectors: Path) -> None:
    record = read_matrix(two_collectors)
    assert record.missing == []
    restarted, plain = record.explorations
    assert (restarted.steps[0], restarted.steps[-1], plain.steps[-1]) == (20, 440, 400)
    for each in record.explorations:
        assert np.all(np.diff(each.steps) > 0)
        assert np.all(np.diff(each.coverage) >= 0)
        assert each.coverage[-1] == 4 / 20
    assert run_command(["report", str(two_collectors)]) == 0
    with open(two_collectors / "report" / "coverage.csv", encoding="utf-8") as file:
        (row,) = csv.DictReader(file)
    assert (row["seeds"], float(row["coverage_value"])) == ("0; 1", 0.2)
