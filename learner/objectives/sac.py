"""Soft actor-critic with hindsight goals: the temporal-difference control among the objectives.

Sources: Haarnoja et al., "Soft Actor-Critic Algorithms and Applications" (2018); Andrychowicz et al., "Hindsight
Experience Replay" (2017), its strategy `future`.

Differences from SAC with HER in JaxGCRL, whose constants are the defaults here:
- A goal is a later row of the episode, drawn as for every other objective. There, it is the last state of an episode
  that was truncated, and episodes that terminated keep the commanded goal, which rows do not hold.
- The reward judges the state after the action; there, the state before it.
- A row whose successor is unknown, because the window ends or the episode was truncated, has no part in the critic's
  loss. There, a truncated row is masked, but not the last row of a window.
- Each row keeps its own goal. There, rows shift against their goals if an earlier episode of the window terminated.
- All networks are built from the trunk of the other objectives. There, they are two layers of 256 units with relu.
- Actor, critic and entropy coefficient step at once, each from the values before the step. There, each step uses the
  results of the one before it, in the order coefficient, critic, actor.
"""

from functools import cached_property
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from learner import losses
from learner.objectives.base import Objective, Trained, kernel_entries, zeros_of
from learner.relabel import chunk_actions, future_goals, later_rows
from shared.networks import Encoder, Pass, make_trunk, side_by_side
from shared.policy import tanh_gaussian
from shared.types import TERMINATED, Array, Metrics, Params, Rows


class Twins(NamedTuple):
    """Parameters of two critics of equal sizes, `[..., S]`, `[..., H * A]` and `[..., G]` to a value `[..., 1]`."""

    first: Params
    second: Params


class Successions(NamedTuple):
    """Input of a gradient step: rows, H actions, and what followed them.

    `state` `[..., S]`, `action` `[..., H * A]`, `goal` `[..., G]`. `reward` `[...]`: discounted sum of the rewards of
    the H steps. `next_state` `[..., S]`: the state after them. `continuation` `[...]`: factor of that state's value,
    discount ** H, or 0 where the episode terminated. `valid` `[...]` bool: the H steps and what followed are known.
    """

    state: Array
    action: Array
    goal: Array
    reward: Array
    next_state: Array
    continuation: Array
    valid: Array


class Sac(Objective):
    """Soft actor-critic with twin critics, target networks and hindsight goals.

    A step is worth 1 if the state that it leads to is within the environment's goal radius. The distance is Euclidean
    in goal space, also for an environment with a `distance` of its own (`arm_grasp`): a recorded episode ends with a
    point of goal space, and not with a state, which `GoalEnv.distance` needs.
    """

    NEEDS_ENDS = True

    @cached_property
    def critic(self) -> Encoder:
        return Encoder(make_trunk(self.network, self.network.critic_trunk), 1)

    def init(self, key: Array) -> tuple[Params, Twins]:
        actor_key, *critic_keys = jax.random.split(key, 3)
        state, action, goal = zeros_of(self.spec.state_size, self.action_size, self.spec.goal_size)
        twins = Twins(*(self.critic.init(critic_key, state, action, goal) for critic_key in critic_keys))
        return self.actor.init(actor_key, state, goal), twins

    def init_targets(self, critic: Twins) -> Twins:
        return jax.tree.map(jnp.copy, critic)

    def next_targets(self, targets: Twins, critic: Twins) -> Twins:
        return optax.incremental_update(critic, targets, self.algorithm.sac.target_rate)

    def label(self, rows: Rows, key: Array) -> Successions:
        algorithm, spec, chunk = self.algorithm, self.spec, self.algorithm.chunk
        goal = future_goals(rows, spec.goal_indices, algorithm.discount, key, algorithm.final_goals)
        later = later_rows(rows.episode)
        points = next_points(rows, spec.goal_indices)
        reward = jnp.zeros(later.shape)
        for step in range(chunk):
            distance = jnp.linalg.norm(jnp.roll(points, -step, axis=1) - goal, axis=-1)
            reward += algorithm.discount**step * (distance < spec.goal_radius)
        terminated = (later == chunk - 1) & (jnp.roll(rows.end, 1 - chunk, axis=1) == TERMINATED)
        labelled = Successions(
            state=rows.state,
            action=chunk_actions(rows, chunk)[0],
            goal=goal,
            reward=reward,
            next_state=jnp.roll(rows.state, -chunk, axis=1),
            continuation=jnp.where(terminated, 0.0, algorithm.discount**chunk),
            valid=terminated | (later >= chunk),
        )
        return jax.tree.map(lambda x: x[:, :-1], labelled)

    def loss(self, trained: Trained, targets: Twins, minibatch: Successions, key: Array) -> tuple[jax.Array, Metrics]:
        state, action, goal, reward, next_state, continuation, valid = minibatch
        own_key, next_key = jax.random.split(key)
        fixed = jax.lax.stop_gradient(trained)
        (mean, log_std), (next_mean, next_log_std) = side_by_side(
            Pass(self.actor, trained.actor, (state, goal)), Pass(self.actor, fixed.actor, (next_state, goal))
        )
        own_action, log_prob = tanh_gaussian(mean, log_std, own_key)
        next_action, next_log_prob = tanh_gaussian(next_mean, next_log_std, next_key)
        value, own_value, next_value = self._values(
            (trained.critic, state, action, goal),
            (fixed.critic, state, own_action, goal),
            (targets, next_state, next_action, goal),
        )
        soft_value = next_value.min(axis=-1) - jnp.exp(fixed.log_alpha) * next_log_prob
        critic_loss, critic_metrics = temporal_difference_loss(value, reward + continuation * soft_value, valid)
        actor_loss, actor_metrics = losses.actor_loss(log_prob, own_value.min(axis=-1), fixed.log_alpha)
        alpha_loss, alpha_metrics = losses.alpha_loss(trained.log_alpha, log_prob, self.target_entropy)
        metrics = actor_metrics | critic_metrics | alpha_metrics | {"critic/reward": losses.mean_over(reward, valid)}
        return actor_loss + critic_loss + alpha_loss, metrics

    def score(self, critic: Twins, state: Array, action: Array, goal: Array) -> jax.Array:
        (values,) = self._values((critic, state, action, goal))
        return values.min(axis=-1)

    def _values(self, *queries: tuple[Twins, Array, Array, Array]) -> list[jax.Array]:
        """Returns the values `[..., 2]` of both twins for each of `queries`, all computed in one scan."""
        values = side_by_side(*(Pass(self.critic, twin, query[1:]) for query in queries for twin in query[0]))
        return [jnp.concatenate(pair, axis=-1) for pair in zip(values[::2], values[1::2], strict=True)]

    @property
    def critic_layers(self) -> int:
        return self.network.critic_trunk.depth

    def step_flops(self, batch: int) -> float:
        actor, critic = self.shapes()  # each runs once more, forwards, on the next state
        return 2.0 * batch * (4 * kernel_entries(actor) + 6 * kernel_entries(critic))


def next_points(rows: Rows, goal_indices: tuple[int, ...]) -> jax.Array:
    """Returns the point of goal space `[B, W, G]` to which each of `rows` `[B, W, ...]` led.

    The point is 0 in a window's last row, unless an episode ended with this row.
    """
    achieved = rows.state[..., jnp.array(goal_indices)]
    is_last = later_rows(rows.episode) == 0
    return jnp.where(is_last[..., None], rows.final, jnp.roll(achieved, -1, axis=1))


def temporal_difference_loss(value: Array, target: Array, valid: Array) -> tuple[jax.Array, Metrics]:
    """Critic's loss: half the squared error of both twins' `value` `[B, 2]` against `target` `[B]`, in `valid` rows."""
    target = jax.lax.stop_gradient(target)
    loss = losses.mean_over(0.5 * jnp.mean((value - target[:, None]) ** 2, axis=-1), valid)
    return loss, {
        "critic/loss": loss,
        "critic/value": losses.mean_over(jnp.mean(value, axis=-1), valid),
        "critic/target": losses.mean_over(target, valid),
        "critic/valid": jnp.mean(valid.astype(jnp.float32)),
    }
