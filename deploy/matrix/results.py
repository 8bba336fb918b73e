"""A matrix's results: one row for each cell and seed, of the runs that are done."""

import csv
import json
from pathlib import Path
from typing import Any

from deploy.matrix.expand import MatrixConfig
from deploy.matrix.folder import is_done, runs_in
from shared.config import ACTIVE
from shared.files import write_json

COLUMNS = (
    "env",
    "collector_depth",
    "learner_depth",
    "seed",
    "time_at_goal",
    "success_rate",
    "coverage",
    "gradient_steps",
    "samples_per_insert",
    "wall_seconds",
)


def collect_results(out: Path, matrix: MatrixConfig) -> dict[str, Any]:
    """`cells`: rows of `COLUMNS` of every passive learner, wherever it was trained, in the order of the axes.

    `active`: the same of the collector learners. `missing`: runs that are not done.
    """
    cells: list[dict[str, Any]] = []
    active: list[dict[str, Any]] = []
    missing = []
    for run in runs_in(matrix, out):
        run_dir = out / run.name
        if not is_done(run_dir, run):
            missing.append(run.name)
            continue
        summary = json.loads((run_dir / "summary.json").read_text())
        seconds = json.loads((run_dir / "status.json").read_text())["seconds"]
        for name, learner in summary["learners"].items():
            row = {
                "env": run.experiment.env,
                "collector_depth": run.collector_depth,
                "learner_depth": learner["depth"],
                "seed": run.experiment.seed,
                "coverage": summary["collector"]["coverage"],
                "wall_seconds": seconds,
                **{key: learner[key] for key in COLUMNS if key in learner},
            }
            (active if name == ACTIVE else cells).append({key: row[key] for key in COLUMNS})
    axes = {
        "env": matrix.envs,
        "collector_depth": matrix.collector_depths,
        "seed": matrix.seeds,
        "learner_depth": matrix.learner_depths,
    }
    cells.sort(key=lambda row: [axis.index(row[name]) for name, axis in axes.items()])
    return {"cells": cells, "active": active, "missing": missing}


def write_results(out: Path, results: dict[str, Any]) -> None:
    """summary.json, and summary.csv of the cells."""
    write_json(out / "summary.json", results)
    beside = out / "summary.csv.part"
    with open(beside, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows(results["cells"])
    beside.replace(out / "summary.csv")
