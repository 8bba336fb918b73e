"""Registry of objectives by name, including users' own.

An own objective has the dotted path `package.module:Class` as its name; the class is an `Objective`.
"""

import difflib
import importlib
import os
import re
import sys

from learner.objectives.base import Objective
from learner.objectives.check import Misfit, explain, make_own
from shared.algorithm_config import KEYS_OF_ONE
from shared.config import ACTIVE, Experiment
from shared.envs.base import EnvSpec
from shared.errors import ConfigError

_CLASSES = {
    "contrastive": "learner.objectives.contrastive:Contrastive",
    "cloning": "learner.objectives.cloning:Cloning",
    "survival": "learner.objectives.survival:Survival",
    "chrono": "learner.objectives.chrono:Chrono",
    "sac": "learner.objectives.sac:Sac",
}
_DOTTED = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")


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
        _check_keys(experiment, name)
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


def _check_keys(experiment: Experiment, name: str) -> None:
    """Raises ConfigError if a learner with an objective of Fathom's has a key that only another objective reads."""
    learner, objective = experiment.learner(name), experiment.algorithm_of(name).objective
    readers = KEYS_OF_ONE | {"options": "an objective of your own"}
    for key in learner.algorithm:
        if (reader := readers.get(key, objective)) != objective:
            field = f"learners.{name}.algorithm.{key}"
            raise ConfigError(f"{field}: a key of {reader}, and this learner has {objective}; leave it out")
    objectives = {experiment.algorithm_of(each).objective for each in experiment.all_learners}
    if experiment.algorithm.options and objectives <= _CLASSES.keys():
        raise ConfigError(
            "algorithm.options: no learner has an objective of your own, which would read it; leave it out"
        )


def make_objectives(experiment: Experiment, spec: EnvSpec) -> dict[str, Objective]:
    """Returns the objective of every learner by the learner's name. Raises ConfigError that names the key."""
    return {name: make_objective(experiment, name, spec) for name in experiment.all_learners}


def find_objective(name: str, field: str) -> type[Objective]:
    """Returns the class of the objective called `name`. Raises ConfigError that begins with `field`."""
    path = _CLASSES.get(name, name)
    if not _DOTTED.fullmatch(path):
        nearest = difflib.get_close_matches(name, _CLASSES, n=1, cutoff=0.0)[0]
        raise ConfigError(
            f"{field}: unknown objective {name!r}; did you mean {nearest!r}? known: {', '.join(_CLASSES)}, or your own "
            "package.module:Class"
        )
    if path == name and os.getcwd() not in sys.path:  # Python puts a command's own folder there, not the user's
        sys.path.append(os.getcwd())
    module, attribute = path.split(":")
    try:
        kind = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise ConfigError(f"{field}: {name}: cannot be imported ({error}); name it as package.module:Class") from error
    except (Exception, SystemExit) as error:
        raise ConfigError(f"{field}: {name}: cannot be imported: {explain(error)}") from error
    if not (isinstance(kind, type) and issubclass(kind, Objective)):
        raise ConfigError(
            f"{field}: {name}: not a subclass of learner.objectives.base.Objective; see docs/objectives.md"
        )
    return kind
