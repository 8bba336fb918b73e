from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from learner.objectives.chrono import geometric_edges, occupancy_loss, occupancy_value, separation_loss, time_loss
from learner.objectives.hazards import Hazards, hazard_value
from learner.objectives.registry import make_objective
from learner.objectives.survival import Reaches
from shared.config import ACTIVE
from tests.learner.objectives.hazard_cases import experiment_of, labels, minibatch_of

EDGES = (1, 2, 4, 6)


def test_time_loss_is_hubers_over_the_reached_rows() -> None:
    distance, time = np.array([0.5, 3.0, 1.0, 9.0]), np.array([0.1, 0.5, 2.5, 0.0])
    reached = np.array([True, True, True, False])
    expected = (0.5 * 0.4**2 + (2.5 - 0.5) + (1.5 - 0.5)) / 3
    assert time_loss(distance, time, reached) == pytest.approx(expected)
    assert time_loss(distance, time, 0 * reached > 0) == 0


def separation_by_hand(
    distance: np.ndarray, margin: float, goal: np.ndarray, radius: float, valid: np.ndarray, censored: np.ndarray
) -> float:
    terms = []
    for i in range(len(distance)):
        for j in range(len(distance)):
            far = bool(np.linalg.norm(goal[i] - goal[j]) > radius) and bool(valid[i])
            if censored[i] if i == j else far:
                terms.append(max(0.0, margin - distance[i, j]))
    return float(np.mean(terms))


def test_separation_loss_equals_that_of_a_loop_over_pairs() -> None:
    rng = np.random.default_rng(0)
    distance, goal = rng.uniform(0, 2, (9, 9)), rng.integers(0, 3, (9, 2)).astype(float)
    valid, other = rng.random((2, 9)) < 0.7
    case = distance, 1.1, goal, 1.0, valid, valid & other
    assert separation_loss(*case) == pytest.approx(separation_by_hand(*case), rel=1e-5)
    assert separation_loss(distance, 1.1, goal, 9.0, valid, 0 * valid > 0) == 0


def test_occupancy_loss_is_the_cross_entropy_of_observed_bins() -> None:
    rng = np.random.default_rng(0)
    logits, occupancy, observed = rng.normal(size=(5, 3)), rng.random((5, 3)), rng.random((5, 3)) < 0.6
    share = 1 / (1 + np.exp(-logits))
    entropy = -(occupancy * np.log(share) + (1 - occupancy) * np.log(1 - share))
    assert occupancy_loss(logits, occupancy, observed) == pytest.approx(entropy[observed].mean(), rel=1e-5)


def test_edges_are_in_geometric_progression() -> None:
    edges = geometric_edges(1000, 32)
    assert (edges[0], edges[-1]) == (1, 1000)
    assert (np.diff(edges) > 0).all()
    far = np.array(edges[-16:])  # rounding does not matter here
    np.testing.assert_allclose(far[1:] / far[:-1], 1000 ** (1 / 32), rtol=0.03)
    assert geometric_edges(8, 3) == (1, 2, 4, 8)


def test_the_value_of_occupancy_is_the_discounted_time_at_the_goal() -> None:
    logits = np.random.default_rng(0).normal(size=(4, 3))
    share = 1 / (1 + np.exp(-logits))
    discounts = [0.9, 0.9**2 + 0.9**3, 0.9**4 + 0.9**5]
    hazards = Hazards(np.zeros(4), np.zeros((4, 6)), logits)
    np.testing.assert_allclose(occupancy_value(hazards, EDGES, 0.9), share @ discounts, rtol=1e-5)


def test_gradients_equal_finite_differences() -> None:
    rng = np.random.default_rng(0)
    distance, goal, time = rng.uniform(0, 4, (6, 6)), rng.normal(size=(6, 2)), rng.uniform(0, 3, 6)
    logits, occupancy = rng.normal(size=(6, 3)), rng.random((6, 3))
    valid, other = rng.random((2, 6)) < 0.7
    hazards = Hazards(np.zeros(6), np.zeros((6, 6)), logits)
    with jax.enable_x64(True):
        for function, x in (
            (lambda x: time_loss(x, time, valid), rng.uniform(0, 5, 6)),
            (lambda x: separation_loss(x, jnp.array(2.0), goal, 0.5, valid, valid & other), distance),
            (lambda x: occupancy_loss(x, occupancy, occupancy > 0.3), logits),
            (lambda x: occupancy_value(hazards._replace(occupancy=x), EDGES, 0.9), logits),
        ):
            check_grads(function, (x,), order=1, modes=["rev"])


@pytest.fixture(scope="module")
def minibatch(line: Any) -> Reaches:
    """Returns a minibatch with action chunks of two, some of which leave their episode."""
    return minibatch_of(labels(line, "chrono", chunk=2))


def fixed_hazards(batch: int) -> Hazards:
    """Returns random logits, with the bins of an episode of 8 steps."""
    rng = np.random.default_rng(0)
    return Hazards(*(rng.normal(size=(batch, *shape)) for shape in ((), (8,), (len(geometric_edges(8, 32)) - 1,))))


def critic_metrics(line: Any, minibatch: Reaches, discount: float = 0.9, **constants: Any) -> dict[str, float]:
    """Returns the losses of fixed outputs of a critic for `minibatch`."""
    experiment = experiment_of(line, "chrono", chunk=2, chrono=constants, discount=discount)
    objective: Any = make_objective(experiment, ACTIVE, line.spec)
    batch = len(minibatch.state)
    phi, psi = 0.05 * np.random.default_rng(1).normal(size=(2, batch, 64)).astype(np.float32)
    _, metrics = objective.critic_loss(fixed_hazards(batch), phi, psi, minibatch)
    return {name.removeprefix("critic/"): float(value) for name, value in metrics.items()}


def test_occupancy_counts_as_much_as_episodes_terminate(line: Any, minibatch: Reaches) -> None:
    objective: Any = make_objective(experiment_of(line, "chrono", chunk=2), ACTIVE, line.spec)
    share = np.mean(minibatch.terminates[minibatch.valid])
    assert 0 < share < 1
    assert critic_metrics(line, minibatch)["terminates"] == pytest.approx(share)
    hazards = fixed_hazards(len(minibatch.state))
    expected = hazard_value(hazards, 0.9) + share * occupancy_value(hazards, geometric_edges(8, 32), 0.9)
    np.testing.assert_allclose(objective.value(hazards, minibatch), expected, rtol=1e-5)


def test_every_weight_scales_its_loss(line: Any, minibatch: Reaches) -> None:
    before = critic_metrics(line, minibatch)
    parts = ("hazard_loss", "time_loss", "separation_loss", "occupancy_loss")
    assert before["loss"] == pytest.approx(sum(before[name] for name in parts))
    for name in ("time", "separation", "occupancy"):
        after = critic_metrics(line, minibatch, **{f"{name}_weight": 3.0})
        assert after["loss"] - before["loss"] == pytest.approx(2 * before[f"{name}_loss"], rel=1e-4)


def test_radius_and_discount_move_the_losses(line: Any, minibatch: Reaches) -> None:
    changes: list[dict[str, float]] = [{}, {"radius": 2.0}, {"discount": 0.99}]
    before, wider, later = (critic_metrics(line, minibatch, **each) for each in changes)
    assert abs(before["separation_loss"] - wider["separation_loss"]) > 1e-4
    assert abs(before["separation_loss"] - later["separation_loss"]) > 0.1  # the margin is shorter
    assert abs(before["time_loss"] - later["time_loss"]) > 1e-3


def test_labels_of_terminated_episodes_have_all_later_times(line: Any) -> None:
    label = labels(line, "chrono")
    assert (label.terminates == (np.arange(40) >= 32)[:, None]).all()
    assert label.observed[32:].all()
    points = np.tile([4, 3, 2, 1], 3)[:-1]  # later ones, and so are the bins, which have one time each
    np.testing.assert_array_equal(label.observed[:32].sum(axis=-1), np.tile(points, (32, 1)))
    assert 0.05 < label.occupancy[label.observed].mean() < 0.5
    assert (label.censor == 8).all()


def test_the_critics_path_is_that_of_its_networks(line: Any) -> None:
    objective: Any = make_objective(experiment_of(line, "chrono"), ACTIVE, line.spec)
    assert objective.critic_layers == 8 == objective.encoder.trunk.depth + objective.head.trunk.depth
    assert objective.encoder.representation_size == experiment_of(line, "chrono").collector.representation_size
    assert objective.NEEDS_ENDS
