"""Hazards of reaching a goal: the critic's networks, their likelihood, and the value that follows from them.

The time until a goal is reached has a distribution over the rows that follow. The critic has a logit of being at the
goal now and, for each time k, a logit of the hazard: the probability of reaching the goal in k rows if it was not
reached before.

Source: SRL (arXiv 2605.31273) and ChronoSRL (arXiv 2609.36238), which use one critic.
"""

from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from shared.networks import Encoder
from shared.types import Array, Params

_FILM_SCALE = 0.1  # published
_BASIS_STD = 0.02  # published


class Hazards(NamedTuple):
    """Outputs of a critic: `now` `[...]`, `later` `[..., W]` and `occupancy` `[..., K]`, all logits.

    `now`: probability of being at the goal already. `later`: hazards of the times 0..W-1; that of time 0 is beside
    `now` and never has an event, as published. `occupancy`: share of each bin of time at the goal.
    """

    now: jax.Array
    later: jax.Array
    occupancy: jax.Array


class HazardCritic(NamedTuple):
    """Parameters of the encoders of states and actions and of goals, and of the head that joins both."""

    state_action: Params
    goal: Params
    head: Params


class NormalisedEncoder(Encoder):
    """Inputs `[..., *]` to a representation `[..., E]` with layer norm."""

    def setup(self) -> None:
        super().setup()
        self.norm = nn.LayerNorm()

    def after_blocks(self, x: jax.Array) -> jax.Array:
        return self.norm(super().after_blocks(x))


class HazardHead(Encoder):
    """Representations `[..., E]` of a state with its action and of a goal to `Hazards`, through a trunk of its own.

    The first of the two is modulated by the second (FiLM), then both go into the trunk with their difference and their
    product. All hazards are made from one vector, through a basis.

    Attributes:
        representation_size: rank of the basis.
        inputs: E.
        horizon: W.
        bins: K, or 0.
    """

    inputs: int
    horizon: int
    bins: int = 0

    def setup(self) -> None:
        super().setup()
        self.film = self.dense(2 * self.inputs, kernel_init=self.head.kernel_init)
        self.now = self.dense(1, kernel_init=self.head.kernel_init)
        self.basis = self.dense(self.horizon, kernel_init=nn.initializers.normal(_BASIS_STD))
        if self.bins:
            self.occupancy = self.dense(self.bins, kernel_init=self.head.kernel_init)

    def __call__(self, *inputs: Array) -> Hazards:
        return super().__call__(self._join(*inputs))

    def before_blocks(self, *inputs: Array) -> jax.Array:
        return super().before_blocks(self._join(*inputs))

    def after_blocks(self, x: jax.Array) -> Hazards:  # type: ignore[override]
        occupancy = self.occupancy(x) if self.bins else jnp.zeros((*x.shape[:-1], 0))
        return Hazards(self.now(x)[..., 0], self.basis(self.head(x)), occupancy)

    def _join(self, phi: Array, psi: Array) -> jax.Array:
        scale, shift = jnp.split(self.film(psi), 2, axis=-1)
        phi = (1 + _FILM_SCALE * scale) * phi + _FILM_SCALE * shift
        return jnp.concatenate([phi, psi, phi - psi, phi * psi], axis=-1)


def hazard_loss(hazards: Hazards, event: Array, time: Array, censor: Array) -> jax.Array:
    """Returns the negative log likelihood `[B]` of labels `[B]` under `hazards` with logits `[B]` and `[B, W]`.

    `event` bool: the goal is reached in `time` rows; times beyond the last count as W - 1. Without the event, the goal
    is known not to be reached now or at the times 0..`censor`-1.
    """
    horizon = hazards.later.shape[-1]
    time_bin = jnp.minimum(time, horizon - 1)
    missed = jnp.arange(horizon) < jnp.where(event, time_bin, censor)[:, None]
    log_missed = jnp.sum(jnp.where(missed, jax.nn.log_sigmoid(-hazards.later), 0), axis=-1)
    hit = jnp.take_along_axis(hazards.later, time_bin[:, None], axis=-1)[:, 0]
    log_later = jax.nn.log_sigmoid(-hazards.now) + log_missed + jnp.where(event, jax.nn.log_sigmoid(hit), 0)
    return -jnp.where(event & (time == 0), jax.nn.log_sigmoid(hazards.now), log_later)


def log_survival(hazards: Hazards) -> jax.Array:
    """Returns the log probability `[..., W + 1]` of not being at the goal before each of the times 0..W.

    A goal that is reached already counts as reached before time 0.
    """
    log_missed = jnp.cumsum(jax.nn.log_sigmoid(-hazards.later), axis=-1)
    log_not_now = jax.nn.log_sigmoid(-hazards.now)[..., None]
    return jnp.concatenate([log_not_now, log_not_now + log_missed], axis=-1)


def hazard_value(hazards: Hazards, discount: float) -> jax.Array:
    """Returns minus the discounted time `[...]` until the goal is reached, at most W rows: 0 at the goal."""
    survival = jnp.exp(log_survival(hazards)[..., :-1])
    return -jnp.sum(survival * discount ** jnp.arange(survival.shape[-1]), axis=-1)
