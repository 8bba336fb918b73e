"""Scores of runs, by algorithm: what rliable and marl-eval compare. S: seeds; M: environments (their tasks)."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from deploy.report.records import Trial
from deploy.report.statistics import Values


@dataclass(frozen=True)
class Algorithm:
    """Learners of one kind in all environments and seeds: a place of the matrix, or collector learners (`active`)."""

    objective: str
    collector_depth: int
    learner_depth: int
    active: bool

    @property
    def name(self) -> str:
        return f"{self.objective}-c{self.collector_depth}-{'active' if self.active else f'd{self.learner_depth}'}"


@dataclass(frozen=True)
class Score(Algorithm):
    """Result of one run. `score`: `time_at_goal` divided by the steps of an episode, in 0..1.

    `last` is the time at goal at the last evaluation, all else the mean over the last five.
    """

    env: str
    seed: int
    score: float
    time_at_goal: float
    last: float
    success_rate: float


Run = TypeVar("Run", Score, Trial)
RunsOf = Mapping[tuple[str, int], Run]  # (environment, seed) -> run of one algorithm


def scored(trials: Iterable[Trial], episode_lengths: Mapping[str, int]) -> list[Trial]:
    """Returns the trials that have a score. `episode_lengths`: environment -> steps of an episode, where known."""
    known = [trial for trial in trials if trial.env in episode_lengths and not math.isnan(trial.final)]
    return sorted(known, key=lambda trial: (trial.env, trial.seed))


def score(trial: Trial, episode_length: int) -> Score:
    return Score(
        **vars(_algorithm(trial)),
        env=trial.env,
        seed=trial.seed,
        score=trial.final / episode_length,
        time_at_goal=trial.final,
        last=trial.last,
        success_rate=trial.success_rate,
    )


def by_algorithm(runs: Iterable[Run]) -> dict[Algorithm, dict[tuple[str, int], Run]]:
    """Returns the runs of each algorithm; depths ascend within an objective, and collector learners come last."""
    found: dict[Algorithm, dict[tuple[str, int], Run]] = {}
    for run in runs:
        found.setdefault(_algorithm(run), {})[run.env, run.seed] = run
    objectives = list(dict.fromkeys(each.objective for each in found))

    def place(each: Algorithm) -> tuple[bool, int, int, int]:
        return each.active, objectives.index(each.objective), each.collector_depth, each.learner_depth

    return {each: found[each] for each in sorted(found, key=place)}


def common(*algorithms: RunsOf[Run]) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """Returns the environments that all algorithms have, and the seeds that all have in each of these."""
    envs = set.intersection(*({env for env, _ in runs} for runs in algorithms))
    seeds = [{seed for held, seed in runs if held == env} for runs in algorithms for env in envs]
    return tuple(sorted(envs)), tuple(sorted(set.intersection(*seeds))) if seeds else ()


def score_matrix(runs: RunsOf[Score], envs: Iterable[str], seeds: Iterable[int]) -> Values:
    """Returns scores `[S, M]`."""
    return np.array([[runs[env, seed].score for env in envs] for seed in seeds])


def _algorithm(run: Score | Trial) -> Algorithm:
    return Algorithm(run.objective, run.collector_depth, run.learner_depth, run.active)
