"""Cost of a matrix, computed before anything starts."""

from collections import Counter
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
    """Returns `rows`, one for each learner of each run; `totals`; and `recorded`: whether runs record their streams.

    `env_steps` and `stream_bytes`, the uncompressed size of a recorded stream, are those of the row's run.
    Raises ConfigError if a run cannot be made.
    """
    rows = []
    runs = expand(matrix)
    totals: Counter[str] = Counter(runs=len(runs))
    for run in runs:
        spec = make_envs(run.experiment).training.spec
        plan = make_plan(run.experiment, spec)
        stream_bytes = bytes_of_stream(plan.env_steps, spec.state_size, spec.action_size)
        totals.update(cells=len(run.experiment.learners), env_steps=plan.env_steps, stream_bytes=stream_bytes)
        for name, config in run.experiment.all_learners.items():
            parameters = _parameters(config, spec)
            totals.update(gradient_steps=plan.gradient_steps)
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
