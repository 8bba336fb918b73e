"""Registry of objectives by name, including users' own.

An own objective has the dotted path `package.module:Class` as its name; the class is an `Objective`.
"""

import difflib
import importlib

from learner.objectives.base import Objective
from learner.objectives.check import Misfit, make_own
from shared.config import ACTIVE, Experiment
from shared.envs.base import EnvSpec
from shared.errors import ConfigError
from shared.own_code import DOTTED, load_object

_CLASSES = {
    "contrastive": "learner.objectives.contrastive:Contrastive",
    "cloning": "learner.objectives.cloning:Cloning",
    "survival": "learner.objectives.survival:Survival",
    "chrono": "learner.objectives.chrono:Chrono",
    "sac": "learner.objectives.sac:Sac",
}


def make_objective(experiment: Experiment, name: str, spec: EnvSpec) -> Objective:
    """Returns the objective of the learner called `name`. Raises ConfigError that names the key."""
    learner, algorithm = experiment.learner(name), experiment.algorithm_of(name)
    field = f"learners.{name}.algorithm" if "objective" in learner.algorithm else "algorithm"
    kind = find_objective(algorithm.objective, f"{field}.objective")
    if algorithm.chunk > spec.episode_length:
        field = f"learners.{name}.algorithm" if "chunk" in learner.algorithm else "algorithm"
        raise ConfigError(
            f"{field}.chunk: {algorithm.chunk} actions are more than an episode's {spec.episode_length}; use fewer"
        )
    if "critic" not in kind.PARTS:
        _check_single(experiment, name, algorithm.objective)
    if algorithm.objective in _CLASSES:
        return kind(learner.network, algorithm, spec)
    try:
        return make_own(kind, learner.network, algorithm, spec)
    except Misfit as error:
        raise ConfigError(f"{field}.objective: {algorithm.objective}: {error}; see docs/objectives.md") from error


def _check_single(experiment: Experiment, name: str, objective: str) -> None:
    """Raises ConfigError if the policy of a learner without a critic would have to choose among several samples."""
    samples = {"evaluation.best_of": experiment.evaluation.best_of}
    if name == ACTIVE:
        samples["collector.best_of"] = experiment.collector.best_of
    for key, number in samples.items():
        if number > 1:
            raise ConfigError(
                f"{key}: {number} samples are ranked by a critic, which {objective}, the objective of learner {name}, "
                "does not have; use 1"
            )


def make_objectives(experiment: Experiment, spec: EnvSpec) -> dict[str, Objective]:
    """Returns the objective of every learner by the learner's name. Raises ConfigError that names the key."""
    return {name: make_objective(experiment, name, spec) for name in experiment.all_learners}


def find_objective(name: str, field: str) -> type[Objective]:
    """Returns the class of the objective called `name`. Raises ConfigError that begins with `field`."""
    if name in _CLASSES:
        module, _, attribute = _CLASSES[name].partition(":")
        return getattr(importlib.import_module(module), attribute)
    if not DOTTED.fullmatch(name):
        nearest = difflib.get_close_matches(name, _CLASSES, n=1, cutoff=0.0)[0]
        raise ConfigError(
            f"{field}: unknown objective {name!r}; did you mean {nearest!r}? known: {', '.join(_CLASSES)}, or your own "
            "package.module:Class"
        )
    try:
        kind = load_object(name)
    except ValueError as error:
        raise ConfigError(f"{field}: {error}") from error
    if not (isinstance(kind, type) and issubclass(kind, Objective)):
        raise ConfigError(
            f"{field}: {name}: not a subclass of learner.objectives.base.Objective; see docs/objectives.md"
        )
    return kind
