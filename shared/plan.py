"""Plan of a run: the numbers that follow from an experiment and its environment."""

import math

from shared.config import Experiment
from shared.envs.base import EnvSpec
from shared.errors import ConfigError
from shared.values import Frozen


class Plan(Frozen):
    """Numbers of a run; counts are totals of the whole run, windows and updates those of one learner.

    Training starts once `prefill_windows` are inserted. From then on, learners train on `samples_per_insert` windows
    for each window inserted.
    """

    unroll_length: int  # T
    environments: int  # N, over all collectors
    window_length: int  # W
    chunks_per_window: int  # K
    unrolls: int  # of each collector
    max_windows: int
    prefill_windows: int  # M, min_size_to_sample
    error_buffer: int  # E, in samples
    samples_per_insert: float
    windows_per_update: int  # B
    minibatches_per_update: int
    batch_size: int
    evaluations: int
    snapshots: int

    @property
    def window_rows(self) -> int:
        return self.chunks_per_window * self.unroll_length

    @property
    def env_steps(self) -> int:
        return self.unrolls * self.environments * self.unroll_length

    @property
    def windows(self) -> int:
        return self.windows_after(self.unrolls)

    def windows_after(self, unrolls: int) -> int:
        """Returns the windows inserted when every collector has made `unrolls` unrolls."""
        return max(unrolls - self.chunks_per_window + 1, 0) * self.environments

    @property
    def stored_unrolls(self) -> int:
        """Newest unrolls of each collector, which hold all windows in replay."""
        return self.max_windows // self.environments + self.chunks_per_window - 1

    @property
    def updates(self) -> int:
        return self.updates_after(self.windows)

    def updates_after(self, windows: int) -> int:
        """Returns the updates that each learner owes when `windows` windows are inserted."""
        due = self.samples_per_insert * max(windows - self.prefill_windows, 0)
        return math.floor(due / self.windows_per_update + 1e-9)

    def env_steps_at(self, updates: int) -> int:
        """Returns the environment steps, over all environments, that allow a learner `updates` updates."""
        if updates == 0:
            return 0
        windows = self.prefill_windows + updates * self.windows_per_update / self.samples_per_insert
        unrolls = math.ceil(windows / self.environments) + self.chunks_per_window - 1
        return unrolls * self.environments * self.unroll_length

    @property
    def gradient_steps(self) -> int:
        return self.updates * self.minibatches_per_update

    @property
    def evaluation_updates(self) -> tuple[int, ...]:
        """Update counts at which every learner is evaluated, with 0 and the last."""
        count = min(self.evaluations, self.updates)
        return tuple(round(self.updates * i / count) for i in range(count + 1))

    @property
    def snapshot_updates(self) -> tuple[int, ...]:
        """Update counts of the learners in the snapshots, without 0 and the last."""
        parts = self.snapshots + 1
        return tuple(sorted({round(self.updates * i / parts) for i in range(1, parts)} - {0, self.updates}))


def chunks_per_window(window_length: int, unroll_length: int) -> int:
    """Returns K: so many chunks hold a window at each of the offsets that the learner crops at."""
    return math.ceil((window_length + unroll_length - 1) / unroll_length)


def make_plan(experiment: Experiment, spec: EnvSpec) -> Plan:
    """Returns a run's plan. Raises ConfigError if its numbers contradict each other, with the field to change."""
    collector, algorithm, replay = experiment.collector, experiment.algorithm, experiment.replay
    steps, window = collector.unroll_length, spec.episode_length
    environments = collector.actors * collector.environments
    chunks = chunks_per_window(window, steps)
    stored_unrolls = replay.steps_per_environment // steps
    rows = algorithm.windows_per_update * (window - 1)
    wanted = algorithm.minibatches_per_update * algorithm.batch_size
    if algorithm.batch_size > rows:
        raise ConfigError(
            f"algorithm.batch_size: {algorithm.batch_size} is more than the {rows} rows of an update "
            f"({algorithm.windows_per_update} windows of {window - 1}); use at most {rows}, "
            "or raise algorithm.windows_per_update"
        )
    if wanted > rows:
        raise ConfigError(
            f"algorithm.minibatches_per_update: {algorithm.minibatches_per_update} minibatches of "
            f"{algorithm.batch_size} need {wanted} rows, an update has {rows}; use at most "
            f"{rows // algorithm.batch_size}, or raise algorithm.windows_per_update"
        )
    if replay.sampling == "every_environment" and algorithm.windows_per_update % environments:
        raise ConfigError(
            f"replay.sampling: every_environment takes equally many windows of all {environments} environments, and an "
            f"update has {algorithm.windows_per_update}; set algorithm.windows_per_update to a multiple of "
            f"{environments}"
        )
    # Twice the room for every collector's unroll and every learner's request; with less, they could block each other.
    samples_per_insert = replay.samples_per_insert
    error_buffer = 2 * math.ceil(environments * samples_per_insert) + 2 * algorithm.windows_per_update
    prefill_unrolls = max(math.ceil(replay.prefill_steps / steps) - chunks + 1, 1)
    # The limiter needs E <= M * spi, or samples overtake inserts; and M <= max_size, or sampling never starts.
    prefill = max(prefill_unrolls * environments, math.ceil(error_buffer / samples_per_insert))
    max_windows = max(stored_unrolls - chunks + 1, 0) * environments
    if prefill > max_windows:
        fits = (math.ceil(prefill / environments) + chunks - 1) * steps
        raise ConfigError(
            f"replay.steps_per_environment: {replay.steps_per_environment} steps hold {max_windows} windows of "
            f"{chunks} chunks of {steps} steps (episodes of {window}), training starts at {prefill}; "
            f"use at least {fits}"
        )
    plan = Plan(
        unroll_length=steps,
        environments=environments,
        window_length=window,
        chunks_per_window=chunks,
        unrolls=math.ceil(experiment.budget.env_steps / (environments * steps)),
        max_windows=max_windows,
        prefill_windows=prefill,
        error_buffer=error_buffer,
        samples_per_insert=samples_per_insert,
        windows_per_update=algorithm.windows_per_update,
        minibatches_per_update=algorithm.minibatches_per_update,
        batch_size=algorithm.batch_size,
        evaluations=experiment.evaluation.count,
        snapshots=experiment.snapshots.count,
    )
    if plan.updates < 1:
        windows = prefill + math.ceil(algorithm.windows_per_update / samples_per_insert)
        needed = (math.ceil(windows / environments) + chunks - 1) * environments * steps
        raise ConfigError(
            f"budget.env_steps: {experiment.budget.env_steps} steps end before the first update; use at least {needed}"
        )
    return plan
