"""Gradient steps that are not finite: what is kept of them, and when they end a run."""

import json
from functools import partial
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from learner.relabel import Transitions
from learner.update import WATCHED, make_steps
from shared.config import AlgorithmConfig
from shared.envs.base import EnvSpec
from shared.plan import Plan
from shared.replay.codec import Columns
from shared.types import Array, Metrics

MAX_REPORTS = 5  # of a learner, restarts included: one that diverged must not fill the disk


class NonFiniteError(RuntimeError):
    """Training cannot go on. One line: where it ended, where the report lies, and what to change."""


class NonFinite(NamedTuple):
    """The first gradient step of an update that was left out; `update` and `step` are counted from 1.

    `steps`: gradient steps of the update. `skipped`: those left out. `not_finite`: what of the step was not,
    and whether it was nan or inf.
    """

    learner: str
    update: int
    step: int
    steps: int
    skipped: int
    not_finite: dict[str, str]


class Guard:
    """Looks at every update of one learner; costs nothing while all is finite."""

    def __init__(
        self, algorithm: AlgorithmConfig, plan: Plan, spec: EnvSpec, learner: str, reports: Path | None
    ) -> None:
        self._mode = algorithm.non_finite
        self._steps = plan.minibatches_per_update
        self._learner = learner
        self._reports = reports
        self._minibatch = jax.jit(partial(minibatch_of, plan=plan, spec=spec, discount=algorithm.discount))

    def check(self, update: int, metrics: Metrics, windows: Columns, key: np.ndarray) -> Metrics:
        """`metrics` of `update` (counted from 1), without what is meant for the guard alone.

        `windows` are the update's, `key` is the data of the learner's key before it. Writes a report where a
        step was left out. Raises NonFiniteError where the configuration says so or no step was finite.
        """
        row = dict(metrics)
        first, watched = int(row.pop("guard/first")), row.pop("guard/watched")
        if first < 0:
            return row
        values = dict(zip(WATCHED, np.asarray(watched).tolist(), strict=True))
        not_finite = {name: str(value) for name, value in values.items() if not np.isfinite(value)}
        found = NonFinite(self._learner, update, first + 1, self._steps, int(row["guard/skipped"]), not_finite)
        report = self._report(found, windows, key)
        if self._mode == "end" or found.skipped == found.steps:
            raise NonFiniteError(explain(found, report))
        return row

    def _report(self, found: NonFinite, windows: Columns, key: np.ndarray) -> str:
        """Where the report lies, or why there is none: a run is worth more than its report."""
        if self._reports is None:
            return "none (no folder for reports)"
        if count_reports(self._reports, self._learner) >= MAX_REPORTS:
            return f"none ({self._reports} holds {MAX_REPORTS} of this learner)"
        try:
            return str(write_report(self._reports, found, self._minibatch(windows, key, found.step - 1)))
        except OSError as error:
            return f"none ({self._reports}: {error.strerror})"


def minibatch_of(
    windows: Columns, key: Array, index: Array, *, plan: Plan, spec: EnvSpec, discount: float
) -> Transitions:
    """The minibatch `[B, ...]` of gradient step `index` (counted from 0) of the update that began with `key`.

    `key`: a key's data, as the update consumed it.
    """
    steps = make_steps(windows, plan, spec, discount, jax.random.wrap_key_data(jnp.asarray(key)))
    return steps.minibatch(steps.order[index])


def write_report(folder: Path, found: NonFinite, minibatch: Transitions) -> Path:
    """`non-finite-<learner>-<update>.npz`: `about` (`found`, as JSON), `state` `[B, S]`, `action` `[B, A]`,
    `goal` `[B, G]`; read by `numpy.load`, no pickles. Raises OSError."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{_prefix(found.learner)}{found.update}.npz"
    about = np.array(json.dumps(found._asdict()))
    np.savez(path, about=about, state=minibatch.state, action=minibatch.action, goal=minibatch.goal)
    return path


def count_reports(folder: Path, learner: str) -> int:
    prefix = _prefix(learner)  # of another learner's name, this one's may be the beginning
    return sum(path.stem.removeprefix(prefix).isdigit() for path in folder.glob(f"{prefix}*.npz"))


def _prefix(learner: str) -> str:
    return f"non-finite-{learner}-"


def explain(found: NonFinite, report: str) -> str:
    """One line for the user: what happened, where to look, what to change."""
    what = ", ".join(f"{name} {value}" for name, value in found.not_finite.items())
    remedies = ["lower the learning rate", "set algorithm.max_gradient_norm"]
    if found.skipped < found.steps:  # else leaving such steps out leaves nothing
        remedies.append("use algorithm.non_finite: skip")
    return (
        f"learner {found.learner}: {found.skipped} of {found.steps} gradient steps of update {found.update} are not "
        f"finite, first step {found.step} ({what}); report: {report}; "
        f"{', '.join(remedies[:-1])} or {remedies[-1]}"
    )
