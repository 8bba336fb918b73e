"""A whole short run, distributed and in one process, as `fathom run` starts it: speed, and who waits for whom."""

import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from deploy.mode import Mode
from shared.config import Experiment
from shared.config_file import load_experiment, parse_experiment
from shared.errors import ConfigError, RunFailed
from shared.metrics import Row, read_metrics
from shared.roles import learner_role, source_roles

STOP_GRACE_S = 30.0  # a run's own ways of ending take less
PLENTIFUL = 0.1  # of its time a collector waits for room in replay: then learners are what limits the run
_LAST_WORD = "fathom: "
# A gradient step of the learner is cheap, 48 of them are not: they take longer than an unroll and its insert, so data
# are plentiful on a CPU. An accelerator needs more of them; `data_plentiful` says whether they were enough.
DEFAULT = {
    "env": "point_u_maze",
    "collector": {"depth": 4, "width": 256, "environments": 512, "unroll_length": 62},
    "algorithm": {"batch_size": 256, "windows_per_update": 512, "minibatches_per_update": 48},
    "replay": {"steps_per_environment": 5000, "prefill_steps": 250},
    "evaluation": {"count": 1, "episodes": 16},
    "snapshots": {"count": 1},
    "budget": {"env_steps": 31_744 * 27},
}
# Every part of the above in seconds; its figures say nothing.
QUICK = {
    "env": "point_u_maze",
    "env_options": {"episode_length": 40},
    "collector": {"depth": 4, "width": 16, "environments": 64, "unroll_length": 20},
    "algorithm": {"batch_size": 64, "windows_per_update": 64, "minibatches_per_update": 32},
    "replay": {"steps_per_environment": 1000, "prefill_steps": 60},
    "evaluation": {"count": 1, "episodes": 8},
    "snapshots": {"count": 1},
    "budget": {"env_steps": 64 * 20 * 40},
}
_WAITS = {
    "collector_waiting_replay_full": "wait/replay full",
    "collector_waiting_weights": "wait/weights",
    "learner_waiting_replay_starved": "wait/replay starved",
    "learner_waiting_publish": "wait/publish",
    "learner_waiting_keeping_its_state": "wait/keeping its state",
}


class _Ran(NamedTuple):
    """A run that is done. `started`: seconds since the epoch; `seconds`: of its process, from start to end."""

    run_dir: Path
    started: float
    seconds: float


def bench_end_to_end(
    path: Path | None, quick: bool = False, repeats: int = 5, say: Callable[[str], None] = lambda text: None
) -> dict[str, Any]:
    """`{"rows": [...], "faster", "speedup", "learner_waiting_share", "data_plentiful", "collector_ratio", ...}`.

    With the experiment's sizes; `budget` in environment steps.

    A row for each mode, `distributed` and `in_process`; both run the same experiment, each as a process of its
    own with an empty compilation cache (`quick`: a small experiment, and whatever was compiled before). Of the
    steady state, which lies between the first update and the last: `env_steps_per_second` of all collectors while
    they collect, `gradient_steps_per_second` of all learners together; shares of time waited by what for, means
    over collectors and learners (None in one process, where nobody waits), and `learner_updating`, the share spent
    in updates. `seconds_to_first_update`: from the process's start until every learner has made its first update.
    `wall_seconds`: from its start to its end.

    `speedup`: gradient steps a second, distributed over in process. `learner_waiting_share`: share of its time
    that the learner which waits most waits for data. It is a property of the system only where the limiter does
    not bind the learner, so the default experiment makes gradient steps the bottleneck; `data_plentiful`: whether
    they were, so that collectors waited for room. `collector_ratio` and the rates it is made of: see
    `bench_collector`; the limiter does not bind there.

    Raises ConfigError for a mistake in the experiment, RunFailed where a run fails.
    """
    experiment = load_experiment(path) if path else parse_experiment(QUICK if quick else DEFAULT)
    if experiment.stream:
        raise ConfigError(f"{path}: stream: nothing collects here; name an experiment with collectors")
    with tempfile.TemporaryDirectory(prefix="fathom-bench-") as folder:
        rows = []
        for mode in (Mode.DISTRIBUTED, Mode.IN_PROCESS):  # JAX is not used here before: each gets the whole device
            say(f"{mode}: running")
            # Compiled anew by each mode, or the second would start with what the first has compiled.
            cache = None if quick else Path(folder) / f"{mode}-xla"
            rows.append(_describe(mode, experiment, _run(Path(folder), mode, experiment, cache)))
    return {**_settings(experiment), "rows": rows, **_compare(*rows), **_collector(experiment, repeats)}


def _settings(experiment: Experiment) -> dict[str, Any]:
    return {
        "env": experiment.env,
        "num_envs": experiment.collector.actors * experiment.collector.environments,
        "depth": experiment.collector.depth,
        "width": experiment.collector.width,
        "batch": experiment.algorithm.batch_size,
        "minibatches": experiment.algorithm.minibatches_per_update,
        "budget": experiment.budget.env_steps,
    }


def _compare(distributed: dict[str, Any], in_process: dict[str, Any]) -> dict[str, Any]:
    speedup = distributed["gradient_steps_per_second"] / in_process["gradient_steps_per_second"]
    return {
        "faster": Mode.DISTRIBUTED if speedup > 1 else Mode.IN_PROCESS,
        "speedup": speedup,
        "learner_waiting_share": distributed["learner_waiting_replay_starved_most"],
        "data_plentiful": distributed["collector_waiting_replay_full"] > PLENTIFUL,
    }


def _collector(experiment: Experiment, repeats: int) -> dict[str, float]:
    from deploy.bench.rollout import bench_collector
    from shared.envs.registry import make_envs

    return bench_collector(experiment, make_envs(experiment).training, repeats)


def _run(folder: Path, mode: Mode, experiment: Experiment, cache: Path | None) -> _Ran:
    """`fathom run` in a session of its own; `cache`: its compilation cache. Raises RunFailed with its last word."""
    file, log, run_dir = folder / f"{mode}.yaml", folder / f"{mode}.log", folder / mode
    file.write_text(yaml.safe_dump(experiment.model_dump(mode="json"), sort_keys=False), encoding="utf-8")
    command = [sys.executable, "-m", "deploy.cli", "run", str(file), "--run-dir", str(run_dir)]
    command += ["--in-process"] * (mode is Mode.IN_PROCESS)
    started = time.time()
    with open(log, "w", encoding="utf-8") as output:
        child = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
            env={**os.environ, **({"JAX_COMPILATION_CACHE_DIR": str(cache)} if cache else {})},
        )
        try:
            status = child.wait()
        finally:
            _end(child)
    seconds = time.time() - started
    if status:
        words = [line for line in log.read_text(errors="replace").splitlines() if line.startswith(_LAST_WORD)]
        reason = words[-1].removeprefix(_LAST_WORD) if words else f"exit status {status}"
        raise RunFailed(f"the {mode.replace('_', '-')} run failed: {reason}")
    return _Ran(run_dir, started, seconds)


def _end(child: subprocess.Popen) -> None:
    """In order, as Ctrl-C does; then for good."""
    if child.poll() is not None:
        return
    child.send_signal(signal.SIGINT)
    try:
        child.wait(STOP_GRACE_S)
    except subprocess.TimeoutExpired:
        os.killpg(child.pid, signal.SIGKILL)
        child.wait()


def _describe(mode: Mode, experiment: Experiment, ran: _Ran) -> dict[str, Any]:
    """A row of the result, from the run's metrics files. Raises RunFailed where there is no steady state."""
    learners = [read_metrics(ran.run_dir, learner_role(name)) for name in experiment.all_learners]
    collectors = [read_metrics(ran.run_dir, role) for role in source_roles(experiment)]
    first = max(rows[0]["time"] for rows in learners)
    last = min(rows[-1]["time"] for rows in learners)
    learners = [within(rows, first, last) for rows in learners]
    collectors = [within(rows, first, last) for rows in collectors]
    if min(map(len, (*learners, *collectors))) < 2:
        raise RunFailed("the run is too short for a steady state; raise budget.env_steps")
    waits = dict.fromkeys((*_WAITS, "learner_waiting_replay_starved_most"), None) | (
        _waiting(collectors, learners) if mode is Mode.DISTRIBUTED else {}
    )
    return {
        "mode": mode,
        "env_steps_per_second": sum(rate(rows, "env_steps") for rows in collectors),
        "gradient_steps_per_second": sum(rate(rows, "gradient_steps") for rows in learners),
        "seconds_to_first_update": first - ran.started,
        "wall_seconds": ran.seconds,
        **waits,
        "learner_updating": statistics.fmean(_share_of_updates(rows) for rows in learners),
    }


def _waiting(collectors: Sequence[list[Row]], learners: Sequence[list[Row]]) -> dict[str, float]:
    """Shares of time by figure, means over the roles of a kind; `..._most`: of the one with the largest."""
    shares = {
        figure: [share(rows, wait) for rows in (collectors if figure.startswith("collector") else learners)]
        for figure, wait in _WAITS.items()
    }
    starved = "learner_waiting_replay_starved"
    return {figure: statistics.fmean(each) for figure, each in shares.items()} | {
        f"{starved}_most": max(shares[starved])
    }


def within(rows: list[Row], first: float, last: float) -> list[Row]:
    """Rows written from `first` to `last`, seconds since the epoch, both included."""
    return [row for row in rows if first <= row["time"] <= last]


def rate(rows: list[Row], count: str) -> float:
    """Growth of `count` a second from the first of two or more rows to the last."""
    return (rows[-1][count] - rows[0][count]) / (rows[-1]["time"] - rows[0]["time"])


def share(rows: list[Row], wait: str) -> float:
    """Share of the time after the first of two or more rows that was spent in `wait`."""
    seconds = [row["seconds"] for row in rows[1:]]
    waited = [row.get(wait, 0.0) * row["seconds"] for row in rows[1:]]
    return sum(waited) / sum(seconds)


def _share_of_updates(rows: list[Row]) -> float:
    """Seconds in updates over seconds gone by, after the first of two or more rows."""
    return sum(row["update_seconds"] for row in rows[1:]) / (rows[-1]["time"] - rows[0]["time"])
