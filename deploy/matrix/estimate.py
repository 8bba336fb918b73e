"""What a matrix will cost, before anything is started."""

from functools import cache
from itertools import groupby
from typing import Any

from rich import box
from rich.table import Table

from deploy.matrix.expand import MatrixConfig, expand
from shared.config import NetworkConfig
from shared.envs.base import EnvSpec
from shared.envs.registry import make_envs
from shared.networks import make_networks, network_size
from shared.plan import make_plan
from shared.stream.format import bytes_of_stream

COPIES_IN_MEMORY = 4  # parameters, gradients and Adam's two moments, float32


def estimate_matrix(matrix: MatrixConfig) -> dict[str, Any]:
    """`rows`: one for each learner of each run; `totals`. Raises ConfigError where a run cannot be made.

    `stream_bytes`: uncompressed, what the run's stream takes on disk, or would take: `recorded` says which.
    `env_steps` and `stream_bytes` of a row are its run's.
    """
    rows = []
    runs = expand(matrix)
    totals = {"runs": len(runs), "cells": 0, "env_steps": 0, "gradient_steps": 0, "stream_bytes": 0}
    for run in runs:
        spec = make_envs(run.experiment).training.spec
        plan = make_plan(run.experiment, spec)
        stream_bytes = bytes_of_stream(plan.env_steps, spec.state_size, spec.action_size)
        totals["cells"] += len(run.experiment.learners)
        totals["env_steps"] += plan.env_steps
        totals["stream_bytes"] += stream_bytes
        for name, config in run.experiment.all_learners.items():
            parameters = _parameters(config, spec)
            totals["gradient_steps"] += plan.gradient_steps
            rows.append(
                {
                    "run": run.name,
                    "learner": name,
                    "depth": config.depth,
                    "env_steps": plan.env_steps,
                    "gradient_steps": plan.gradient_steps,
                    "parameters": parameters,
                    "memory_bytes": 4 * COPIES_IN_MEMORY * parameters,
                    "stream_bytes": stream_bytes,
                }
            )
    return {"rows": rows, "totals": totals, "recorded": runs[0].experiment.record}


@cache
def _parameters(config: NetworkConfig, spec: EnvSpec) -> int:
    return network_size(make_networks(config, spec), spec)


def table(planned: dict[str, Any]) -> Table:
    """The plan for a person, a group of rows for each run."""
    result = Table(box=box.SIMPLE, show_edge=False, pad_edge=False)
    for heading in ("run", "learner"):
        result.add_column(heading)
    for heading in ("depth", "gradient steps", "parameters", "memory", "environment steps", "stream"):
        result.add_column(heading, justify="right")
    for run, rows in groupby(planned["rows"], key=lambda row: row["run"]):
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


def total(planned: dict[str, Any]) -> str:
    """The totals in one line."""
    totals = planned["totals"]
    streams = f"streams of {readable_bytes(totals['stream_bytes'])}"
    return (
        f"{totals['runs']:,} runs, {totals['cells']:,} cells, {totals['env_steps']:,} environment steps, "
        f"{totals['gradient_steps']:,} gradient steps, {streams} ({'' if planned['recorded'] else 'not '}recorded)"
    )


def readable_bytes(count: float) -> str:
    """Decimal units, as disks are sold in; three digits."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 999.5:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:,.4g} TB"
