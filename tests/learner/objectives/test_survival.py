from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from learner.objectives.hazards import Hazards, hazard_loss, hazard_value, log_survival
from learner.objectives.registry import make_objective
from learner.objectives.survival import Reaches, half_depth
from shared.config import ACTIVE
from tests.learner.objectives.hazard_cases import experiment_of, labels, rows_of

LABELS = np.array([(1, 0, 9), (1, 1, 9), (1, 3, 9), (1, 7, 9), (0, 0, 0), (0, 0, 2), (0, 0, 6), (1, 5, 9)])


def some_hazards(seed: int = 0) -> Hazards:
    """Returns random logits of the 8 rows of `LABELS`, for 6 times."""
    rng = np.random.default_rng(seed)
    return Hazards(rng.normal(size=8), rng.normal(size=(8, 6)), rng.normal(size=(8, 3)))


def sigmoid(logits: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-logits))


def test_the_likelihood_equals_the_product_of_probabilities() -> None:
    """Times from 6 on are beyond the last, which is 5."""
    hazards, (event, time, censor) = some_hazards(), LABELS.T
    expected = []
    for now, later, reached, when, missed in zip(sigmoid(hazards.now), sigmoid(hazards.later), *LABELS.T, strict=True):
        if reached and when == 0:
            expected.append(now)
        elif reached:
            expected.append((1 - now) * np.prod(1 - later[: min(when, 5)]) * later[min(when, 5)])
        else:
            expected.append((1 - now) * np.prod(1 - later[:missed]))
    loss = jax.jit(hazard_loss)(hazards, event.astype(bool), time, censor)
    np.testing.assert_allclose(loss, -np.log(expected), rtol=1e-5)


def test_the_value_is_minus_the_discounted_time_to_the_goal() -> None:
    hazards = some_hazards()
    now, later = sigmoid(hazards.now), sigmoid(hazards.later)
    expected = [
        -sum(0.9**k * (1 - now[row]) * np.prod(1 - later[row, :k]) for k in range(6)) for row in range(len(now))
    ]
    np.testing.assert_allclose(hazard_value(hazards, 0.9), expected, rtol=1e-5)
    left = np.exp(log_survival(hazards))
    np.testing.assert_allclose(left[:, 0], 1 - now, rtol=1e-5)
    np.testing.assert_allclose(left[:, -1], (1 - now) * np.prod(1 - later, axis=1), rtol=1e-5)


def test_the_value_rises_with_every_hazard_that_counts() -> None:
    d_value = jax.grad(lambda hazards: jnp.sum(hazard_value(hazards, 0.9)))(some_hazards())
    assert (d_value.now > 0).all()
    assert (d_value.later[:, :-1] > 0).all()
    assert (d_value.later[:, -1] == 0).all()  # no time is left after it


def test_gradients_equal_finite_differences() -> None:
    with jax.enable_x64(True):
        hazards, (event, time, censor) = some_hazards(), LABELS.T
        check_grads(lambda x: hazard_loss(x, event.astype(bool), time, censor), (hazards,), order=1, modes=["rev"])
        check_grads(lambda x: hazard_value(x, 0.9), (hazards,), order=1, modes=["rev"])


@pytest.fixture(scope="module")
def default_labels(line: Any) -> Reaches:
    return labels(line, "survival")


def test_a_goal_counts_as_missed_until_the_horizon_or_the_last_point(line: Any, default_labels: Reaches) -> None:
    assert (default_labels.censor == line.spec.episode_length).all()
    remaining = labels(line, "survival", survival={"censoring": "remaining"}).censor
    np.testing.assert_array_equal(remaining, np.tile([5, 4, 3, 2], (40, 3))[:, :-1])  # 4 rows and the point behind them


def test_labels_hold_all_rows_but_a_windows_last(line: Any, default_labels: Reaches) -> None:
    label, rows = default_labels, rows_of(line)
    np.testing.assert_array_equal(label.state, rows.state[:, :-1])
    np.testing.assert_array_equal(label.action, rows.action[:, :-1])
    assert label.valid is None
    assert set(np.unique(label.time)) == {0, 1, 2, 3}
    assert 0.6 < label.event.mean() < 0.95


def test_discount_moves_goals_unless_they_have_their_own(line: Any, default_labels: Reaches) -> None:
    """The default discount is 0.9."""
    own = {"goal_discount": 0.9}
    assert (default_labels.goal != labels(line, "survival", discount=0.1).goal).any()
    kept = labels(line, "survival", survival=own, discount=0.1)
    np.testing.assert_array_equal(default_labels.goal, kept.goal)


def test_the_critics_path_is_that_of_its_networks(line: Any) -> None:
    assert [half_depth(depth) for depth in (1, 2, 4, 8, 12, 16, 20, 1024)] == [1, 1, 2, 4, 4, 8, 8, 512]
    for depth, layers in ((1, 2), (2, 3), (4, 6), (8, 12), (12, 16), (16, 24)):
        experiment = experiment_of(line, "survival")
        collector = experiment.collector.model_copy(update={"depth": depth})
        objective: Any = make_objective(experiment.model_copy(update={"collector": collector}), ACTIVE, line.spec)
        assert objective.critic_layers == layers == objective.encoder.trunk.depth + objective.head.trunk.depth
        assert objective.head.trunk.depth == depth
        assert objective.size > 0  # its networks can be made
