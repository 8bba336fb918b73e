"""Cost of a matrix, computed before anything starts."""

import shutil
from collections import Counter
from collections.abc import Collection
from itertools import groupby
from pathlib import Path
from typing import Any

from rich import box
from rich.table import Table

from deploy.matrix.expand import MatrixConfig, MatrixRun, expand, matrix_keys
from deploy.run.limits import find_short_limits
from deploy.run.run_dir import COPIES_IN_CHECKPOINT, held_bytes
from learner.objectives.base import Objective
from learner.objectives.registry import make_objectives
from shared.disk import GB
from shared.envs.base import EnvSpec
from shared.envs.registry import make_envs
from shared.errors import ConfigError
from shared.plan import Plan, make_plan
from shared.stream.format import bytes_of_stream

COPIES_IN_MEMORY = 4  # parameters, gradients and Adam's two moments, float32


def estimate_matrix(matrix: MatrixConfig) -> dict[str, Any]:
    """Returns `rows`, one for each learner of each run, `totals`, and more about all runs.

    `env_steps` and `stream_bytes`, the uncompressed size of a recorded stream, are those of the row's run. `recorded`:
    whether runs record their streams. `notes`: lines for the user on limits that the runs are certain to exceed.
    Raises ConfigError, with the matrix's key, if a run cannot be made.
    """
    rows = []
    runs = expand(matrix)
    totals: Counter[str] = Counter(runs=len(runs))
    notes: dict[str, None] = {}  # each once, in order
    for run in runs:
        spec, plan, objectives = _plan(run, matrix)
        stream_bytes = bytes_of_stream(plan.env_steps, spec.row_floats)
        totals.update(cells=len(run.experiment.learners), env_steps=plan.env_steps, stream_bytes=stream_bytes)
        notes |= dict.fromkeys(f"experiment.{line}" for line in find_short_limits(run.experiment, plan, spec))
        for name, objective in objectives.items():
            parameters = objective.size
            totals.update(gradient_steps=plan.gradient_steps)
            rows.append(
                {
                    "run": run.name,
                    "learner": name,
                    "objective": matrix.objective_of(name),
                    "depth": objective.network.depth,
                    "env_steps": plan.env_steps,
                    "gradient_steps": plan.gradient_steps,
                    "parameters": parameters,
                    "memory_bytes": 4 * COPIES_IN_MEMORY * parameters,
                    "stream_bytes": stream_bytes,
                }
            )
    return {"rows": rows, "totals": totals, "recorded": runs[0].experiment.record, "notes": list(notes)}


def _plan(run: MatrixRun, matrix: MatrixConfig) -> tuple[EnvSpec, Plan, dict[str, Objective]]:
    try:
        with matrix_keys(matrix):
            spec = make_envs(run.experiment).training.spec
            return spec, make_plan(run.experiment, spec), make_objectives(run.experiment, spec)
    except ConfigError as error:
        key, _, mistake = str(error).partition(":")
        env = run.experiment.env
        own = {"env": "envs"} | ({"evaluation.envs": f"evaluation_envs.{env}"} if env in matrix.evaluation_envs else {})
        own |= {"budget.env_steps": f"budgets.{env}"} if env in matrix.budgets else {}
        of_matrix = key.split(".")[0] == "objectives"
        raise ConfigError(f"{own.get(key, key if of_matrix else f'experiment.{key}')}:{mistake}") from error


def check_disk(estimate: dict[str, Any], names: Collection[str], out: Path, reserve_gb: float) -> None:
    """Raises ConfigError unless the disk of `out` can hold all that the runs called `names` keep when they are done.

    That is every learner's checkpoint and the recorded streams. Files that a run has there already count as part of
    it. Each run checks at its start what it needs besides.
    """
    rows = [row for row in estimate["rows"] if row["run"] in names]
    streams = {row["run"]: row["stream_bytes"] for row in rows} if estimate["recorded"] else {}
    needed = sum(4 * COPIES_IN_CHECKPOINT * row["parameters"] for row in rows) + sum(streams.values())
    missing = needed - sum(held_bytes(out / name) for name in names)
    disk = next(folder for folder in (out, *out.parents) if folder.is_dir())
    if missing > 0 and missing + reserve_gb * GB > (free := shutil.disk_usage(disk).free):
        raise ConfigError(
            f"--out: {disk} has {readable_bytes(free)} free, all runs together keep about {readable_bytes(missing)} "
            f"more and leave {reserve_gb:g} GB free (supervision.disk_reserve_gb); make room, or name another folder"
        )


def table(estimate: dict[str, Any]) -> Table:
    """Returns the estimate as a table on the console, with a group of rows for each run."""
    result = Table("run", "learner", box=box.SIMPLE, show_edge=False, pad_edge=False)
    for heading in ("depth", "gradient steps", "parameters", "memory", "environment steps", "stream"):
        result.add_column(heading, justify="right")
    for run, rows in groupby(estimate["rows"], key=lambda row: row["run"]):
        for number, row in enumerate(rows):
            of_run = (f"{row['env_steps']:,}", readable_bytes(row["stream_bytes"])) if number == 0 else ()
            result.add_row(
                run if number == 0 else "",
                row["learner"],
                str(row["depth"]),
                f"{row['gradient_steps']:,}",
                f"{row['parameters']:,}",
                readable_bytes(row["memory_bytes"]),
                *of_run,
            )
        result.add_section()
    return result


def total(estimate: dict[str, Any]) -> str:
    """Returns the totals in one line."""
    totals = estimate["totals"]
    return (
        f"{totals['runs']:,} runs, {totals['cells']:,} cells, {totals['env_steps']:,} environment steps, "
        f"{totals['gradient_steps']:,} gradient steps, streams of {readable_bytes(totals['stream_bytes'])} "
        f"({'' if estimate['recorded'] else 'not '}recorded)"
    )


def readable_bytes(count: float) -> str:
    """Returns a size in decimal units, with three digits."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 999.5:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:,.4g} TB"
