"""Configuration of a matrix, and its expansion to runs and cells."""

import copy
import hashlib
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from pydantic import Field, ValidationError, field_validator, model_validator

from shared.algorithm_config import KEYS_OF_ONE, OWN_CONSTANTS, AlgorithmConfig
from shared.config import Experiment
from shared.config_file import explain, parse_experiment, read_yaml
from shared.errors import ConfigError
from shared.files import replace_file
from shared.network_config import NetworkConfig
from shared.values import Depth, EnvId, Frozen, ObjectiveId, PositiveInt, Seed

_SET_BY_THE_MATRIX = ("env", "seed", "learners", "stream")
_CHANGED_BY_THE_MATRIX = ("collector", "evaluation")
MOST_LEARNERS = 20_000  # of all runs together, so that an estimate takes seconds
_DEPTHS = ("depth", "actor_depth", "critic_depth")
_SHORT_NAME = re.compile("[A-Za-z][A-Za-z0-9_]{0,39}")


class MatrixConfig(Frozen):
    """Environments x collector depths x objectives x learner depths x seeds."""

    envs: tuple[EnvId, ...]
    collector_depths: tuple[Depth, ...]
    learner_depths: tuple[Depth, ...] = ()
    """Passive learners, which all train on the stream of each collector network. Left out: ordinary training alone."""
    objectives: dict[ObjectiveId, dict[str, Any]] = Field(default={})
    """Objectives of the passive learners: a list of names, or a mapping from each name to keys of `algorithm` that are
    others for its learners. With the key `objective` the name is your own, such as `chunks: {objective: contrastive,
    chunk: 3}`. Every learner depth is trained with every objective. Left out: the experiment's own."""
    seeds: tuple[Seed, ...] = (0,)
    evaluation_envs: dict[str, tuple[EnvId, ...]] = Field(default={})
    """Environments to evaluate in, by training environment, such as its maze's `_eval` layout: one or a list, of which
    the first is the headline's. Others are evaluated where `experiment.evaluation` says."""
    budgets: dict[str, PositiveInt] = Field(default={})
    """Environment steps of the runs in an environment, by its name; others have `experiment.budget`."""
    experiment: dict[str, Any] = Field(default={})
    """Any other key of an experiment, the same for all runs; learners copy the collector network but for its depth."""

    @field_validator("envs", "collector_depths", "learner_depths", "seeds")
    @classmethod
    def _axis(cls, axis: tuple) -> tuple:
        if not axis:
            raise ValueError("is empty; name at least one")
        if twice := sorted(str(value) for value, times in Counter(axis).items() if times > 1):
            raise ValueError(f"{', '.join(twice)} is named twice; name each once")
        return axis

    @field_validator("evaluation_envs", mode="before")
    @classmethod
    def _lists(cls, given: Any) -> Any:
        if not isinstance(given, Mapping):
            return given
        return {env: (name,) if isinstance(name, str) else name for env, name in given.items()}

    @field_validator("objectives", mode="before")
    @classmethod
    def _by_name(cls, given: Any) -> Any:
        if isinstance(given, (list, tuple)) and all(isinstance(name, str) for name in given):
            return {name: {} for name in cls._axis(tuple(given))}
        if given == {}:
            raise ValueError("is empty; name at least one")
        if isinstance(given, Mapping):  # a name without keys is None in YAML
            return {name: {} if keys is None else keys for name, keys in given.items()}
        raise ValueError("use a list of names, or a mapping from names to keys of algorithm")

    @model_validator(mode="after")
    def _objective_keys(self) -> "MatrixConfig":
        if self.objectives and not self.learner_depths:
            raise ValueError(
                "objectives: only passive learners have them, and there are none; name learner_depths, or set "
                "experiment.algorithm.objective"
            )
        for name, keys in self.objectives.items():
            if "objective" in keys and name in OWN_CONSTANTS:
                raise ValueError(
                    f"objectives.{name}.objective: {name} is an objective itself; leave it out, or choose another name"
                )
        shared = self.experiment.get("algorithm", {})
        for key, objective in KEYS_OF_ONE.items():
            if self.objectives and isinstance(shared, Mapping) and key in shared and objective != self.own_objective:
                raise ValueError(
                    f"experiment.algorithm.{key}: is a key of {objective}; set objectives.{objective}.{key}"
                )
        return self

    @model_validator(mode="after")
    def _keys(self) -> "MatrixConfig":
        for key in _CHANGED_BY_THE_MATRIX:
            if not isinstance(self.experiment.get(key, {}), Mapping):
                raise ValueError(f"experiment.{key}: input should be a valid dictionary; leave it out for none")
        taken = [key for key in _SET_BY_THE_MATRIX if key in self.experiment]
        taken += [f"collector.{key}" for key in _DEPTHS if key in self.experiment.get("collector", {})]
        if taken:
            raise ValueError(f"experiment.{taken[0]}: the matrix sets it; leave it out")
        replay = self.experiment.get("replay", {})
        if isinstance(replay, Mapping) and replay.get("pace") == "free":
            raise ValueError("experiment.replay.pace: free gives cells different paces; use lockstep")
        for key in ("evaluation_envs", "budgets"):
            if unknown := sorted(set(getattr(self, key)) - set(self.envs)):
                raise ValueError(f"{key}.{unknown[0]}: not among envs")
        if len({_folder_name(env) for env in self.envs}) < len(self.envs):
            raise ValueError("envs: two of them differ in ':' and '.' alone, and would share their folders; name one")
        runs = len(self.envs) * len(self.collector_depths) * len(self.seeds)
        learners = 1 + len(self.learner_depths) * max(len(self.objectives), 1)
        if runs * learners > MOST_LEARNERS:
            raise ValueError(
                f"seeds: {runs} runs with {learners} learners each are more than "
                f"{MOST_LEARNERS} learners; split the matrix"
            )
        return self

    @property
    def own_objective(self) -> str:
        """The experiment's objective: that of the collector learner, and without `objectives` of all learners."""
        algorithm = self.experiment.get("algorithm", {})
        default = AlgorithmConfig.model_fields["objective"].default
        return algorithm.get("objective", default) if isinstance(algorithm, Mapping) else default

    @property
    def objective_keys(self) -> dict[str, dict[str, Any]]:
        """Objectives of the passive learners with their keys, also without the axis."""
        return self.objectives or {self.own_objective: {}}

    def objective_of(self, learner: str) -> str:
        """Returns by which name in `objective_keys` the learner of this name goes; the collector learner's is its own.

        So is that of learners called `d<depth>`, which come from a matrix without objectives.
        """
        names = {learner_name(name, depth): name for name in self.objectives for depth in self.learner_depths}
        return names.get(learner, self.own_objective)


class MatrixRun(NamedTuple):
    """A run of a matrix: a collector network with all its learners, or a single learner fed from a recorded stream."""

    name: str
    """Name of the run's folder."""
    collector_depth: int
    experiment: Experiment

    @property
    def fed(self) -> bool:
        """True if the run trains on the recorded stream of another run, without collectors."""
        return self.experiment.stream is not None

    @property
    def fed_by(self) -> str:
        """Name of the run whose stream a fed run trains on; empty for other runs."""
        return Path(self.experiment.stream).parent.name if self.experiment.stream else ""

    @property
    def learner_depths(self) -> tuple[int, ...]:
        """Depths of the passive learners."""
        return tuple(learner.depth for learner in self.experiment.learners.values())


def _folder_name(env: str) -> str:
    return env.replace(":", ".")


def learner_name(objective: str, depth: int) -> str:
    """Returns the name of a matrix's learner, such as `survival-d16`.

    An own objective `package.module:Class` becomes `Class` with six digits of its digest, which is the same in every
    matrix, and another one for a class of this name in another module.
    """
    if not _SHORT_NAME.fullmatch(objective):
        shown = re.sub("[^A-Za-z0-9_]", "_", objective.rpartition(":")[2])[:40]
        objective = f"{shown}-{hashlib.sha256(objective.encode()).hexdigest()[:6]}"
    return f"{objective}-d{depth}"


def load_matrix(path: Path) -> MatrixConfig:
    """Loads a matrix from a YAML file and checks all its runs. Raises ConfigError, a line for each mistake."""
    try:
        matrix = MatrixConfig.model_validate(read_yaml(path, "matrix", "envs"))
    except ValidationError as error:
        raise ConfigError("\n".join(f"{path}: {line}" for line in explain(error, MatrixConfig))) from error
    expand(matrix, prefix=f"{path}: ")
    return matrix


def expand(matrix: MatrixConfig, prefix: str = "") -> list[MatrixRun]:
    """Returns a run for each environment, collector depth and seed. Raises ConfigError, its lines after `prefix`."""
    return [
        _make_run(matrix, env, depth, seed, prefix)
        for env in matrix.envs
        for depth in matrix.collector_depths
        for seed in matrix.seeds
    ]


def _make_run(matrix: MatrixConfig, env: str, depth: int, seed: int, prefix: str) -> MatrixRun:
    values = copy.deepcopy(matrix.experiment)
    collector = {**values.get("collector", {}), "depth": depth}
    network = {key: value for key, value in collector.items() if key in NetworkConfig.model_fields}
    if "learner_resources" in collector:
        network["resources"] = collector["learner_resources"]
    values |= {"env": env, "seed": seed, "collector": collector}
    # The collector learner has seed 0. With the same seed, a passive learner of its depth would be its copy.
    copies = {each: {**network, "depth": each, "seed": 1} for each in matrix.learner_depths}
    if matrix.objectives:
        values["learners"] = {
            learner_name(objective, each): {**learner, "algorithm": {"objective": objective, **keys}}
            for objective, keys in matrix.objectives.items()
            for each, learner in copies.items()
        }
    else:
        values["learners"] = {f"d{each}": learner for each, learner in copies.items()}
    if env in matrix.evaluation_envs:
        evaluation = {key: value for key, value in values.get("evaluation", {}).items() if key != "env"}
        values["evaluation"] = evaluation | {"envs": matrix.evaluation_envs[env]}
    if env in matrix.budgets:
        values["budget"] = {"env_steps": matrix.budgets[env]}
    name = f"{_folder_name(env)}-c{depth}-s{seed}"
    with matrix_keys(matrix, prefix):
        return MatrixRun(name, depth, parse_experiment(values, prefix))


@contextmanager
def matrix_keys(matrix: MatrixConfig, prefix: str = "") -> Iterator[None]:
    """Replaces keys of learners' algorithms by the matrix's in the ConfigErrors of its block, one line for each."""
    try:
        yield
    except ConfigError as error:
        lines = [_with_matrix_key(line.removeprefix(prefix), matrix) for line in str(error).splitlines()]
        raise ConfigError("\n".join(prefix + line for line in dict.fromkeys(lines))) from error


def _with_matrix_key(line: str, matrix: MatrixConfig) -> str:
    for objective, keys in matrix.objectives.items():
        for depth in matrix.learner_depths:
            own = f"learners.{learner_name(objective, depth)}.algorithm."
            if line.startswith(f"{own}objective:"):
                key = f"objectives.{objective}.objective" if "objective" in keys else "objectives"
                return line.replace(f"{own}objective", key, 1)
            if line.startswith(own):
                return line.replace(own, f"objectives.{objective}.", 1)
    return line


def fed_run(run: MatrixRun, name: str, stream: Path) -> MatrixRun:
    """Returns a run of the learner called `name` alone, which `run` would have, trained on the recorded `stream`."""
    changes = {"learners": {name: run.experiment.learners[name]}, "record": False, "stream": str(stream)}
    return run._replace(name=f"{run.name}-{name}", experiment=run.experiment.model_copy(update=changes))


def write_matrix(matrix: MatrixConfig, path: Path) -> None:
    values = matrix.model_dump(mode="json", exclude_unset=True)
    replace_file(path, yaml.safe_dump(values, sort_keys=False))
