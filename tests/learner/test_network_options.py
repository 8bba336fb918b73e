"""Learners with plain trunks and with hyperspherical normalisation: they learn, keep their norms, and resume."""

from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import pytest

from learner.objectives.base import Objective
from learner.objectives.registry import make_objective
from learner.state import LearnerState, init_state
from learner.update import UpdateStep, make_update_step
from shared import checkpoint
from shared.config import ACTIVE
from shared.plan import make_plan
from shared.types import Metrics
from tests.trees import assert_equal

OPTIONS = {"hyperspherical": {"hyperspherical": True}, "plain": {"depth": 2}}


class Trained(NamedTuple):
    """A learner before and after 40 updates. `traces` has one entry for each trace of the update."""

    objective: Objective
    update: UpdateStep
    before: LearnerState
    after: LearnerState
    metrics: list[Metrics]
    traces: list[None]


@pytest.fixture(scope="module", params=OPTIONS)
def trained(request: Any, line: Any) -> Trained:
    experiment = line.experiment()
    network = experiment.collector.model_copy(update=OPTIONS[request.param])
    experiment = experiment.model_copy(update={"collector": network})
    objective = make_objective(experiment, ACTIVE, line.spec)
    update_step, traces = make_update_step(objective, make_plan(experiment, line.spec)), []

    @jax.jit
    def update(state: LearnerState, windows: Any) -> tuple[LearnerState, Metrics]:
        traces.append(None)
        return update_step(state, windows)

    before = state = jax.jit(lambda key: init_state(objective, key))(jax.random.key(0))
    metrics = []
    for seed in range(40):
        state, row = update(state, line.windows(seed))
        metrics.append(jax.device_get(row))
    return Trained(objective, update, before, state, metrics, traces)


def norms_of_columns(state: LearnerState, heads: bool) -> list[np.ndarray]:
    leaves = jax.tree_util.tree_flatten_with_path((state.actor, state.critic))[0]
    kernels = [(path, leaf) for path, leaf in leaves if getattr(path[-1], "key", "") == "kernel"]
    in_heads = ["trunk" not in [getattr(entry, "key", "") for entry in path] for path, _ in kernels]
    return [
        np.linalg.norm(np.asarray(leaf, np.float64), axis=-2)
        for (_, leaf), in_head in zip(kernels, in_heads, strict=True)
        if in_head == heads
    ]


def test_columns_have_norm_1_before_and_after_updates_with_hyperspherical_normalisation_alone(
    trained: Trained,
) -> None:
    hyperspherical = trained.objective.network.hyperspherical
    for state in (trained.before, trained.after):
        norms = norms_of_columns(state, heads=False)
        assert len(norms) == (15 if hyperspherical else 6)  # three stems, and four layers or one behind each
        for norm in norms:
            assert np.allclose(norm, 1, rtol=1e-6) == hyperspherical
        assert not any(np.allclose(norm, 1, rtol=0.01) for norm in norms_of_columns(state, heads=True))


def test_all_parameters_are_trained_and_the_update_is_traced_once(trained: Trained) -> None:
    before, after = (jax.tree.leaves((state.actor, state.critic)) for state in (trained.before, trained.after))
    assert all((np.asarray(x) != np.asarray(y)).any() for x, y in zip(before, after, strict=True))
    assert len(trained.traces) == 1
    assert int(trained.after.updates) == 40


def test_the_critic_learns(trained: Trained) -> None:
    accuracy = [row["critic/accuracy"] for row in trained.metrics]
    chance = 1 / 16
    assert accuracy[0] < 5 * chance
    assert np.mean(accuracy[-5:]) > 6 * chance
    assert sum(row["guard/skipped"] for row in trained.metrics) == 0


def test_the_actor_learns_to_move_towards_the_goal(trained: Trained, line: Any) -> None:
    assert abs(line.alignment(trained.objective.actor, trained.before.actor)) < 0.5
    assert line.alignment(trained.objective.actor, trained.after.actor) > 0.75


def test_a_learner_resumes_from_a_checkpoint_to_the_bit(trained: Trained, line: Any, tmp_path: Path) -> None:
    checkpoint.save(tmp_path / "state", trained.after)
    loaded = checkpoint.load(tmp_path / "state", trained.after)
    expected, result = (trained.update(state, line.windows(7))[0] for state in (trained.after, loaded))
    assert_equal(result, expected)
