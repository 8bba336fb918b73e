"""Survival RL: a critic that predicts in how many rows a goal is reached, learned by maximum likelihood.

Source: SRL (arXiv 2605.31273) and its public code, for a single goal: hazards, fusion of the representations (FiLM,
difference, product), labels, value and constants are the published ones. Differences: the actor's gradient is taken
with the critic before its step; the point in which an episode ended can be the one that reaches the goal; a window's
last row is no training row, so that every objective makes the same minibatches of the same windows.
"""

from functools import cached_property
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from learner import losses
from learner.objectives.base import Objective, Trained, kernel_entries, zeros_of
from learner.objectives.hazards import (
    HazardCritic,
    HazardHead,
    Hazards,
    NormalisedEncoder,
    hazard_loss,
    hazard_value,
    log_survival,
)
from learner.objectives.reach import DistanceAfter, Future, Points, by_blocks, first_reach, look_ahead, mixed_goals
from learner.relabel import chunk_actions
from shared.algorithm_config import ChronoConfig, SurvivalConfig
from shared.network_config import BLOCK_DEPTH, TrunkSize
from shared.networks import Encoder, Pass, make_trunk, side_by_side
from shared.policy import tanh_gaussian
from shared.types import Array, Metrics, Params, Rows


class Reaches(NamedTuple):
    """Labelled rows: `state` `[..., S]`, `action` `[..., H * A]`, `goal` `[..., G]`, all others `[...]` or `[..., K]`.

    `event` bool: the row's episode reaches the goal, in `time` int32 rows; without it, the goal is known not to be
    reached at the times 0..`censor`-1. `valid` bool: see `Transitions`. Chrono alone has the others. `terminates` bool:
    the episode terminates later in the window. `occupancy` `[..., K]` float: shares of bins of time at the goal, where
    `observed` `[..., K]` bool.
    """

    state: Array
    action: Array
    goal: Array
    event: Array
    time: Array
    censor: Array
    valid: Array | None = None
    terminates: Any = None
    occupancy: Any = None
    observed: Any = None


class Survival(Objective):
    """Survival RL. The encoders have half the critic's depth, the head its whole depth.

    With `censoring: remaining`, a termination ends the observation as a truncation does.
    """

    @property
    def constants(self) -> SurvivalConfig | ChronoConfig:
        return self.algorithm.survival

    @property
    def goal_discount(self) -> float:
        """Discount by which future goals are drawn."""
        return self.constants.goal_discount or self.algorithm.discount

    @property
    def radius(self) -> float:
        return self.constants.radius or self.spec.goal_radius

    @property
    def bins(self) -> int:
        """Bins of time in which occupancy is predicted."""
        return 0

    @property
    def encoder_size(self) -> TrunkSize:
        depth, width = self.network.critic_trunk
        return TrunkSize(half_depth(depth), width)

    @cached_property
    def encoder(self) -> Encoder:
        size = self.algorithm.survival.representation_size
        return NormalisedEncoder(make_trunk(self.network, self.encoder_size), size)

    @cached_property
    def head(self) -> HazardHead:
        trunk, size = make_trunk(self.network, self.network.critic_trunk), self.encoder.representation_size
        return HazardHead(trunk, self.constants.rank, size, self.spec.episode_length, self.bins)

    def init(self, key: Array) -> tuple[Params, HazardCritic]:
        actor_key, state_action_key, goal_key, head_key = jax.random.split(key, 4)
        state, action, goal = zeros_of(self.spec.state_size, self.action_size, self.spec.goal_size)
        critic = HazardCritic(
            self.encoder.init(state_action_key, state, action),
            self.encoder.init(goal_key, goal),
            self.head.init(head_key, *zeros_of(*[self.encoder.representation_size] * 2)),
        )
        return self.actor.init(actor_key, state, goal), critic

    def label(self, rows: Rows, key: Array) -> Reaches:
        indices, algorithm = self.spec.goal_indices, self.algorithm
        goal = mixed_goals(rows, indices, self.constants.goals, self.goal_discount, key, algorithm.final_goals)
        action, valid = chunk_actions(rows, algorithm.chunk)
        reaches = by_blocks(self.reaches, rows, goal, indices)
        return jax.tree.map(lambda x: x[:, :-1], Reaches(rows.state, action, goal, valid=valid, **reaches))

    def reaches(self, points: Points, goal: Array) -> dict[str, Array]:
        """Returns the fields of `Reaches`, `[B, W, ...]`, that say when `goal` `[B, W, G]` is reached."""
        future, distance_after = look_ahead(points, goal)
        first = first_reach(distance_after, future, self.radius)
        reached = {"event": first >= 0, "time": jnp.maximum(first, 0), "censor": self.censor(future)}
        return reached | self.more_labels(future, distance_after)

    def censor(self, future: Future) -> jax.Array:
        """Returns the number `[B, W]` of times at which a goal that was not reached counts as not reached."""
        horizon = jnp.full_like(future.points, self.spec.episode_length)
        if self.algorithm.survival.censoring == "horizon":
            return horizon
        return jnp.minimum(future.points + 1, horizon)  # the row's own time, 0, is one of them

    def more_labels(self, future: Future, distance_after: DistanceAfter) -> dict[str, Array]:
        """Returns further fields of `Reaches`, `[B, W, ...]`."""
        return {}

    def loss(self, trained: Trained, targets: tuple, minibatch: Reaches, key: Array) -> tuple[jax.Array, Metrics]:
        actor, critic, log_alpha = trained
        state, action, goal = minibatch[:3]
        (mean, log_std), psi = side_by_side(
            Pass(self.actor, actor, (state, goal)), Pass(self.encoder, critic.goal, (goal,))
        )
        own_action, log_prob = tanh_gaussian(mean, log_std, key)
        fixed: HazardCritic = jax.lax.stop_gradient(critic)
        phi, own_phi = side_by_side(
            Pass(self.encoder, critic.state_action, (state, action)),
            Pass(self.encoder, fixed.state_action, (state, own_action)),
        )
        hazards, own_hazards = side_by_side(
            Pass(self.head, critic.head, (phi, psi)),
            Pass(self.head, fixed.head, (own_phi, jax.lax.stop_gradient(psi))),
        )
        value = self.value(own_hazards, minibatch)
        actor_loss, actor_metrics = losses.actor_loss(log_prob, value, jax.lax.stop_gradient(log_alpha))
        critic_loss, critic_metrics = self.critic_loss(hazards, phi, psi, minibatch)
        alpha_loss, alpha_metrics = losses.alpha_loss(log_alpha, log_prob, self.target_entropy)
        return actor_loss + critic_loss + alpha_loss, actor_metrics | critic_metrics | alpha_metrics

    def value(self, hazards: Hazards, minibatch: Reaches) -> jax.Array:
        """Returns the value `[B]` that the actor raises."""
        return hazard_value(hazards, self.algorithm.discount)

    def critic_loss(self, hazards: Hazards, phi: Array, psi: Array, minibatch: Reaches) -> tuple[jax.Array, Metrics]:
        """Returns the critic's loss for representations `phi`, `psi` `[B, E]` and the `hazards` made from them."""
        event, time, valid = minibatch.event, minibatch.time, minibatch.valid
        loss = losses.mean_over(hazard_loss(hazards, event, time, minibatch.censor), valid)
        reached = event if valid is None else event & valid
        return loss, {
            "critic/loss": loss,
            "critic/events": losses.mean_over(event, valid),
            "critic/predicted_events": losses.mean_over(-jnp.expm1(log_survival(hazards)[:, -1]), valid),
            "critic/event_time": losses.mean_over(time, reached),
        }

    def score(self, critic: HazardCritic, state: Array, action: Array, goal: Array) -> jax.Array:
        phi = self.encoder.apply(critic.state_action, state, action)
        psi = self.encoder.apply(critic.goal, goal)
        return hazard_value(self.head.apply(critic.head, phi, psi), self.algorithm.discount)

    @property
    def critic_layers(self) -> int:
        return self.encoder_size.depth + self.network.critic_trunk.depth

    def step_flops(self, batch: int) -> float:
        actor, critic = self.shapes()
        both = kernel_entries(critic.state_action) + kernel_entries(critic.head)
        return 2.0 * batch * (3 * kernel_entries(actor) + 5 * both + 3 * kernel_entries(critic.goal))


def half_depth(depth: int) -> int:
    """Returns half of `depth`, rounded down to a depth that a trunk can have, at least 1."""
    half = max(depth // 2, 1)
    return half if half < BLOCK_DEPTH else half - half % BLOCK_DEPTH
