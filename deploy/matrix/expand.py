"""Configuration of a matrix, and its expansion to runs and cells."""

import copy
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from pydantic import Field, ValidationError, field_validator, model_validator

from shared.config import Experiment, Frozen, NetworkConfig
from shared.config_file import explain, parse_experiment, read_yaml
from shared.errors import ConfigError
from shared.files import replace_file
from shared.values import Depth, EnvId, Seed

_SET_BY_THE_MATRIX = ("env", "seed", "learners", "stream")
_CHANGED_BY_THE_MATRIX = ("collector", "evaluation")
MOST_LEARNERS = 20_000  # of all runs together, so that an estimate takes seconds
_DEPTHS = ("depth", "actor_depth", "critic_depth")


class MatrixConfig(Frozen):
    """Environments x collector depths x learner depths x seeds."""

    envs: tuple[EnvId, ...]
    collector_depths: tuple[Depth, ...]
    learner_depths: tuple[Depth, ...] = ()
    """Passive learners, which all train on the stream of each collector network. Left out: ordinary training alone."""
    seeds: tuple[Seed, ...] = (0,)
    evaluation_envs: dict[str, EnvId] = Field(default={})
    """Environments to evaluate in, by training environment, such as its maze's `_eval` layout."""
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
        if unknown := sorted(set(self.evaluation_envs) - set(self.envs)):
            raise ValueError(f"evaluation_envs.{unknown[0]}: not among envs")
        if len({_folder_name(env) for env in self.envs}) < len(self.envs):
            raise ValueError("envs: two of them differ in ':' and '.' alone, and would share their folders; name one")
        runs = len(self.envs) * len(self.collector_depths) * len(self.seeds)
        if runs * (1 + len(self.learner_depths)) > MOST_LEARNERS:
            raise ValueError(
                f"seeds: {runs} runs with {1 + len(self.learner_depths)} learners each are more than "
                f"{MOST_LEARNERS} learners; split the matrix"
            )
        return self


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
    values["learners"] = {f"d{each}": {**network, "depth": each, "seed": 1} for each in matrix.learner_depths}
    if env in matrix.evaluation_envs:
        values["evaluation"] = {**values.get("evaluation", {}), "env": matrix.evaluation_envs[env]}
    name = f"{_folder_name(env)}-c{depth}-s{seed}"
    return MatrixRun(name, depth, parse_experiment(values, prefix))


def fed_run(run: MatrixRun, depth: int, stream: Path) -> MatrixRun:
    """Returns a run of a single learner: that of `depth` which `run` would have, trained on the recorded `stream`."""
    name = f"d{depth}"
    changes = {"learners": {name: run.experiment.learners[name]}, "record": False, "stream": str(stream)}
    return run._replace(name=f"{run.name}-{name}", experiment=run.experiment.model_copy(update=changes))


def write_matrix(matrix: MatrixConfig, path: Path) -> None:
    values = matrix.model_dump(mode="json", exclude_unset=True)
    replace_file(path, yaml.safe_dump(values, sort_keys=False))
