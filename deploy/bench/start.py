"""Start of a run: seconds from the command to the first update, by phase and role, with and without a warm cache."""

import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from deploy.bench.harness import to_stderr
from deploy.bench.processes import start_matrix
from deploy.matrix.expand import MatrixConfig, expand
from deploy.run.child import end_runs, start_run, why_failed
from shared.config import Experiment
from shared.config_file import load_experiment
from shared.errors import RunFailed
from shared.metrics import Row, read_metrics
from shared.roles import learner_roles

STOP_GRACE_S = 60.0
LONGEST_S = 3600.0
POLL_S = 0.1
RUN = "run"  # the role of the row about the whole run


class Start(NamedTuple):
    """A start's figures, and the rows of `metrics/start.jsonl`."""

    figures: dict[str, float]
    roles: list[Row]


def bench_start(path: Path, modes: Sequence[str], repeats: int) -> dict[str, Any]:
    """Returns `{"env", "rows", "details"}`. Each start is a `fathom run` that ends after its learners' first updates.

    `rows`, one for each start in `modes`: `in_process_cold`, `in_process_warm`, `distributed_cold`, `distributed_warm`,
    and `matrix_second`, the second of two distributed runs of a matrix which differ by their seed. `cold`: with an
    empty compilation cache, once; `warm`: with what the cold start has compiled, the median of `repeats`. `seconds`:
    from the start of the command to the first update of any learner; `seconds_of_all`: to the first of every learner.
    The seconds of the run's phases until the first update follow. `details`: each role's own start.

    Raises ConfigError for a mistake in the experiment, RunFailed if a run fails.
    """
    experiment = load_experiment(path)
    starts: dict[str, Start] = {}
    with tempfile.TemporaryDirectory(prefix="fathom-bench-") as folder:
        for mode in ("in_process", "distributed"):
            if mode in modes or ("matrix" in modes and mode == "distributed"):
                options = ["--in-process"] * (mode == "in_process")
                environ = {"JAX_COMPILATION_CACHE_DIR": f"{folder}/{mode}-xla"}
                cold = _start(experiment, Path(folder) / f"{mode}-cold", options, environ)
                if mode in modes:
                    warm = [
                        _start(experiment, Path(folder) / f"{mode}-warm-{n}", options, environ) for n in range(repeats)
                    ]
                    starts |= {f"{mode}_cold": cold, f"{mode}_warm": _median(warm)}
        if "matrix" in modes:
            starts["matrix_second"] = _second_start(experiment, Path(folder), environ)
    return {
        "env": experiment.env,
        "rows": [{"start": name, **start.figures} for name, start in starts.items()],
        "details": {name: start.roles for name, start in starts.items()},
    }


def _median(starts: Sequence[Start]) -> Start:
    return sorted(starts, key=lambda start: start.figures["seconds"])[len(starts) // 2]


def _start(experiment: Experiment, run_dir: Path, options: Sequence[str], environ: Mapping[str, str]) -> Start:
    to_stderr(f"{run_dir.name}: running")
    started = time.time()
    child = start_run(experiment, run_dir, options, environ)
    try:
        return _await_updates(child, experiment, run_dir, run_dir, started)
    finally:
        end_runs([child], STOP_GRACE_S)


def _second_start(experiment: Experiment, folder: Path, environ: Mapping[str, str]) -> Start:
    """Executes a matrix of two seeds until the learners of the second run have made their first updates."""
    to_stderr("matrix_second: running")
    matrix, out = _as_matrix(experiment), folder / "matrix"
    _, second = expand(matrix)
    child = start_matrix(matrix, out, ["--parallel", "1"], environ)
    try:
        return _await_updates(child, second.experiment, out / second.name, out)
    finally:
        end_runs([child], STOP_GRACE_S)


def _as_matrix(experiment: Experiment) -> MatrixConfig:
    """Returns a matrix of one cell for each learner depth of `experiment`, with two seeds."""
    values = experiment.model_dump(mode="json", exclude_defaults=True)
    depths = {learner.depth for learner in experiment.learners.values()} or {experiment.collector.depth}
    for key in ("env", "learners", "seed"):
        values.pop(key, None)
    values["collector"].pop("depth", None)
    axes = {"collector_depths": [experiment.collector.depth], "learner_depths": sorted(depths), "seeds": [0, 1]}
    return MatrixConfig.model_validate({"envs": [experiment.env], **axes, "experiment": values})


def _await_updates(
    child: subprocess.Popen, experiment: Experiment, run_dir: Path, log: Path, started: float | None = None
) -> Start:
    """Waits for the first update of every learner.

    Args:
        child: the process whose end is a failure.
        log: folder beside which the output of `child` is.
        started: seconds since 1970 when the command started; none: when the run's experiment was written.

    Raises RunFailed.
    """
    deadline = time.monotonic() + LONGEST_S
    roles = learner_roles(experiment)
    while not all(rows := [read_metrics(run_dir, role)[:1] for role in roles]):
        if (status := child.poll()) is not None:
            raise RunFailed(f"{run_dir.name} failed: {why_failed(log, status) or 'it ended before its first update'}")
        if time.monotonic() > deadline:
            raise RunFailed(f"{run_dir.name}: no update within {LONGEST_S:g} s")
        time.sleep(POLL_S)
    began = started or run_dir.with_name(f"{run_dir.name}.yaml").stat().st_mtime
    times = [row["time"] - began for (row,) in rows]
    time.sleep(1.0)  # for the last row about the start
    starts = read_metrics(run_dir, "start")
    phases = {name: value for row in starts if row["role"] == RUN for name, value in row.items() if "phase/" in name}
    return Start({"seconds": min(times), "seconds_of_all": max(times), **phases}, starts)
