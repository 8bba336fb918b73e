"""Goal-conditioned behavioural cloning: the control without a critic.

Sources: Ghosh et al., "Learning to Reach Goals via Iterated Supervised Learning" (2019); loss and constants of GCBC as
published with "1000 Layer Networks for Self-Supervised RL" (2025).
"""

import jax
import jax.numpy as jnp

from learner import losses
from learner.objectives.base import Objective, Trained, zeros_of
from learner.relabel import Transitions, relabel
from shared.policy import tanh_gaussian
from shared.types import Array, Metrics, Params, Rows

_INSIDE = 1e-6  # distance of actions from -1 and 1, where atanh is infinite


class Cloning(Objective):
    """Raises the likelihood of the actions that led to the goals of later rows, at a tuned entropy."""

    PARTS = ("actor", "alpha")

    def init(self, key: Array) -> tuple[Params, tuple[()]]:
        return self.actor.init(key, *zeros_of(self.spec.state_size, self.spec.goal_size)), ()

    def label(self, rows: Rows, key: Array) -> Transitions:
        algorithm = self.algorithm
        return relabel(rows, self.spec.goal_indices, algorithm.discount, key, algorithm.chunk, algorithm.final_goals)

    def loss(self, trained: Trained, targets: tuple, minibatch: Transitions, key: Array) -> tuple[jax.Array, Metrics]:
        state, action, goal, valid = minibatch
        mean, log_std = self.actor.apply(trained.actor, state, goal)
        _, log_prob = tanh_gaussian(mean, log_std, key)
        alpha = jax.lax.stop_gradient(jnp.exp(trained.log_alpha))
        actor_loss, actor_metrics = cloning_loss(log_prob, data_log_prob(mean, log_std, action), alpha, valid)
        alpha_loss, alpha_metrics = losses.alpha_loss(trained.log_alpha, log_prob, self.target_entropy)
        return actor_loss + alpha_loss, actor_metrics | alpha_metrics

    @property
    def critic_layers(self) -> int:
        return 0


def data_log_prob(mean: Array, log_std: Array, action: Array) -> jax.Array:
    """Returns the log probability `[...]` of `action` `[..., A]` under a tanh-squashed Gaussian of the same shape."""
    before_tanh = jnp.arctanh(jnp.clip(action, -1 + _INSIDE, 1 - _INSIDE))
    gaussian = jax.scipy.stats.norm.logpdf(before_tanh, mean, jnp.exp(log_std))
    return jnp.sum(gaussian - jnp.log(1 - action**2 + 1e-6), axis=-1)


def cloning_loss(log_prob: Array, of_data: Array, alpha: Array, valid: Array | None) -> tuple[jax.Array, Metrics]:
    """Actor's loss, given `log_prob` `[B]` of its own actions and `of_data` `[B]` of the data's, in `valid` rows."""
    loss = losses.mean_over(alpha * log_prob - of_data, valid)
    return loss, {
        "actor/loss": loss,
        "actor/entropy": -jnp.mean(log_prob),
        "actor/data_log_prob": losses.mean_over(of_data, valid),
    }
