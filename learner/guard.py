"""Guard against gradient steps that are not finite: reports them, and ends training where it must."""

from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from learner.objectives.base import Objective
from learner.update import make_steps
from shared.files import to_json
from shared.plan import Plan
from shared.replay.codec import Columns
from shared.types import Array, Metrics

MAX_REPORTS = 5  # of one learner, restarts included: a learner that diverged must not fill the disk


class NonFiniteError(RuntimeError):
    """Training cannot continue. The message is one line: where training ended, where the report is, what to change."""


class NonFinite(NamedTuple):
    """First skipped gradient step of an update; `update` and `step` count from 1.

    `steps`: gradient steps of the update. `skipped`: skipped steps among them. `not_finite`: the quantities of this
    step that were not finite, and their values (nan or inf).
    """

    learner: str
    update: int
    step: int
    steps: int
    skipped: int
    not_finite: dict[str, str]


class Guard:
    """Checks every update of one learner; costs nothing while all gradient steps are finite.

    Writes reports to the folder `reports`, if given: `non-finite-<learner>-<update>.npz` holds the minibatch `[B, ...]`
    of the first skipped step, such as `state`, `action` and `goal`, and `about`, the `NonFinite` as JSON; `numpy.load`
    reads it without pickles.
    """

    def __init__(self, objective: Objective, plan: Plan, learner: str, reports: Path | None) -> None:
        self._mode, self._watched = objective.algorithm.non_finite, objective.watched
        self._steps = plan.minibatches_per_update
        self._learner = learner
        self._reports = reports
        self._minibatch = jax.jit(partial(minibatch_of, objective, plan=plan))

    def check(self, update: int, metrics: Metrics, windows: Columns, key: np.ndarray) -> Metrics:
        """Returns `metrics` of `update` (counted from 1), without the metrics that only the guard needs.

        `windows` are the update's windows; `key` is the data of the learner's key before the update. Writes a report
        if a step was skipped. Raises NonFiniteError if no step was finite, or if one was not and the configuration says
        `end`.
        """
        row = dict(metrics)
        first, watched = int(row.pop("guard/first")), row.pop("guard/watched")
        if first < 0:
            return row
        values = dict(zip(self._watched, np.asarray(watched).tolist(), strict=True))
        not_finite = {name: str(value) for name, value in values.items() if not np.isfinite(value)}
        found = NonFinite(self._learner, update, first + 1, self._steps, int(row["guard/skipped"]), not_finite)
        report = self._report(found, windows, key)
        if self._mode == "end" or found.skipped == found.steps:
            raise NonFiniteError(_explain(found, report))
        return row

    def _report(self, found: NonFinite, windows: Columns, key: np.ndarray) -> str:
        """Returns the path of the written report, or why there is none: a missing report must not end a run."""
        if self._reports is None:
            return "none (no folder for reports)"
        prefix = f"non-finite-{self._learner}-"  # also begins the files of a learner whose name begins with this name
        if (
            sum(path.stem.removeprefix(prefix).isdigit() for path in self._reports.glob(f"{prefix}*.npz"))
            >= MAX_REPORTS
        ):
            return f"none ({self._reports} holds {MAX_REPORTS} of this learner)"
        path = self._reports / f"{prefix}{found.update}.npz"
        try:
            self._reports.mkdir(parents=True, exist_ok=True)
            minibatch = self._minibatch(windows, key, found.step - 1)
            arrays = {name: array for name, array in minibatch._asdict().items() if array is not None}
            np.savez(path, about=np.array(to_json(found._asdict())), **arrays)
        except OSError as error:
            return f"none ({self._reports}: {error.strerror})"
        return str(path)


def minibatch_of(objective: Objective, windows: Columns, key: Array, index: Array, plan: Plan) -> Any:
    """Returns the minibatch `[B, ...]` of gradient step `index` (from 0) of an update; `key`: see `Guard.check`."""
    steps = make_steps(objective, windows, plan, jax.random.wrap_key_data(jnp.asarray(key)))
    return steps.minibatch(steps.order[index])


def _explain(found: NonFinite, report: str) -> str:
    values = ", ".join(f"{name} {value}" for name, value in found.not_finite.items())
    remedies = ["lower the learning rate", "set algorithm.max_gradient_norm"]
    if found.skipped < found.steps:  # otherwise, skipping leaves no step to train with
        remedies.append("use algorithm.non_finite: skip")
    return (
        f"learner {found.learner}: {found.skipped} of {found.steps} gradient steps of update {found.update} are not "
        f"finite, first step {found.step} ({values}); report: {report}; "
        f"{', '.join(remedies[:-1])} or {remedies[-1]}"
    )
