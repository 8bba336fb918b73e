"""Evaluations of a matrix as marl-eval reads them (InstaDeep's tools for plots and tables of several environments)."""

from collections.abc import Iterable, Mapping
from functools import reduce
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deploy.report.records import MatrixRecord, Trial
from deploy.report.scores import by_algorithm, common, scored
from shared.files import replace_file, to_json

SUITE = "fathom"  # marl-eval's name for a family of tasks


def write_marl_eval(record: MatrixRecord, folder: Path) -> list[Path]:
    """Writes `marl_eval.json` in `folder` and returns it, or nothing where it would be empty. Raises OSError."""
    content = marl_eval(record.headline_trials, record.episode_lengths)
    if not content:
        return []
    path = folder / "marl_eval.json"
    replace_file(path, to_json(content, indent=1) + "\n", sync=False)
    return [path]


def marl_eval(trials: Iterable[Trial], episode_lengths: Mapping[str, int]) -> dict[str, Any]:
    """Returns suite -> task -> algorithm -> seed -> step -> metrics. Tasks are Fathom's environments.

    marl-eval needs the same algorithms, seeds, number of steps and metrics everywhere. So algorithms are those of all
    tasks, seeds and evaluations those of all algorithms, and `elapsed_time`, in seconds, is there if it is known of all
    runs. `score`: time at goal divided by the steps of an episode; `absolute_metrics`: means over the last five
    evaluations. Empty if there is no such seed or evaluation.
    """
    known = scored(trials, episode_lengths)
    envs = {trial.env for trial in known}
    runs = {each: held for each, held in by_algorithm(known).items() if {env for env, _ in held} == envs}
    tasks, seeds = common(*runs.values()) if runs else ((), ())
    kept = {env: [held[env, seed] for held in runs.values() for seed in seeds] for env in tasks}
    steps = _common_steps(kept)
    if not seeds or not all(map(len, steps.values())):
        return {}
    timed = not any(np.isnan(trial.seconds).any() for trials in kept.values() for trial in trials)

    def run(trial: Trial) -> dict[str, Any]:
        return _steps(trial, steps[trial.env], episode_lengths[trial.env], timed)

    return {
        SUITE: {
            env: {
                algorithm.name: {f"seed_{seed}": run(held[env, seed]) for seed in seeds}
                for algorithm, held in runs.items()
            }
            for env in tasks
        }
    }


def _common_steps(trials: Mapping[str, list[Trial]]) -> dict[str, NDArray]:
    """Returns the environment steps at which all trials of a task were evaluated, equally many for each task."""
    steps = {env: reduce(np.intersect1d, [trial.steps for trial in held]) for env, held in trials.items() if held}
    count = min(map(len, steps.values()), default=0)
    return {env: each[np.linspace(0, len(each) - 1, count).round().astype(int)] for env, each in steps.items()}


def _steps(trial: Trial, steps: NDArray, episode_length: int, timed: bool) -> dict[str, Any]:
    """Returns the metrics of one run at each of `steps`, and its absolute metrics."""

    def metrics(time_at_goal: float, seconds: float) -> dict[str, Any]:
        values = {"time_at_goal": [float(time_at_goal)], "score": [float(time_at_goal / episode_length)]}
        return values | ({"elapsed_time": float(seconds)} if timed else {})

    chosen = np.searchsorted(trial.steps, steps)
    made = {
        f"step_{index}": {"step_count": int(trial.steps[at]), **metrics(trial.time_at_goal[at], trial.seconds[at])}
        for index, at in enumerate(chosen)
    }
    return made | {"absolute_metrics": metrics(trial.final, trial.seconds[-1])}
