"""ChronoSRL: survival RL whose representations also measure time, and whose critic also predicts time at the goal.

Source: ChronoSRL (arXiv 2609.36238), by its public code, for a single goal. Differences beside those of `survival.py`:
a termination makes the occupancy of all later times known to be 0, not only of those inside the window; rows that are
not valid take part in the separation loss by their goals alone; time 0 has no bin of occupancy, because it is never
observed; the score of actions is the value of the hazards alone, because the share of episodes that terminate, which
weighs occupancy in the actor's loss, belongs to minibatches.
"""

from functools import cached_property

import jax
import jax.numpy as jnp
import numpy as np

from learner import losses
from learner.objectives.hazards import Hazards
from learner.objectives.reach import DistanceAfter, Future, occupancy
from learner.objectives.survival import Reaches, Survival
from shared.algorithm_config import ChronoConfig
from shared.network_config import TrunkSize
from shared.networks import Encoder, make_trunk
from shared.types import Array, Metrics

_EPSILON = 1e-12  # keeps the root's gradient finite where two goals are equal


class Chrono(Survival):
    """ChronoSRL. Encoders and head have the critic's depth each."""

    NEEDS_ENDS = True

    @property
    def constants(self) -> ChronoConfig:
        return self.algorithm.chrono

    @property
    def encoder_size(self) -> TrunkSize:
        return self.network.critic_trunk

    @cached_property
    def encoder(self) -> Encoder:
        return Encoder(make_trunk(self.network, self.encoder_size), self.network.representation_size)

    @cached_property
    def edges(self) -> tuple[int, ...]:
        return geometric_edges(self.spec.episode_length, self.constants.occupancy_bins)

    @property
    def bins(self) -> int:
        return len(self.edges) - 1

    def censor(self, future: Future) -> jax.Array:
        return jnp.full_like(future.points, self.spec.episode_length)

    def more_labels(self, future: Future, distance_after: DistanceAfter) -> dict[str, Array]:
        shares, observed = occupancy(distance_after, future, self.edges, self.radius)
        return {"terminates": future.terminates, "occupancy": shares, "observed": observed}

    def value(self, hazards: Hazards, minibatch: Reaches) -> jax.Array:
        discount = self.algorithm.discount
        terminates = losses.mean_over(minibatch.terminates, minibatch.valid)
        return super().value(hazards, minibatch) + terminates * occupancy_value(hazards, self.edges, discount)

    def critic_loss(self, hazards: Hazards, phi: Array, psi: Array, minibatch: Reaches) -> tuple[jax.Array, Metrics]:
        constants, valid = self.constants, minibatch.valid
        if valid is None:
            valid = jnp.ones_like(minibatch.event)
        hazard, metrics = super().critic_loss(hazards, phi, psi, minibatch)
        row_time = -jnp.log(self.algorithm.discount)  # the distance that one row of time has
        distance = -losses.energy_matrix("norm", phi, psi)
        reached = valid & minibatch.event & (minibatch.time >= 1)
        time = time_loss(jnp.diagonal(distance), row_time * minibatch.time, reached)
        margin = row_time * self.spec.episode_length
        censored = valid & ~minibatch.event
        separation = separation_loss(distance, margin, minibatch.goal, self.radius, valid, censored)
        occupied = occupancy_loss(hazards.occupancy, minibatch.occupancy, minibatch.observed & valid[:, None])
        weighted = (
            constants.time_weight * time,
            constants.separation_weight * separation,
            constants.occupancy_weight * occupied,
        )
        loss = hazard + sum(weighted)
        return loss, metrics | {
            "critic/loss": loss,
            "critic/hazard_loss": hazard,
            "critic/time_loss": time,
            "critic/separation_loss": separation,
            "critic/occupancy_loss": occupied,
            "critic/terminates": losses.mean_over(minibatch.terminates, valid),
        }

    def step_flops(self, batch: int) -> float:
        return super().step_flops(batch) + 3 * 2.0 * batch * batch * self.network.representation_size


def geometric_edges(horizon: int, bins: int) -> tuple[int, ...]:
    """Returns the edges of at most `bins` bins of the times 1..`horizon`-1, in geometric progression.

    Bin k holds the times from edge k to edge k + 1, exclusively. Edges that round to one number are one edge.
    """
    return tuple(np.unique(np.round(horizon ** (np.arange(bins + 1) / bins)).astype(int)).tolist())


def occupancy_value(hazards: Hazards, edges: tuple[int, ...], discount: float) -> jax.Array:
    """Returns the discounted number `[...]` of rows at the goal."""
    start, stop = np.array(edges[:-1]), np.array(edges[1:])
    worth = jnp.asarray((discount**start - discount**stop) / (1 - discount))
    return jnp.matmul(jax.nn.sigmoid(hazards.occupancy), worth, precision=jax.lax.Precision.HIGHEST)


def time_loss(distance: Array, time: Array, reached: Array) -> jax.Array:
    """Huber loss of the `distance` `[B]` of representations against the `time` `[B]`, over the rows `reached` `[B]`."""
    residual = jnp.abs(distance - time)
    return losses.mean_over(jnp.where(residual <= 1, 0.5 * residual**2, residual - 0.5), reached)


def separation_loss(
    distance: Array, margin: Array, goal: Array, radius: float, valid: Array, censored: Array
) -> jax.Array:
    """Mean hinge loss that keeps representations `margin` apart which no time connects.

    `distance` `[B, B]` of rows and goals: the pairs are those of `valid` `[B]` rows with other rows' goals that are
    more than `radius` from the row's own `goal` `[B, G]`, and of `censored` `[B]` rows with their own goals.
    """
    goal_distance = jnp.sqrt(jnp.sum((goal[:, None] - goal[None, :]) ** 2, axis=-1) + _EPSILON)
    own = jnp.eye(len(distance), dtype=bool)
    pairs = jnp.where(own, censored[:, None], valid[:, None] & (goal_distance > radius))
    return losses.mean_over(jnp.maximum(0, margin - distance), pairs)


def occupancy_loss(logits: Array, occupancy: Array, observed: Array) -> jax.Array:
    """Binary cross-entropy of `occupancy` `[B, K]` over the bins that are `observed` `[B, K]`."""
    return losses.mean_over(jax.nn.softplus(logits) - logits * occupancy, observed)
