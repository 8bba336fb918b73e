"""Results of a matrix: one row for each cell and seed of the runs that are done."""

import csv
import io
from pathlib import Path
from typing import Any

from deploy.matrix.expand import MatrixConfig
from deploy.matrix.folder import is_done, runs_in
from deploy.run.run_dir import read_status
from deploy.run.summary import read_summary
from shared.config import ACTIVE
from shared.files import replace_file, write_json

COLUMNS = (
    "env",
    "collector_depth",
    "objective",
    "learner_depth",
    "seed",
    "time_at_goal",
    "success_rate",
    "last_time_at_goal",
    "last_success_rate",
    "coverage",
    "gradient_steps",
    "samples_per_insert",
    "wall_seconds",
)


def collect_results(out: Path, matrix: MatrixConfig) -> dict[str, Any]:
    """Returns the results of the runs in `out` that are done.

    `cells`: a row of `COLUMNS` for each passive learner, in the order of the axes, with results in further environments
    of the evaluation, such as `time_at_goal in ant_u_maze_eval`. `active`: the same for collector learners. `missing`:
    names of the runs that are not done, or whose summary cannot be read.
    """
    cells: list[dict[str, Any]] = []
    active: list[dict[str, Any]] = []
    missing = []
    for run in runs_in(matrix, out):
        run_dir = out / run.name
        summary = read_summary(run_dir) if is_done(run_dir, run) else {}
        if not summary:
            missing.append(run.name)
            continue
        for name, learner in summary.get("learners", {}).items():
            row = learner | {
                "env": run.experiment.env,
                "collector_depth": run.collector_depth,
                "objective": matrix.objective_of(name),
                "learner_depth": run.experiment.learner(name).depth,
                "seed": run.experiment.seed,
                "coverage": summary.get("collector", {}).get("coverage"),
                "wall_seconds": read_status(run_dir).get("seconds"),
            }
            elsewhere = {
                f"{key} in {env}": value
                for env, found in learner.get("elsewhere", {}).items()
                for key, value in found.items()
            }
            (active if name == ACTIVE else cells).append({key: row.get(key) for key in COLUMNS} | elsewhere)
    axes = {
        "env": matrix.envs,
        "collector_depth": matrix.collector_depths,
        "seed": matrix.seeds,
        "objective": [*matrix.objective_keys],
        "learner_depth": matrix.learner_depths,
    }
    cells.sort(key=lambda row: [axis.index(row[name]) for name, axis in axes.items()])
    return {"cells": cells, "active": active, "missing": missing}


def write_results(out: Path, results: dict[str, Any]) -> None:
    """Writes summary.json, and the cells to summary.csv."""
    write_json(out / "summary.json", results)
    text = io.StringIO(newline="")
    columns = dict.fromkeys((*COLUMNS, *(key for row in results["cells"] for key in row)))
    writer = csv.DictWriter(text, [*columns])
    writer.writeheader()
    writer.writerows(results["cells"])
    replace_file(out / "summary.csv", text.getvalue(), sync=False)
