from typing import Any, NamedTuple

import jax
import numpy as np
import pytest
from scipy.special import expit, logsumexp, softmax

from learner import losses
from learner.losses import (
    CONTRASTIVE_LOSSES,
    PAIR_ENERGIES,
    actor_loss,
    alpha_loss,
    critic_loss,
    forward_infonce,
)
from shared.algorithm_config import AlgorithmConfig


class Energies(NamedTuple):
    """Energy of 7 phi and 7 psi: its matrix, the same matrix pair by pair, and the gradients of both."""

    matrix: np.ndarray
    pairs: np.ndarray
    d_matrix: tuple[np.ndarray, np.ndarray]
    d_pair: tuple[np.ndarray, np.ndarray]


@jax.jit
def compute_energies(phi: Any, psi: Any) -> dict[str, Energies]:
    """Returns all energies of `phi` and `psi` `[7, 5]`, compiled at once."""

    def one(name: str) -> Energies:
        pair = PAIR_ENERGIES[name]

        def gradients(energy: Any) -> Any:
            return jax.grad(lambda x, y: energy(x, y).sum(), argnums=(0, 1))(phi, psi)

        return Energies(
            losses.energy_matrix(name, phi, psi),
            jax.vmap(lambda x: jax.vmap(lambda y: pair(x, y))(psi))(phi),
            gradients(lambda x, y: losses.energy_matrix(name, x, y)),
            gradients(pair),
        )

    return {name: one(name) for name in PAIR_ENERGIES}


compute_losses = jax.jit(lambda energy: {name: jax.value_and_grad(f)(energy) for name, f in CONTRASTIVE_LOSSES.items()})
compute_critic = jax.jit(lambda energy, penalty: critic_loss(energy, forward_infonce, penalty))
compute_actor = jax.jit(jax.value_and_grad(actor_loss, argnums=1, has_aux=True))
compute_alpha = jax.jit(jax.value_and_grad(alpha_loss, argnums=(0, 1), has_aux=True))


@jax.jit
def compute_masked(energy: Any, valid: Any) -> dict[str, Any]:
    """Returns `((loss, metrics), gradient)` of the critic's loss with each contrastive loss, compiled at once."""
    each = {
        name: lambda energy, valid, f=f: critic_loss(energy, f, 0.1, valid) for name, f in CONTRASTIVE_LOSSES.items()
    }
    return {name: jax.value_and_grad(loss, has_aux=True)(energy, valid) for name, loss in each.items()}


def padded(rows: Any) -> np.ndarray:
    """Pads `rows` `[n, k]` with zeros to `[7, 5]`: the energy of two rows depends neither on others nor on zeros."""
    whole = np.zeros((7, 5), np.float32)
    whole[: len(rows), : len(rows[0])] = rows
    return whole


PHI = np.array([[3.0, 4.0], [1.0, 0.0]], np.float32)
PSI = np.array([[0.0, 0.0], [0.0, 2.0]], np.float32)
# Distances: |(3, 4)| = 5, |(3, 2)| = sqrt(13), |(1, 0)| = 1, |(1, -2)| = sqrt(5).
ENERGIES_BY_HAND: dict[str, list[list[float]]] = {
    "norm": [[-5, -np.sqrt(13)], [-1, -np.sqrt(5)]],
    "l2": [[-25, -13], [-1, -5]],
    "dot": [[0, 8], [0, 0]],
    "cosine": [[0, 0.8], [0, 0]],
}
MATRIX = np.array([[2.0, -1.0, 0.5], [0.0, 1.0, 3.0], [-2.0, 0.25, -0.5]], np.float32)


def cross_entropy(rows: np.ndarray) -> float:
    """Returns the cross entropy of the diagonal, computed from probabilities."""
    return float(-np.log(np.diagonal(softmax(rows, axis=1))).mean())


def binary_by_hand(energy: np.ndarray) -> float:
    positives = [-np.log(expit(energy[i, i])) for i in range(3)]
    negatives = [-np.log(1 - expit(energy[i, j])) for i in range(3) for j in range(3) if i != j]
    return float(np.mean(positives) + np.mean(negatives))


LOSSES_BY_HAND = {
    "forward_infonce": cross_entropy(MATRIX),
    "backward_infonce": cross_entropy(MATRIX.T),
    "symmetric_infonce": (cross_entropy(MATRIX) + cross_entropy(MATRIX.T)) / 2,
    "binary_nce": binary_by_hand(MATRIX),
}


def options(field: str) -> set[str]:
    return set(AlgorithmConfig.model_json_schema()["properties"][field]["enum"])


def test_every_option_of_the_configuration_exists_and_is_tested() -> None:
    assert options("energy") == set(PAIR_ENERGIES) == set(ENERGIES_BY_HAND)
    assert options("contrastive_loss") == set(CONTRASTIVE_LOSSES) == set(LOSSES_BY_HAND)


@pytest.mark.parametrize("name", ENERGIES_BY_HAND)
def test_energy_by_hand(name: str) -> None:
    matrix = compute_energies(padded(PHI), padded(PSI))[name].matrix
    np.testing.assert_allclose(matrix[:2, :2], ENERGIES_BY_HAND[name], atol=1e-5)


@pytest.mark.parametrize("name", PAIR_ENERGIES)
def test_matrix_equals_the_pairwise_definition(name: str) -> None:
    energies = compute_energies(*np.random.default_rng(0).normal(size=(2, 7, 5)).astype(np.float32))[name]
    np.testing.assert_allclose(energies.matrix, energies.pairs, rtol=1e-4, atol=1e-4)


def test_the_diagonal_is_precise_where_the_matmul_loses_digits() -> None:
    rng = np.random.default_rng(0)
    phi, step = rng.normal(size=(2, 64, 64))
    phi = (100 * phi / np.linalg.norm(phi, axis=1, keepdims=True)).astype(np.float32)
    psi = (phi + step / np.linalg.norm(step, axis=1, keepdims=True)).astype(np.float32)  # distance about 1
    exact = -np.linalg.norm(phi[:, None].astype(np.float64) - psi.astype(np.float64), axis=-1)
    error = abs(np.asarray(jax.jit(losses.energy_matrix, static_argnums=0)("norm", phi, psi)) - exact)
    assert np.diagonal(error).max() < 1e-6
    assert error.max() < 1e-4


@pytest.mark.parametrize("name", PAIR_ENERGIES)
def test_the_matmul_never_uses_tf32(name: str) -> None:
    jaxpr = str(jax.make_jaxpr(lambda x, y: losses.energy_matrix(name, x, y))(PHI, PSI))
    assert jaxpr.count("dot_general") == 1
    assert "Precision.HIGHEST" in jaxpr


def test_cosine_ignores_the_length_of_each_row() -> None:
    def cosine(phi: np.ndarray, psi: np.ndarray) -> np.ndarray:
        return np.asarray(compute_energies(padded(phi), padded(psi))["cosine"].matrix)[:2, :2]

    longer = cosine(PHI * np.array([[10.0], [0.1]], np.float32), PSI)
    np.testing.assert_allclose(longer, cosine(PHI, PSI), atol=1e-6)
    np.testing.assert_allclose(np.diagonal(cosine(PHI, 7 * PHI)), 1, rtol=1e-6)


@pytest.mark.parametrize("point", [padded(PHI), padded(0 * PHI), np.ones((7, 5), np.float32)], ids=["any", "0", "1"])
def test_gradients_are_finite_where_representations_are_equal(point: np.ndarray) -> None:
    for name, energies in compute_energies(point, point).items():
        for gradient in (*energies.d_matrix, *energies.d_pair):
            assert np.isfinite(gradient).all(), name


@pytest.mark.parametrize("name", LOSSES_BY_HAND)
def test_contrastive_loss_by_hand(name: str) -> None:
    assert compute_losses(MATRIX)[name][0] == pytest.approx(LOSSES_BY_HAND[name], rel=1e-5)


def test_every_option_changes_the_result() -> None:
    assert len({round(loss, 3) for loss in LOSSES_BY_HAND.values()}) == len(LOSSES_BY_HAND)
    energies = compute_energies(*np.random.default_rng(1).normal(size=(2, 7, 5)).astype(np.float32))
    matrices = [np.asarray(each.matrix) for each in energies.values()]
    for i, one in enumerate(matrices):
        assert all(abs(one - other).min() > 1e-3 for other in matrices[:i])


def test_binary_nce_has_negatives() -> None:
    loss, gradient = compute_losses(MATRIX)["binary_nce"]
    assert compute_losses(MATRIX + 1 - np.eye(3, dtype=np.float32))["binary_nce"][0] > loss + 0.1
    gradient = np.asarray(gradient)
    assert (np.diagonal(gradient) < 0).all()
    assert (gradient[~np.eye(3, dtype=bool)] > 0).all()


def test_the_penalty_is_the_squared_logsumexp_of_rows() -> None:
    rows = logsumexp(MATRIX, axis=1)
    for penalty in (0.0, 0.1, 2.0):
        loss, _ = compute_critic(MATRIX, penalty)
        assert loss == pytest.approx(cross_entropy(MATRIX) + penalty * np.mean(rows**2), rel=1e-5)
    assert not np.isclose(np.mean(rows**2), np.mean(logsumexp(MATRIX, axis=0) ** 2), rtol=0.01)


def test_critic_metrics_by_hand() -> None:
    _, metrics = compute_critic(MATRIX, 0.1)
    by_hand = {
        "critic/accuracy": 1 / 3,  # only row 0 has its largest energy on the diagonal
        "critic/positive": (2 + 1 - 0.5) / 3,
        "critic/negative": (-1 + 0.5 + 0 + 3 - 2 + 0.25) / 6,
        "critic/logsumexp": logsumexp(MATRIX, axis=1).mean(),
        "critic/loss": cross_entropy(MATRIX) + 0.1 * np.mean(logsumexp(MATRIX, axis=1) ** 2),
    }
    assert {name: float(value) for name, value in metrics.items()} == pytest.approx(by_hand, rel=1e-5)


def test_every_critic_metric_moves() -> None:
    _, before = compute_critic(MATRIX, 0.1)
    _, after = compute_critic(MATRIX.T + 2 * np.eye(3, dtype=np.float32) - 1, 0.1)
    assert all(abs(float(before[name]) - float(after[name])) > 0.01 for name in before)


def test_actor_loss_by_hand() -> None:
    log_prob, energy = np.array([-1.0, 3.0], np.float32), np.array([-2.0, -6.0], np.float32)
    (loss, metrics), _ = compute_actor(log_prob, energy, np.log(0.5, dtype=np.float32))
    assert loss == pytest.approx((0.5 * -1 + 2 + 0.5 * 3 + 6) / 2)
    assert {name: float(value) for name, value in metrics.items()} == pytest.approx(
        {"actor/loss": 4.5, "actor/entropy": -1.0, "actor/energy": -4.0}
    )
    _, d_energy = compute_actor(log_prob, energy, np.float32(0))
    np.testing.assert_allclose(d_energy, [-0.5, -0.5])  # more energy, less loss


def test_alpha_loss_by_hand() -> None:
    log_prob, log_alpha = np.array([1.0, 2.0], np.float32), np.log(2.0, dtype=np.float32)
    # Entropy -1.5 is below the target -1: the coefficient must grow.
    (loss, metrics), (d_log_alpha, d_log_prob) = compute_alpha(log_alpha, log_prob, -1.0)
    assert loss == pytest.approx(2 * (-1.5 + 1))
    assert {name: float(value) for name, value in metrics.items()} == pytest.approx(
        {"alpha/loss": -1.0, "alpha/log_alpha": np.log(2)}
    )
    assert d_log_alpha == pytest.approx(-1.0)
    assert (np.asarray(d_log_prob) == 0).all()
    assert compute_alpha(log_alpha, -log_prob, -1.0)[1][0] == pytest.approx(5.0)


WIDE = np.random.default_rng(4).normal(size=(5, 5)).astype(np.float32)
VALID = np.array([True, False, True, True, False])


def masked_by_hand(energy: np.ndarray, valid: np.ndarray) -> dict[str, float]:
    """Returns every contrastive loss, with a loop over the valid rows; goals of all rows are negatives of a row."""
    rows = np.flatnonzero(valid)
    forward = np.mean([logsumexp(energy[i]) - energy[i, i] for i in rows])
    backward = np.mean([logsumexp(energy[rows, j]) - energy[j, j] for j in rows])
    positives = [-np.log(expit(energy[i, i])) for i in rows]
    negatives = [-np.log(1 - expit(energy[i, j])) for i in rows for j in range(len(energy)) if i != j]
    return {
        "forward_infonce": forward,
        "backward_infonce": backward,
        "symmetric_infonce": (forward + backward) / 2,
        "binary_nce": np.mean(positives) + np.mean(negatives),
    }


@pytest.mark.parametrize("name", LOSSES_BY_HAND)
def test_rows_that_are_not_valid_count_nowhere_but_as_negatives(name: str) -> None:
    (loss, metrics), gradient = compute_masked(WIDE, VALID)[name]
    partitions = logsumexp(WIDE[VALID], axis=1)
    expected = masked_by_hand(WIDE, VALID)[name] + 0.1 * np.mean(partitions**2)
    assert loss == pytest.approx(expected, rel=1e-5)
    pairs = [WIDE[i, j] for i in np.flatnonzero(VALID) for j in range(5) if i != j]
    by_hand = {
        "critic/loss": expected,
        "critic/accuracy": np.mean([WIDE[i].argmax() == i for i in np.flatnonzero(VALID)]),
        "critic/positive": np.mean(np.diagonal(WIDE)[VALID]),
        "critic/negative": np.mean(pairs),
        "critic/logsumexp": np.mean(partitions),
    }
    assert {key: float(value) for key, value in metrics.items()} == pytest.approx(by_hand, rel=1e-5)
    gradient = np.asarray(gradient)
    assert np.isfinite(gradient).all()
    assert (gradient[~VALID] == 0).all()  # no state and action of a row that is not valid
    assert (gradient[VALID][:, ~VALID] > 0).all()  # its goal is a negative
    other = np.where(VALID[:, None], WIDE, 7 * WIDE - 3)
    assert compute_masked(other, VALID)[name][0][0] == pytest.approx(float(loss), rel=1e-6)


@pytest.mark.parametrize("name", LOSSES_BY_HAND)
def test_the_mask_changes_nothing_where_all_rows_are_valid_and_leaves_no_gradient_where_none_is(name: str) -> None:
    (loss, metrics), gradient = compute_masked(WIDE, np.ones(5, bool))[name]
    (expected, unmasked), d_energy = compute_masked(WIDE, None)[name]
    assert loss == pytest.approx(float(expected), rel=1e-6)
    assert {key: float(value) for key, value in metrics.items()} == pytest.approx(
        {key: float(value) for key, value in unmasked.items()}, rel=1e-5, abs=1e-6
    )
    np.testing.assert_allclose(gradient, d_energy, rtol=1e-5, atol=1e-7)
    (loss, _), gradient = compute_masked(WIDE, np.zeros(5, bool))[name]
    assert loss == 0
    assert (np.asarray(gradient) == 0).all()
