"""Speed and waits of a whole short run, distributed and in one process, as `fathom run` starts it."""

import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from deploy.bench.harness import to_stderr
from deploy.mode import Mode
from deploy.run.child import end_runs, start_run, why_failed
from shared.config import Experiment
from shared.config_file import load_experiment, parse_experiment
from shared.errors import ConfigError, RunFailed
from shared.metrics import Row, read_metrics
from shared.roles import learner_role, source_roles

STOP_GRACE_S = 30.0  # a run ends itself in less
PLENTIFUL = 0.1  # share of its time that a collector waits for room in replay, if learners limit the run
# One gradient step of the learner is cheap, but 48 take longer than an unroll and its insert, so that data are
# plentiful on a CPU. An accelerator needs more; `data_plentiful` says if they were enough.
DEFAULT = {
    "env": "point_u_maze",
    "collector": {"depth": 4, "width": 256, "environments": 512, "unroll_length": 62},
    "algorithm": {"batch_size": 256, "windows_per_update": 512, "minibatches_per_update": 48},
    "replay": {"steps_per_environment": 5000, "prefill_steps": 250},
    "evaluation": {"count": 1, "episodes": 16},
    "snapshots": {"count": 1},
    "budget": {"env_steps": 31_744 * 27},
}
# Runs every part of a run in seconds; its figures mean nothing.
QUICK = DEFAULT | {
    "env_options": {"episode_length": 40},
    "collector": {"depth": 4, "width": 16, "environments": 64, "unroll_length": 20},
    "algorithm": {"batch_size": 64, "windows_per_update": 64, "minibatches_per_update": 8},
    "replay": {"steps_per_environment": 1000, "prefill_steps": 60},
    "evaluation": {"count": 1, "episodes": 8},
    "budget": {"env_steps": 64 * 20 * 24},
}
_WAITS = {
    "collector_waiting_replay_full": "wait/replay full",
    "collector_waiting_weights": "wait/weights",
    "learner_waiting_replay_starved": "wait/replay starved",
    "learner_waiting_publish": "wait/publish",
    "learner_waiting_keeping_its_state": "wait/keeping its state",
}
MODES = (Mode.DISTRIBUTED, Mode.IN_PROCESS)
# Figures of both modes together, and of a collector with a replay server.
_COMPARED = (
    "faster",
    "speedup",
    "learner_waiting_share",
    "data_plentiful",
    "policy_steps_per_second",
    "collector_steps_per_second",
    "collector_ratio",
)


def bench_end_to_end(path: Path | None, quick: bool, repeats: int, modes: Sequence[str] = MODES) -> dict[str, Any]:
    """Returns `{"rows": [...], "faster", "speedup", "learner_waiting_share", "data_plentiful", ...}`.

    Sizes of the experiment come first; `budget` is in environment steps.

    `rows`, one for each of `modes`, `distributed` and `in_process`: all run the same experiment, each as a process of
    its own with an empty compilation cache. (`quick`: a small experiment and the usual cache.) Figures of the steady
    state between the first update and the last: `env_steps_per_second` of all collectors while they collect;
    `gradient_steps_per_second` of all learners together; shares of time spent in each wait, means over collectors or
    learners, None in one process, where no role waits; `learner_updating`, the share spent in updates.
    `seconds_to_first_update`: from the start of the process until every learner has made its first update.
    `wall_seconds`: from the start of the process to its end.

    `speedup`: gradient steps a second, distributed to in process. `learner_waiting_share`: greatest share of time that
    a learner waits for data. It is a property of the system only if the limiter does not hold the learner back, so the
    default experiment makes gradient steps the bottleneck. `data_plentiful`: true if they were, so that collectors
    waited for room. `collector_ratio` and its two rates: see `bench_collector`; the limiter does not hold back there.
    These figures, `faster` and `speedup` are None unless both modes are measured. `in_process` alone needs neither Ray
    nor Reverb.

    Raises ConfigError for a mistake in the experiment, RunFailed if a run fails.
    """
    experiment = load_experiment(path) if path else parse_experiment(QUICK if quick else DEFAULT)
    if experiment.stream:
        raise ConfigError(f"{path}: stream: nothing collects here; name an experiment with collectors")
    with tempfile.TemporaryDirectory(prefix="fathom-bench-") as folder:
        rows = []
        for mode in (mode for mode in MODES if mode in modes):
            to_stderr(f"{mode}: running")
            # Each mode compiles anew, since the second one would otherwise load what the first has compiled.
            cache = None if quick else Path(folder) / f"{mode}-xla"
            rows.append(_run(Path(folder), mode, experiment, cache))
    both = len(rows) == len(MODES)
    return {
        "env": experiment.env,
        "num_envs": experiment.collector.actors * experiment.collector.environments,
        "depth": experiment.collector.depth,
        "width": experiment.collector.width,
        "batch": experiment.algorithm.batch_size,
        "minibatches": experiment.algorithm.minibatches_per_update,
        "budget": experiment.budget.env_steps,
        "rows": rows,
        **(_compare(experiment, rows, repeats) if both else dict.fromkeys(_COMPARED)),
    }


def _compare(experiment: Experiment, rows: Sequence[Row], repeats: int) -> dict[str, Any]:
    """Returns the figures `_COMPARED`; `rows`: of the distributed run and of the one in process."""
    from deploy.bench.rollout import bench_collector  # only now: JAX may take the device for this process
    from shared.envs.registry import make_envs

    distributed, in_process = rows
    speedup = distributed["gradient_steps_per_second"] / in_process["gradient_steps_per_second"]
    return {
        "faster": Mode.DISTRIBUTED if speedup > 1 else Mode.IN_PROCESS,
        "speedup": speedup,
        "learner_waiting_share": distributed["learner_waiting_replay_starved_most"],
        "data_plentiful": distributed["collector_waiting_replay_full"] > PLENTIFUL,
        **bench_collector(experiment, make_envs(experiment).training, repeats),
    }


def _run(folder: Path, mode: Mode, experiment: Experiment, cache: Path | None) -> dict[str, Any]:
    """Runs `fathom run` in a session of its own and returns its row, from its metrics files.

    Raises RunFailed with the run's error, or if the run has no steady state.
    """
    run_dir = folder / mode
    options = ["--in-process"] if mode is Mode.IN_PROCESS else []
    started = time.time()
    child = start_run(experiment, run_dir, options, {"JAX_COMPILATION_CACHE_DIR": str(cache)} if cache else {})
    try:
        status = child.wait()
    finally:
        end_runs([child], STOP_GRACE_S)
    wall_seconds = time.time() - started
    if reason := why_failed(run_dir, status):
        raise RunFailed(f"the {mode.replace('_', '-')} run failed: {reason}")
    learners = [read_metrics(run_dir, learner_role(name)) for name in experiment.all_learners]
    collectors = [read_metrics(run_dir, role) for role in source_roles(experiment)]
    first = max(rows[0]["time"] for rows in learners)
    last = min(rows[-1]["time"] for rows in learners)
    learners = [within(rows, first, last) for rows in learners]
    collectors = [within(rows, first, last) for rows in collectors]
    if min(map(len, (*learners, *collectors))) < 2:
        raise RunFailed("the run is too short for a steady state; raise budget.env_steps")
    waits: dict[str, float | None] = dict.fromkeys((*_WAITS, "learner_waiting_replay_starved_most"))
    if mode is Mode.DISTRIBUTED:
        for figure, wait in _WAITS.items():
            shares = [share(rows, wait) for rows in (collectors if figure.startswith("collector") else learners)]
            waits[figure] = statistics.fmean(shares)
            if wait == "wait/replay starved":
                waits["learner_waiting_replay_starved_most"] = max(shares)
    return {
        "mode": mode,
        "env_steps_per_second": sum(rate(rows, "env_steps") for rows in collectors),
        "gradient_steps_per_second": sum(rate(rows, "gradient_steps") for rows in learners),
        "seconds_to_first_update": first - started,
        "wall_seconds": wall_seconds,
        **waits,
        "learner_updating": statistics.fmean(
            sum(row["update_seconds"] for row in rows[1:]) / (rows[-1]["time"] - rows[0]["time"]) for rows in learners
        ),
    }


def within(rows: list[Row], first: float, last: float) -> list[Row]:
    """Returns the rows written from `first` to `last`, seconds since the epoch, both included."""
    return [row for row in rows if first <= row["time"] <= last]


def rate(rows: list[Row], count: str) -> float:
    """Returns the growth of `count` a second between the first and the last of two or more rows."""
    return (rows[-1][count] - rows[0][count]) / (rows[-1]["time"] - rows[0]["time"])


def share(rows: list[Row], wait: str) -> float:
    """Returns the share of `wait` in the time after the first of two or more rows."""
    waited_s = sum(row.get(wait, 0.0) * row["seconds"] for row in rows[1:])
    return waited_s / sum(row["seconds"] for row in rows[1:])
