"""Energies and losses that objectives share, each computable by hand on a small matrix."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from shared.types import Array, Metrics

Energy = Callable[[Array, Array], jax.Array]
ContrastiveLoss = Callable[[Array, Array | None], jax.Array]

_ROUNDING = 1e-6  # rounding error of a squared distance, relative to the squared norms that it is computed from
_EPSILON = 1e-12  # keeps the root's gradient finite where two representations are equal


def _products(x: Array, y: Array) -> jax.Array:
    """Returns `x @ y.T` at full float32; in TF32, a distance of 1 between points of norm 100 is wrong by half."""
    return jnp.matmul(x, y.T, precision=jax.lax.Precision.HIGHEST)


def _squared_distances(x: Array, y: Array) -> jax.Array:
    """Returns `[B, B]` through one matmul; a difference `[B, B, E]` would cost more than the networks do.

    Distances below float32's rounding of the norms are raised to it, without a gradient: the root of a rounding error
    would have a huge gradient.
    """
    norms = jnp.sum(x**2, axis=-1)[:, None] + jnp.sum(y**2, axis=-1)[None, :]
    return jnp.maximum(norms - 2 * _products(x, y), jax.lax.stop_gradient(_ROUNDING * norms))


def _unit(x: Array) -> jax.Array:
    return jnp.asarray(x) * jax.lax.rsqrt(jnp.sum(x**2, axis=-1, keepdims=True) + _EPSILON)


PAIR_ENERGIES: dict[str, Energy] = {
    "norm": lambda x, y: -jnp.sqrt(jnp.sum((x - y) ** 2, axis=-1) + _EPSILON),
    "l2": lambda x, y: -jnp.sum((x - y) ** 2, axis=-1),
    "dot": lambda x, y: jnp.sum(x * y, axis=-1),
    "cosine": lambda x, y: jnp.sum(_unit(x) * _unit(y), axis=-1),
}

_MATRIX_ENERGIES: dict[str, Energy] = {
    "norm": lambda x, y: -jnp.sqrt(_squared_distances(x, y) + _EPSILON),
    "l2": lambda x, y: -_squared_distances(x, y),
    "dot": _products,
    "cosine": lambda x, y: _products(_unit(x), _unit(y)),
}


def energy_matrix(name: str, phi: Array, psi: Array) -> jax.Array:
    """Returns `[B, B]` of `phi`, `psi` `[B, E]`: row i holds f(s_i, a_i, g_j) for every goal j.

    The diagonal holds the positives. It comes from the direct difference, since the matmul loses digits where two
    representations are close.
    """
    matrix = _MATRIX_ENERGIES[name](phi, psi)
    return jnp.where(jnp.eye(matrix.shape[0], dtype=bool), PAIR_ENERGIES[name](phi, psi)[:, None], matrix)


def mean_over(values: Array, valid: Array | None) -> jax.Array:
    """Returns the mean of `values` `[B]` over the rows that are `valid` `[B]`; none: over all. 0 without any row."""
    return jnp.mean(values) if valid is None else jnp.sum(jnp.where(valid, values, 0)) / jnp.maximum(jnp.sum(valid), 1)


def forward_infonce(energy: Array, valid: Array | None = None) -> jax.Array:
    """InfoNCE of `energy` `[B, B]`: each `valid` row classifies the goals (van den Oord et al., 2018)."""
    return mean_over(jax.nn.logsumexp(energy, axis=1) - jnp.diagonal(energy), valid)


def backward_infonce(energy: Array, valid: Array | None = None) -> jax.Array:
    """InfoNCE of `energy` `[B, B]`: the goal of each `valid` row classifies the states and actions of these rows."""
    return forward_infonce(energy.T if valid is None else jnp.where(valid, energy.T, -jnp.inf), valid)


def symmetric_infonce(energy: Array, valid: Array | None = None) -> jax.Array:
    return 0.5 * (forward_infonce(energy, valid) + backward_infonce(energy, valid))


def binary_nce(energy: Array, valid: Array | None = None) -> jax.Array:
    """Classifies the pairs of `valid` rows of `energy` `[B, B]` with goals as positive or negative, of equal weight."""
    batch = energy.shape[0]
    positives = -mean_over(jax.nn.log_sigmoid(jnp.diagonal(energy)), valid)
    not_real = jnp.where(jnp.eye(batch, dtype=bool), 0.0, -jax.nn.log_sigmoid(-energy))
    if valid is None:
        return positives + jnp.sum(not_real) / (batch * (batch - 1))
    return positives + mean_over(jnp.sum(not_real, axis=1), valid) / (batch - 1)


CONTRASTIVE_LOSSES: dict[str, ContrastiveLoss] = {
    "forward_infonce": forward_infonce,
    "backward_infonce": backward_infonce,
    "symmetric_infonce": symmetric_infonce,
    "binary_nce": binary_nce,
}


def critic_loss(
    energy: Array, contrastive: ContrastiveLoss, logsumexp_penalty: float, valid: Array | None = None
) -> tuple[jax.Array, Metrics]:
    """Critic's loss, given `energy` `[B, B]`; the penalty keeps the rows' partition functions near 1.

    Rows that are not `valid` `[B]` count nowhere but with their goals, as negatives; none: all rows are valid.
    """
    batch = energy.shape[0]
    log_partition = jax.nn.logsumexp(energy, axis=1)
    positives = jnp.diagonal(energy)
    if valid is None:
        negative = (jnp.sum(energy) - jnp.sum(positives)) / (batch * (batch - 1))
    else:
        negative = mean_over(jnp.sum(energy, axis=1) - positives, valid) / (batch - 1)
    loss = contrastive(energy, valid) + logsumexp_penalty * mean_over(log_partition**2, valid)
    return loss, {
        "critic/loss": loss,
        "critic/accuracy": mean_over(jnp.argmax(energy, axis=1) == jnp.arange(batch), valid),
        "critic/positive": mean_over(positives, valid),
        "critic/negative": negative,
        "critic/logsumexp": mean_over(log_partition, valid),
    }


def actor_loss(log_prob: Array, energy: Array, log_alpha: Array) -> tuple[jax.Array, Metrics]:
    """Actor's loss, given `log_prob` and `energy` `[B]` of its own actions towards the relabelled goals."""
    loss = jnp.mean(jnp.exp(log_alpha) * log_prob - energy)
    return loss, {"actor/loss": loss, "actor/entropy": -jnp.mean(log_prob), "actor/energy": jnp.mean(energy)}


def alpha_loss(log_alpha: Array, log_prob: Array, target_entropy: float) -> tuple[jax.Array, Metrics]:
    """Entropy coefficient's loss: raises it while `-log_prob` `[B]` is below `target_entropy` on average (SAC)."""
    loss = jnp.exp(log_alpha) * jnp.mean(jax.lax.stop_gradient(-log_prob - target_entropy))
    return loss, {"alpha/loss": loss, "alpha/log_alpha": log_alpha}
