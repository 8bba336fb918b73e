"""State of a learner, in one immutable structure."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from learner.objectives.base import Objective, Trained
from learner.optimisers import OptimiserStates
from shared.types import Array, Params


class LearnerState(NamedTuple):
    """`log_alpha` `[]`: log of the entropy coefficient. `updates` `[]` int32: the policy's version.

    `critic` and `targets` are the objective's; either may be `()`. Every update splits `key`, and no key is used twice.
    """

    actor: Params
    critic: Any
    log_alpha: Array
    targets: Any
    optimisers: OptimiserStates
    key: Array
    updates: Array

    @property
    def trained(self) -> Trained:
        return Trained(self.actor, self.critic, self.log_alpha)


def init_state(objective: Objective, key: Array) -> LearnerState:
    """Returns the state of a learner before its first update. `key` is consumed."""
    params_key, key = jax.random.split(key)
    trained = Trained(*objective.init(params_key), log_alpha=jnp.zeros(()))
    each = zip(objective.optimisers, trained, strict=True)
    states = OptimiserStates(*(optimiser.init(part) for optimiser, part in each))
    targets = objective.init_targets(trained.critic)
    return LearnerState(*trained, targets, states, key, updates=jnp.zeros((), jnp.int32))
