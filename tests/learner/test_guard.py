import json
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np
import pytest

from learner.guard import MAX_REPORTS, Guard, NonFiniteError
from learner.learner import Learner, _jitted_update
from learner.update import Steps, make_steps
from shared.config import ACTIVE, Experiment
from shared.envs.base import EnvSpec
from shared.plan import make_plan
from shared.replay.codec import Columns
from shared.types import Array

pytestmark = pytest.mark.slow
POISONED = 2  # windows with a NaN, of 32


class Training:
    """Learner with 12 gradient steps an update, compiled once, and windows to train it on."""

    def __init__(self, line: Any, reports: Path) -> None:
        self.experiment: Experiment = line.experiment()
        self.spec: EnvSpec = line.spec
        self.plan = make_plan(self.experiment, line.spec)
        self.reports = reports
        self.learner = Learner(self.experiment, self.plan, self.spec, ACTIVE, reports)
        self.good: Columns = line.windows(0)
        bad = self.good.floats.copy()
        bad[:POISONED, 5, 0] = np.nan  # coordinate 0 is not in goals
        self.bad = self.good._replace(floats=bad)
        self.all_infinite = self.good._replace(floats=np.full_like(bad, np.inf))

    def guarded(self, reports: Path | None, non_finite: Literal["skip", "end"] = "skip") -> Learner:
        """Gives the learner a new guard, and returns the learner."""
        objective = self.learner.kind.objective
        algorithm = objective.algorithm.model_copy(update={"non_finite": non_finite})
        guard = Guard(replace(objective, algorithm=algorithm), self.plan, ACTIVE, reports)
        guard._minibatch = self.learner._guard._minibatch  # already compiled
        self.learner._guard = guard
        return self.learner

    def steps(self, windows: Columns, key: Array) -> Steps:
        make = partial(make_steps, self.learner.kind.objective, plan=self.plan)
        return jax.device_get(jax.jit(make)(windows, key=jax.random.wrap_key_data(key))._replace(keys=(), key=()))


@pytest.fixture(scope="module")
def training(line: Any, tmp_path_factory: pytest.TempPathFactory) -> Training:
    return Training(line, tmp_path_factory.mktemp("run") / "reports")


def key_of(learner: Learner) -> np.ndarray:
    return np.array(jax.random.key_data(learner.state.key))


def trained_arrays(learner: Learner) -> list[np.ndarray]:
    """Returns copies of all arrays that gradient steps change."""
    state = learner.state
    return [np.array(leaf) for leaf in jax.tree.leaves((state.actor, state.critic, state.log_alpha, state.optimisers))]


def equal(one: list[np.ndarray], other: list[np.ndarray]) -> bool:
    return all(np.array_equal(x, y) for x, y in zip(one, other, strict=True))


def test_a_report_holds_the_minibatch_that_was_skipped(training: Training) -> None:
    learner = training.learner
    assert learner.update(training.good)["guard/skipped"] == 0
    assert not training.reports.exists()
    key = key_of(learner)
    row = learner.update(training.bad)
    assert all(np.isfinite(value) for value in row.values())

    steps = training.steps(training.bad, key)
    poisoned = np.flatnonzero(np.isnan(steps.labelled.state[steps.order]).any(axis=(1, 2)))
    assert 1 <= len(poisoned) == row["guard/skipped"] <= POISONED
    (path,) = training.reports.iterdir()
    assert path.name == "non-finite-active-2.npz"
    with np.load(path, allow_pickle=False) as report:
        about = json.loads(str(report["about"]))
        minibatch = steps.minibatch(steps.order[poisoned[0]])
        assert {*report} == {"about", "state", "action", "goal"}  # with single actions, every row is valid
        for name in ("state", "action", "goal"):
            np.testing.assert_array_equal(report[name], getattr(minibatch, name))
        assert report["state"].shape == (16, 3)
        assert 1 <= np.isnan(report["state"]).sum() <= POISONED
        assert np.isfinite(report["goal"]).all()
    assert about["learner"] == ACTIVE
    assert (about["update"], about["step"]) == (2, poisoned[0] + 1)
    assert (about["steps"], about["skipped"]) == (12, len(poisoned))
    assert set(about["not_finite"].values()) == {"nan"}
    assert {"actor/loss", "critic/loss", "critic/gradient_norm"} <= about["not_finite"].keys()


def test_each_learner_has_a_limited_number_of_reports(training: Training, tmp_path: Path) -> None:
    others = {tmp_path / "non-finite-active-2-1.npz", tmp_path / "non-finite-act-7.npz"}  # other learners' reports
    for path in others:
        path.touch()
    learner = training.guarded(tmp_path)
    first = learner.updates + 1
    for _ in range(MAX_REPORTS + 2):
        assert learner.update(training.bad)["guard/skipped"] > 0
    own = {tmp_path / f"non-finite-active-{first + index}.npz" for index in range(MAX_REPORTS)}
    assert set(tmp_path.iterdir()) == own | others


def test_non_finite_steps_are_skipped_and_the_others_train_without_recompilation(training: Training) -> None:
    learner = training.guarded(reports=None)
    for windows in (training.good, training.bad, training.good):
        before = trained_arrays(learner)
        assert (learner.update(windows)["guard/skipped"] > 0) == (windows is training.bad)
        assert not equal(before, trained_arrays(learner))
        assert all(np.isfinite(leaf).all() for leaf in trained_arrays(learner))
        assert _jitted_update(learner.kind)._cache_size() == 1


def test_mode_end_ends_training_at_the_first_non_finite_step(training: Training, tmp_path: Path) -> None:
    learner = training.guarded(tmp_path, "end")
    learner.update(training.good)
    with pytest.raises(NonFiniteError) as caught:
        learner.update(training.bad)
    line, update = str(caught.value), learner.updates
    assert "\n" not in line
    assert line.startswith("learner active: ")
    assert f"of 12 gradient steps of update {update} are not finite" in line
    assert "critic/loss nan" in line
    assert f"report: {tmp_path}/non-finite-active-{update}.npz; " in line
    assert line.endswith("lower the learning rate, set algorithm.max_gradient_norm or use algorithm.non_finite: skip")
    assert (tmp_path / f"non-finite-active-{update}.npz").exists()
    assert int(learner.state.updates) == update
    assert all(np.isfinite(leaf).all() for leaf in trained_arrays(learner))


def test_an_update_without_any_finite_step_ends_training(training: Training) -> None:
    learner = training.guarded(reports=None)
    before, key, updates = trained_arrays(learner), key_of(learner), learner.updates
    with pytest.raises(NonFiniteError, match=r"12 of 12 gradient steps .* first step 1 .*report: none") as caught:
        learner.update(training.all_infinite)
    assert str(caught.value).endswith("; lower the learning rate or set algorithm.max_gradient_norm")
    assert equal(before, trained_arrays(learner))
    assert learner.updates == int(learner.state.updates) == updates + 1
    assert not np.array_equal(key, key_of(learner))


def test_a_report_that_cannot_be_written_does_not_end_training(training: Training, tmp_path: Path) -> None:
    (tmp_path / "reports").write_text("a file where the folder should be")
    assert training.guarded(tmp_path / "reports").update(training.bad)["guard/skipped"] > 0
    with pytest.raises(NonFiniteError, match=r"report: none \(.*reports: File exists\); lower"):
        training.guarded(tmp_path / "reports", "end").update(training.bad)
