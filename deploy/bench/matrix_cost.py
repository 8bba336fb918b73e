"""Cost of a matrix: its runs in one process each, distributed, and each of its cells as a run of its own."""

import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from deploy.bench.harness import to_stderr
from deploy.bench.processes import start_matrix
from deploy.matrix.expand import MatrixConfig, MatrixRun, expand, load_matrix
from deploy.run.child import end_runs, start_run, why_failed
from shared.errors import RunFailed

STOP_GRACE_S = 60.0
# A cell takes a minute on a CPU.
DEFAULT = {
    "envs": ["point_u_maze"],
    "collector_depths": [4, 16],
    "learner_depths": [4, 16],
    "seeds": [0],
    "experiment": {
        "collector": {"width": 64, "environments": 64, "unroll_length": 50},
        "algorithm": {"batch_size": 256, "windows_per_update": 64, "minibatches_per_update": 48},
        "replay": {"steps_per_environment": 5000, "prefill_steps": 250},
        "evaluation": {"count": 4},
        "budget": {"env_steps": 80_000},
    },
}
# Runs every part in seconds; its figures mean nothing.
QUICK = DEFAULT | {
    "collector_depths": [4],
    "experiment": {
        "env_options": {"episode_length": 20},
        "collector": {"width": 8, "environments": 4, "unroll_length": 5},
        "algorithm": {"batch_size": 16, "windows_per_update": 8, "minibatches_per_update": 4},
        "replay": {"steps_per_environment": 400, "prefill_steps": 40},
        "evaluation": {"count": 1, "episodes": 8},
        "budget": {"env_steps": 400},
    },
}


def bench_matrix_cost(path: Path | None, quick: bool) -> dict[str, Any]:
    """Returns seconds, from the start of the command to its end, of one matrix in three ways.

    `in_process`, `distributed`: `fathom matrix`, where all learners of a collector depth train on its stream.
    `separate`: for each cell and seed one `fathom run` in one process, with a collector of its own and the cell's
    learner alone, one after the other. Each way starts with an empty compilation cache. `ratio`: separate to in
    process. `quick`: a small matrix, and the usual cache.

    Raises ConfigError for a mistake in the matrix, RunFailed if a run fails.
    """
    matrix = load_matrix(path) if path else MatrixConfig.model_validate(QUICK if quick else DEFAULT)
    runs = expand(matrix)
    with tempfile.TemporaryDirectory(prefix="fathom-bench-") as folder:
        seconds = {
            "in_process": _time_matrix(matrix, Path(folder) / "in_process", quick, "--in-process"),
            "distributed": _time_matrix(matrix, Path(folder) / "distributed", quick),
            "separate": _time_cells(runs, Path(folder) / "separate", quick),
        }
    return {
        "env": ", ".join(matrix.envs),
        "runs": len(runs),
        "cells": sum(len(run.experiment.learners) for run in runs),
        **{f"{way}_seconds": taken for way, taken in seconds.items()},
        "ratio": seconds["separate"] / seconds["in_process"],
    }


def _time_matrix(matrix: MatrixConfig, out: Path, quick: bool, *options: str) -> float:
    to_stderr(f"{out.name}: running")
    started = time.monotonic()
    _finish(start_matrix(matrix, out, options, _cache(out, quick)), out)
    return time.monotonic() - started


def _time_cells(runs: list[MatrixRun], folder: Path, quick: bool) -> float:
    folder.mkdir()
    started = time.monotonic()
    for run in _cells(runs):
        to_stderr(f"{folder.name}: {run.name} running")
        run_dir = folder / run.name
        _finish(start_run(run.experiment, run_dir, ["--in-process"], _cache(folder, quick)), run_dir)
    return time.monotonic() - started


def _cells(runs: list[MatrixRun]) -> Iterator[MatrixRun]:
    """Yields a run for each passive learner of `runs`."""
    for run in runs:
        for name, learner in run.experiment.learners.items():
            alone = run.experiment.model_copy(update={"learners": {name: learner}})
            yield run._replace(name=f"{run.name}-{name}", experiment=alone)


def _cache(folder: Path, quick: bool) -> Mapping[str, str]:
    return {} if quick else {"JAX_COMPILATION_CACHE_DIR": f"{folder}-xla"}


def _finish(child: subprocess.Popen, log: Path) -> None:
    """Waits for the end of a child, whose output is beside the folder `log`. Raises RunFailed."""
    try:
        status = child.wait()
    finally:
        end_runs([child], STOP_GRACE_S)
    if reason := why_failed(log, status):
        raise RunFailed(f"{log.name} failed: {reason}")
