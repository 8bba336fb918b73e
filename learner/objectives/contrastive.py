"""Contrastive RL: a critic that tells a row's own hindsight goal from the minibatch's other goals.

Source: Eysenbach et al., "Contrastive Learning as Goal-Conditioned RL" (2022); Wang et al., "1000 Layer Networks for
Self-Supervised RL" (2025).
"""

from functools import cached_property
from typing import NamedTuple

import jax

from learner import losses
from learner.objectives.base import Objective, Trained, kernel_entries, zeros_of
from learner.relabel import Transitions, relabel
from shared.networks import Encoder, Pass, make_trunk, side_by_side
from shared.policy import tanh_gaussian
from shared.types import Array, Metrics, Params, Rows


class ContrastiveCritic(NamedTuple):
    """Parameters of the encoder phi of states `[..., S]` and actions `[..., H * A]`, and psi of goals `[..., G]`."""

    state_action: Params
    goal: Params


class Contrastive(Objective):
    """Contrastive RL."""

    @cached_property
    def encoder(self) -> Encoder:
        return Encoder(make_trunk(self.network, self.network.critic_trunk), self.network.representation_size)

    def init(self, key: Array) -> tuple[Params, ContrastiveCritic]:
        actor_key, state_action_key, goal_key = jax.random.split(key, 3)
        state, action, goal = zeros_of(self.spec.state_size, self.action_size, self.spec.goal_size)
        state_action = self.encoder.init(state_action_key, state, action)
        critic = ContrastiveCritic(state_action, self.encoder.init(goal_key, goal))
        return self.actor.init(actor_key, state, goal), critic

    def label(self, rows: Rows, key: Array) -> Transitions:
        algorithm = self.algorithm
        return relabel(rows, self.spec.goal_indices, algorithm.discount, key, algorithm.chunk, algorithm.final_goals)

    def loss(self, trained: Trained, targets: tuple, minibatch: Transitions, key: Array) -> tuple[jax.Array, Metrics]:
        actor, critic, log_alpha = trained
        state, action, goal, valid = minibatch
        algorithm = self.algorithm
        (mean, log_std), psi = side_by_side(
            Pass(self.actor, actor, (state, goal)), Pass(self.encoder, critic.goal, (goal,))
        )
        own_action, log_prob = tanh_gaussian(mean, log_std, key)
        fixed = jax.lax.stop_gradient(critic.state_action)
        phi, own_phi = side_by_side(
            Pass(self.encoder, critic.state_action, (state, action)), Pass(self.encoder, fixed, (state, own_action))
        )
        own_energy = losses.PAIR_ENERGIES[algorithm.energy](own_phi, jax.lax.stop_gradient(psi))
        actor_loss, actor_metrics = losses.actor_loss(log_prob, own_energy, jax.lax.stop_gradient(log_alpha))
        energy = losses.energy_matrix(algorithm.energy, phi, psi)
        contrastive = losses.CONTRASTIVE_LOSSES[algorithm.contrastive_loss]
        critic_loss, critic_metrics = losses.critic_loss(energy, contrastive, algorithm.logsumexp_penalty, valid)
        alpha_loss, alpha_metrics = losses.alpha_loss(log_alpha, log_prob, self.target_entropy)
        return actor_loss + critic_loss + alpha_loss, actor_metrics | critic_metrics | alpha_metrics

    def score(self, critic: ContrastiveCritic, state: Array, action: Array, goal: Array) -> jax.Array:
        phi, psi = self.encoder.apply(critic.state_action, state, action), self.encoder.apply(critic.goal, goal)
        return losses.PAIR_ENERGIES[self.algorithm.energy](phi, psi)

    @property
    def critic_layers(self) -> int:
        return self.network.critic_trunk.depth

    def step_flops(self, batch: int) -> float:
        actor, critic = self.shapes()
        passes = 3 * kernel_entries(actor) + 5 * kernel_entries(critic.state_action) + 3 * kernel_entries(critic.goal)
        return 2.0 * batch * passes + 3 * 2.0 * batch * batch * self.network.representation_size
