"""Learning, labels and single steps that `survival` and `chrono` have in common."""

from typing import Any

import jax
import numpy as np
import pytest

from learner.objectives.registry import make_objective
from learner.objectives.survival import Reaches
from shared.config import ACTIVE
from shared.metrics_catalogue import unknown_metrics
from tests.learner.objectives.hazard_cases import (
    OneStep,
    Training,
    alignment,
    experiment_of,
    labels,
    one_step,
    preference,
    rays,
    train,
)

CHUNK = {"survival": 1, "chrono": 2}
CRITIC_METRICS = ("loss", "events", "predicted_events", "event_time", "gradient_norm")
MORE_CRITIC_METRICS = {
    "survival": (),
    "chrono": ("hazard_loss", "time_loss", "separation_loss", "occupancy_loss", "terminates"),
}
# Losses that fall in a training, and to which share. Chrono's representations begin further apart than the margin.
FALLING = {"survival": {"loss": 0.5}, "chrono": {"hazard_loss": 1, "time_loss": 1, "occupancy_loss": 1}}
MOVED_GOALS = [({"goals": {"future": 1, "current": 0, "random": 0}}, "goal"), ({"goal_discount": 0.1}, "goal")]
MOVED_LABELS: dict[str, list[tuple[dict[str, Any], str]]] = {
    "survival": [({"radius": 0.6}, "time"), ({"radius": None}, "event"), ({"censoring": "remaining"}, "censor")],
    "chrono": [({"radius": 0.6}, "occupancy")],
}
SIZES: dict[str, dict[str, int]] = {"survival": {"representation_size": 64}, "chrono": {"occupancy_bins": 3}}


@pytest.fixture(scope="module", params=["survival", "chrono"])
def kind(request: Any) -> str:
    return request.param


@pytest.fixture(scope="module")
def related(line: Any, kind: str) -> Training:
    """Returns a training on windows of which more and more terminate."""
    experiment = experiment_of(line, kind, chunk=CHUNK[kind])
    return train(line, experiment, lambda seed: rays(seed, 0.2 + 0.02 * seed))


def test_the_actor_learns_to_move_towards_the_goal(related: Training, kind: str) -> None:
    assert related.objective.action_size == 2 * CHUNK[kind]
    assert abs(alignment(related.objective, related.before)) < 0.5
    assert alignment(related.objective, related.after) > 0.7


def test_the_score_ranks_actions_towards_the_goal_first(related: Training) -> None:
    assert preference(related.objective, related.before) < 0.75
    assert preference(related.objective, related.after) > 0.9


def test_nothing_is_learned_from_goals_that_do_not_depend_on_actions(line: Any, related: Training, kind: str) -> None:
    experiment = experiment_of(line, kind, chunk=CHUNK[kind])
    unrelated = train(line, experiment, lambda seed: rays(seed, unrelated=True))
    assert abs(alignment(related.objective, unrelated.after)) < 0.6
    assert preference(related.objective, unrelated.after) < 0.7


def test_the_critic_predicts_how_often_goals_are_reached(related: Training, kind: str) -> None:
    first, last = related.metrics[0], related.metrics[-1]
    for name, share in FALLING[kind].items():
        assert last[f"critic/{name}"] < share * first[f"critic/{name}"], name
    assert abs(last["critic/predicted_events"] - last["critic/events"]) < 0.1


def test_every_metric_moves(related: Training, kind: str) -> None:
    first, last = dict(related.metrics[0]), dict(related.metrics[-1])
    assert unknown_metrics("learner", set(first) - {"data/last_step"}) == []
    expected = {f"critic/{name}" for name in (*CRITIC_METRICS, *MORE_CRITIC_METRICS[kind])}
    assert {name for name in first if name.startswith("critic/")} == expected
    assert all(abs(first[name] - last[name]) > 1e-4 for name in first if name.split("/")[0] in ("actor", "critic"))


@pytest.fixture(scope="module")
def step(line: Any, kind: str) -> OneStep:
    return one_step(line, kind)


def test_each_part_has_the_gradient_of_its_own_loss(step: OneStep) -> None:
    for part in ("actor", "critic"):
        expected = getattr(step.d_parts[part], part)
        jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=1e-6), getattr(step.d_trained, part), expected)
        assert all(np.abs(x).max() > 0 for x in jax.tree.leaves(expected) if x.ndim > 1)


def test_rows_whose_chunk_leaves_the_episode_do_not_train_the_critic(step: OneStep, kind: str) -> None:
    assert 0.1 < 1 - np.mean(step.minibatch.valid) < 0.5
    for name in {*CRITIC_METRICS, *MORE_CRITIC_METRICS[kind]} - {"gradient_norm"}:
        assert step.metrics[f"critic/{name}"] == pytest.approx(step.with_other_actions[f"critic/{name}"], rel=1e-5)


@pytest.fixture(scope="module")
def default_labels(line: Any, kind: str) -> Reaches:
    return labels(line, kind)


def test_every_constant_of_labels_moves_them(line: Any, kind: str, default_labels: Reaches) -> None:
    for constants, moved in MOVED_GOALS + MOVED_LABELS[kind]:
        changed = labels(line, kind, **{kind: constants})
        assert (getattr(default_labels, moved) != getattr(changed, moved)).any(), constants


def test_constants_of_the_networks_change_their_sizes(line: Any, kind: str) -> None:
    def size(**constants: int) -> int:
        return make_objective(experiment_of(line, kind, **{kind: constants}), ACTIVE, line.spec).size

    assert len({size(), size(rank=4), size(**SIZES[kind])}) == 3
