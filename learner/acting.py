"""Policies of learners: functions with which collectors and evaluations act, and the parameters that these take."""

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import jax

from learner.objectives.base import Objective
from learner.objectives.registry import make_objective
from shared.config import ACTIVE, Experiment
from shared.envs.base import EnvSpec
from shared.networks import Actor
from shared.policy import ActorCritic, BestPolicy, DeterministicPolicy, PolicyFunction, StochasticPolicy
from shared.types import Params


def collecting_policy(experiment: Experiment, spec: EnvSpec) -> PolicyFunction:
    """Returns the policy of the collectors: one sample of the actor, or the best of `collector.best_of`."""
    return _policy(make_objective(experiment, ACTIVE, spec), experiment.collector.best_of, StochasticPolicy)


def evaluation_policy(experiment: Experiment, name: str, spec: EnvSpec) -> PolicyFunction:
    """Returns the policy by which the learner called `name` is measured and drawn.

    It is deterministic, or the best of `evaluation.best_of` samples of the actor. `spec` is that of the training
    environment.
    """
    return _policy(make_objective(experiment, name, spec), experiment.evaluation.best_of, DeterministicPolicy)


def evaluation_policies(experiment: Experiment, spec: EnvSpec) -> dict[str, PolicyFunction]:
    """Returns `evaluation_policy` of every learner by its name."""
    return {name: evaluation_policy(experiment, name, spec) for name in experiment.all_learners}


def _policy(objective: Objective, best_of: int, single: Callable[[Actor], PolicyFunction]) -> PolicyFunction:
    return _best_policy(objective, best_of) if best_of > 1 else single(objective.actor)


@lru_cache  # equal objectives share what is compiled for their policy
def _best_policy(objective: Objective, best_of: int) -> PolicyFunction:
    return BestPolicy(objective.actor, objective.score, best_of)


def policy_params(actor: Params, critic: Any, best_of: int) -> Params:
    """Returns the parameters of a policy, given those of a learner's networks."""
    return ActorCritic(actor, critic) if best_of > 1 else actor


def policy_bytes(objective: Objective, best_of: int) -> int:
    """Returns the size of a policy's parameters."""
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(policy_params(*objective.shapes(), best_of)))
