from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from learner.objectives.hazards import Hazards, hazard_loss, hazard_value, log_survival
from learner.objectives.registry import make_objective
from learner.objectives.survival import half_depth
from shared.config import ACTIVE
from shared.metrics_catalogue import unknown_metrics
from tests.learner.objectives.hazard_cases import (
    OneStep,
    Training,
    alignment,
    assert_parts_have_their_own_gradients,
    experiment_of,
    labels,
    one_step,
    preference,
    rays,
    rows_of,
    train,
)


@pytest.fixture(scope="module")
def related(line: Any) -> Training:
    return train(line, experiment_of(line, "survival"), rays)


def test_the_actor_learns_to_move_towards_the_goal(related: Training) -> None:
    assert abs(alignment(related.objective, related.before)) < 0.5
    assert alignment(related.objective, related.after) > 0.7


def test_the_score_ranks_actions_towards_the_goal_first(related: Training) -> None:
    assert preference(related.objective, related.before) < 0.75
    assert preference(related.objective, related.after) > 0.9


def test_nothing_is_learned_from_goals_that_do_not_depend_on_actions(line: Any, related: Training) -> None:
    unrelated = train(line, experiment_of(line, "survival"), lambda seed: rays(seed, unrelated=True))
    assert abs(alignment(related.objective, unrelated.after)) < 0.6
    assert preference(related.objective, unrelated.after) < 0.7


def test_the_critic_predicts_how_often_goals_are_reached(related: Training) -> None:
    first, last = related.metrics[0], related.metrics[-1]
    assert last["critic/loss"] < 0.5 * first["critic/loss"]
    assert abs(last["critic/predicted_events"] - last["critic/events"]) < 0.1


def test_every_metric_moves(related: Training) -> None:
    first, last = dict(related.metrics[0]), dict(related.metrics[-1])
    assert unknown_metrics("learner", set(first) - {"data/last_step"}) == []
    critic = {"critic/loss", "critic/events", "critic/predicted_events", "critic/event_time", "critic/gradient_norm"}
    assert {name for name in first if name.startswith("critic/")} == critic
    assert all(abs(first[name] - last[name]) > 1e-4 for name in first if name.split("/")[0] in ("actor", "critic"))


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


def test_a_goal_counts_as_missed_until_the_horizon_or_the_last_point(line: Any) -> None:
    horizon = labels(line).censor
    assert (horizon == line.spec.episode_length).all()
    remaining = labels(line, survival={"censoring": "remaining"}).censor
    np.testing.assert_array_equal(remaining, np.tile([5, 4, 3, 2], (40, 3))[:, :-1])  # 4 rows and the point behind them


def test_labels_hold_all_rows_but_a_windows_last(line: Any) -> None:
    label, rows = labels(line), rows_of(line)
    np.testing.assert_array_equal(label.state, rows.state[:, :-1])
    np.testing.assert_array_equal(label.action, rows.action[:, :-1])
    assert label.valid is None
    assert set(np.unique(label.time)) == {0, 1, 2, 3}
    assert 0.6 < label.event.mean() < 0.95


@pytest.mark.parametrize(
    ("constants", "moved"),
    [
        ({"radius": 0.6}, "time"),
        ({"radius": None}, "event"),
        ({"goals": {"future": 1, "current": 0, "random": 0}}, "goal"),
        ({"goal_discount": 0.1}, "goal"),
        ({"censoring": "remaining"}, "censor"),
    ],
)
def test_every_constant_of_labels_moves_them(line: Any, constants: dict[str, Any], moved: str) -> None:
    assert (getattr(labels(line), moved) != getattr(labels(line, survival=constants), moved)).any()


def test_discount_moves_goals_unless_they_have_their_own(line: Any) -> None:
    assert (labels(line).goal != labels(line, discount=0.1).goal).any()
    own = {"goal_discount": 0.9}
    np.testing.assert_array_equal(labels(line, survival=own).goal, labels(line, survival=own, discount=0.1).goal)


def test_constants_of_the_networks_change_their_sizes(line: Any) -> None:
    def size(**constants: Any) -> int:
        return make_objective(experiment_of(line, "survival", survival=constants), ACTIVE, line.spec).size

    assert len({size(), size(rank=4), size(representation_size=64)}) == 3


@pytest.fixture(scope="module")
def step(line: Any) -> OneStep:
    return one_step(line, "survival")


def test_each_part_has_the_gradient_of_its_own_loss(step: OneStep) -> None:
    assert_parts_have_their_own_gradients(step)


def test_rows_whose_chunk_leaves_the_episode_do_not_train_the_critic(step: OneStep) -> None:
    assert 0.1 < 1 - np.mean(step.minibatch.valid) < 0.5
    assert step.metrics["critic/loss"] == pytest.approx(step.with_other_actions["critic/loss"], rel=1e-5)


def test_the_critics_path_is_that_of_its_networks(line: Any) -> None:
    assert [half_depth(depth) for depth in (1, 2, 4, 8, 12, 16, 20, 1024)] == [1, 1, 2, 4, 4, 8, 8, 512]
    for depth, layers in ((1, 2), (2, 3), (4, 6), (8, 12), (12, 16), (16, 24)):
        experiment = experiment_of(line, "survival")
        collector = experiment.collector.model_copy(update={"depth": depth})
        objective: Any = make_objective(experiment.model_copy(update={"collector": collector}), ACTIVE, line.spec)
        assert objective.critic_layers == layers == objective.encoder.trunk.depth + objective.head.trunk.depth
        assert objective.head.trunk.depth == depth
        assert objective.size > 0  # its networks can be made
