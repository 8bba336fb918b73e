"""Constants of objectives: what learners minimise, and with which hyperparameters."""

from collections.abc import Mapping, Set
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from shared.values import Frozen, NotNegative, Number, ObjectiveId, PositiveFloat, Size


class GoalMix(Frozen):
    """Sources of a minibatch's goals: weights, of which the shares follow."""

    future: NotNegative = 0.85
    """A later row of the same episode, drawn by `goal_discount`."""
    current: NotNegative = 0.05
    """The row itself."""
    random: NotNegative = 0.10
    """Any row of the same window."""

    @model_validator(mode="after")
    def _some(self) -> "GoalMix":
        if self.future + self.current + self.random <= 0:
            raise ValueError("future, current and random are all 0; give one of them a weight")
        return self


class SurvivalConfig(Frozen):
    """Constants of survival RL (SRL, arXiv 2605.31273)."""

    goals: GoalMix = GoalMix()
    radius: PositiveFloat | None = None
    """Distance, in the goal's units, within which a goal counts as reached; none: the environment's goal radius."""
    censoring: Literal["horizon", "remaining"] = "horizon"
    """Time until which a goal that was not reached counts as not reached: `horizon`, a whole episode, as published, or
    `remaining`, the rows that follow, as survival analysis has it."""
    rank: Size = 64
    """Rank of the basis from which the logits of all hazards are made."""
    representation_size: Size = 128
    goal_discount: Annotated[Number, Field(gt=0, lt=1)] | None = None
    """By which future goals are drawn; none: `discount`, as published."""


class ChronoConfig(Frozen):
    """Constants of ChronoSRL (arXiv 2609.36238)."""

    goals: GoalMix = GoalMix()
    radius: PositiveFloat | None = None
    """Distance, in the goal's units, within which a goal counts as reached; none: the environment's goal radius."""
    rank: Size = 64
    """Rank of the basis from which the logits of all hazards are made."""
    occupancy_bins: Size = 32
    """Bins of time, in geometric progression, in which occupancy is predicted."""
    goal_discount: Annotated[Number, Field(gt=0, lt=1)] | None = 0.99
    """By which future goals are drawn; none: `discount`."""
    time_weight: NotNegative = 1.0
    separation_weight: NotNegative = 1.0
    occupancy_weight: NotNegative = 1.0


class SacConfig(Frozen):
    """Constants of soft actor-critic (arXiv 1812.05905) with hindsight goals."""

    target_rate: Annotated[Number, Field(gt=0, le=1)] = 0.005
    """Share by which a gradient step moves the target networks towards the critic."""


_PLAIN = {"chunk": 1, "discount": 0.99, "actor_learning_rate": 3e-4, "critic_learning_rate": 3e-4}
OWN_CONSTANTS: dict[str, dict[str, Any]] = {
    "contrastive": _PLAIN,
    "survival": _PLAIN | {"discount": 0.999},
    "chrono": _PLAIN | {"discount": 0.999, "chunk": 2},
    "cloning": _PLAIN,
    "sac": _PLAIN | {"discount": 0.9, "actor_learning_rate": 1e-4, "critic_learning_rate": 1e-4},
}
"""Published constants in which objectives differ, as defaults of keys of `algorithm`; own objectives have the first."""


def _own(key: str) -> Any:
    """Returns a field whose default is the objective's own."""
    return Field(default_factory=lambda given: OWN_CONSTANTS.get(given.get("objective", ""), _PLAIN)[key])


PACE_KEYS = ("batch_size", "windows_per_update", "minibatches_per_update")
"""Keys of `algorithm` that are the same for all learners of a run, because they set its pace."""


class AlgorithmConfig(Frozen):
    """Hyperparameters of an objective; the defaults are its authors'."""

    objective: ObjectiveId = "contrastive"
    """Aim of a learner: contrastive, survival, chrono, cloning, sac, or your own `package.module:Class`."""
    chunk: Size = _own("chunk")
    """Actions that a policy decides at once and executes one after the other; by default 1, 2 for chrono."""
    final_goals: bool = False
    """An episode's last state may be a goal, too; for environments that terminate on success."""
    discount: Annotated[Number, Field(gt=0, lt=1)] = _own("discount")
    """Discount of later rows as goals, and of returns; by default 0.99, 0.999 for survival and chrono, 0.9 for sac."""
    batch_size: Annotated[Size, Field(ge=2)] = 512
    windows_per_update: Size = 512
    minibatches_per_update: Size = 800
    actor_learning_rate: PositiveFloat = _own("actor_learning_rate")
    """By default 3e-4, 1e-4 for sac; likewise the critic's."""
    critic_learning_rate: PositiveFloat = _own("critic_learning_rate")
    alpha_learning_rate: PositiveFloat = 3e-4
    target_entropy_per_action: Number = -0.5
    logsumexp_penalty: NotNegative = 0.1
    energy: Literal["norm", "l2", "dot", "cosine"] = "norm"
    contrastive_loss: Literal["forward_infonce", "backward_infonce", "symmetric_infonce", "binary_nce"] = (
        "forward_infonce"
    )
    survival: SurvivalConfig = SurvivalConfig()
    chrono: ChronoConfig = ChronoConfig()
    sac: SacConfig = SacConfig()
    options: dict[str, Any] = Field(default={})
    """Constants of your own objective."""
    max_gradient_norm: PositiveFloat | None = None
    """Largest global norm of the actor's and of the critic's gradients, each; none: unlimited."""
    non_finite: Literal["skip", "end"] = "skip"
    """Reaction to a gradient step whose loss or gradients are not finite. skip: the step is left out, counted and
    reported; an update without any finite step ends the run. end: the first such step ends the run."""


KEYS_OF_ONE = {"logsumexp_penalty": "contrastive", "energy": "contrastive", "contrastive_loss": "contrastive"} | {
    objective: objective for objective in ("survival", "chrono", "sac")
}
"""Keys of `algorithm` that one objective alone reads."""


def missing_reader(key: str, objectives: Set[str]) -> str:
    """Returns the one objective that reads `key` of `algorithm` if it is none of `objectives`, else an empty text.

    An objective of the user's own may read every key.
    """
    if objectives - OWN_CONSTANTS.keys():
        return ""
    reader = "an objective of your own" if key == "options" else KEYS_OF_ONE.get(key, "")
    return "" if reader in objectives else reader


def derive_algorithm(shared: AlgorithmConfig, own: Mapping[str, Any]) -> AlgorithmConfig:
    """Returns `shared` with a learner's `own` keys; see `Experiment.algorithm_of`. Raises pydantic.ValidationError."""
    if not own:
        return shared
    values = shared.model_dump()
    if own.get("objective", shared.objective) != shared.objective:
        values = {key: value for key, value in values.items() if key not in _PLAIN}
    return AlgorithmConfig.model_validate(merged(values, own))


def merged(values: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Returns nested `values` with `changes`, which replace single keys at any depth."""
    return {**values} | {
        key: merged(values[key], change)
        if isinstance(change, Mapping) and isinstance(values.get(key), Mapping)
        else change
        for key, change in changes.items()
    }
