"""Plays the final policies of a matrix again: the same episodes in every cell.

Of each environment one seed is shown, the median one by time at goal. Of its last evaluation three episodes are shown,
by time at goal over all cells: the worst, the median and the best.
"""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import jax
import numpy as np
import pyarrow.compute as pc

from collector.evaluator import start_keys
from deploy.render.episode import Episode, Recorder
from deploy.report.records import MatrixRecord, Missing, Trial
from deploy.run.episodes import evaluated_in, read_episodes
from deploy.run.trained import load_trained
from shared.envs.base import GoalEnv
from shared.errors import ConfigError

Cell = tuple[int, int | None]
"""Collector depth and learner depth; None for the collector learner."""

NAMES = "worst", "median", "best"
_UNRANKED = "first", "second", "third"  # names where no table says which episodes are the best
HOLD_STEPS = 40  # shown after the last cell has reached the goal


@dataclass(frozen=True, eq=False)
class Gallery:
    """Behaviours in one environment with one objective.

    `env`: the environment of the evaluation. `shown`: name -> number of the episode in the evaluation. `rows`,
    `columns`: collector depths and learner depths of the grid. `cells`: one episode of each name; a cell that could not
    be played is missing.
    """

    env_id: str
    objective: str
    env: GoalEnv
    seed: int
    shown: Mapping[str, int]
    rows: Sequence[int]
    columns: Sequence[int | None]
    cells: Mapping[Cell, Sequence[Episode]]

    @property
    def name(self) -> str:
        """Name for files and elements of the page."""
        return f"{self.env_id}-{self.objective}".replace(":", ".")

    @property
    def all_episodes(self) -> list[Episode]:
        return [episode for cell in self.cells.values() for episode in cell]

    def episodes(self, name: str) -> dict[Cell, Episode]:
        """Returns the episode of this name in each cell, up to a moment after all have ended or reached the goal."""
        index = [*self.shown].index(name)
        whole = {cell: episodes[index] for cell, episodes in self.cells.items()}
        end = max(_end(episode, self.env.spec.goal_radius) for episode in whole.values())
        return {cell: Episode(*(column[:end] for column in episode)) for cell, episode in whole.items()}


def play_matrix(record: MatrixRecord, say: Callable[[str], None]) -> tuple[list[Gallery], list[Missing]]:
    """Returns the galleries of a matrix, whole or half done, and the parts that cannot be played."""
    galleries: list[Gallery] = []
    missing: list[Missing] = []
    for env_id in record.matrix.envs:
        if trials := [trial for trial in record.trials if trial.env == env_id]:
            seed = median_seed(trials)
            trials = [trial for trial in trials if trial.seed == seed]
            say(f"{env_id}: playing the final policies of {len(trials)} learners of seed {seed}")
            galleries += _galleries(record, trials, missing)
    return galleries, missing


def median_seed(trials: Sequence[Trial]) -> int:
    """Returns the seed with the median mean of time at goal, of those seeds that have the most learners."""
    by_seed = defaultdict(list)
    for trial in trials:
        by_seed[trial.seed].append(trial.final)
    most = max(map(len, by_seed.values()))
    means = sorted((float(np.mean(finals)), seed) for seed, finals in by_seed.items() if len(finals) == most)
    return means[(len(means) - 1) // 2][1]


def choose_episodes(times: np.ndarray, trivial: np.ndarray) -> dict[str, int]:
    """Returns name -> number of the episode. With fewer than three episodes, names are left out from the end.

    Args:
        times: time at goal `[cells, episodes]`; its mean over cells decides.
        trivial: `[episodes]` bool, episodes that start at their goal, which are shown only if there are no others.
    """
    order = np.argsort(times.mean(axis=0), kind="stable")
    order = (order if trivial.all() else order[~trivial[order]]).tolist()
    chosen = dict.fromkeys([order[0], order[len(order) // 2], order[-1]])
    return dict(zip(NAMES, chosen, strict=False))


def _end(episode: Episode, radius: float) -> int:
    """Returns the number of moments that are worth showing."""
    reached = np.flatnonzero(episode.distances < radius)
    return min(len(episode.distances), int(reached[0]) + HOLD_STEPS) if len(reached) else len(episode.distances)


def _galleries(record: MatrixRecord, trials: Sequence[Trial], missing: list[Missing]) -> list[Gallery]:
    """Returns a gallery for each objective that passive learners have; `trials` are of one environment and seed."""
    matrix = record.matrix
    recorder: Recorder | None = None
    shown: dict[str, int] = {}
    played: dict[Trial, list[Episode]] = {}
    for trial in trials:
        try:
            trained = load_trained(record.directory / trial.run, trial.learner)
        except ConfigError as error:
            missing.append(Missing(trial.run, f"behaviour of {trial.learner}", str(error)))
            continue
        episodes = trained.experiment.evaluation.episodes
        if recorder is None:
            recorder = Recorder(trained.envs.evaluation)
            shown = _choose(record, trials, recorder.env.spec.goal_radius, episodes)
        starts = start_keys(trial.seed, trained.updates, episodes)[np.array([*shown.values()])]
        played[trial] = recorder.play(
            trained.policy, trained.params, starts, jax.random.key(trial.seed), chunk=trained.chunk
        )
    if recorder is None:
        return []
    galleries = [
        Gallery(
            env_id=trials[0].env,
            objective=objective,
            env=recorder.env,
            seed=trials[0].seed,
            shown=shown,
            rows=sorted(matrix.collector_depths),
            columns=[*sorted(matrix.learner_depths), None],
            cells={
                (trial.collector_depth, None if trial.active else trial.learner_depth): episodes
                for trial, episodes in played.items()
                if trial.active or trial.objective == objective
            },
        )
        for objective in matrix.objective_keys
    ]
    return [gallery for gallery in galleries if gallery.cells]


def _choose(record: MatrixRecord, trials: Sequence[Trial], goal_radius: float, episodes: int) -> dict[str, int]:
    """Returns those of `episodes` to show, by the tables of the runs; the first three if no table can be read."""
    times: list[np.ndarray] = []
    trivial = np.zeros(0, bool)
    for trial in trials:
        try:
            table = read_episodes(record.directory / trial.run)
        except OSError:  # which the report says already
            continue
        table = evaluated_in(table, None).filter(pc.field("learner") == trial.learner)
        table = table.filter(pc.field("updates") == pc.max(table["updates"]))
        if len(table) == episodes:
            times.append(table["time_at_goal"].to_numpy())
            trivial = table["shortest_path"].to_numpy() < goal_radius
    return choose_episodes(np.array(times), trivial) if times else dict(zip(_UNRANKED, range(episodes), strict=False))
