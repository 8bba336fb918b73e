"""A matrix: what a user says, and the runs and cells that follow from it."""

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
from shared.values import Depth, EnvId, Seed

_SET_BY_THE_MATRIX = ("env", "seed", "learners", "stream")
_CHANGED_BY_THE_MATRIX = ("collector", "evaluation")
MOST_LEARNERS = 20_000  # of all runs: a plan of them takes a moment
_DEPTHS = ("depth", "actor_depth", "critic_depth")


class MatrixConfig(Frozen):
    """Environments x collector depths x learner depths x seeds."""

    envs: tuple[EnvId, ...]
    collector_depths: tuple[Depth, ...]
    learner_depths: tuple[Depth, ...] = ()
    """Passive learners; all train on the stream of each collector network. Left out: ordinary training alone."""
    seeds: tuple[Seed, ...] = (0,)
    evaluation_envs: dict[str, EnvId] = Field(default={})
    """Where an environment's policies are evaluated elsewhere, such as in its maze's `_eval` layout."""
    experiment: dict[str, Any] = Field(default={})
    """Any other key of an experiment, the same for all runs; learners are the collector network at other depths."""

    @field_validator("envs", "collector_depths", "learner_depths", "seeds")
    @classmethod
    def _axis(cls, axis: tuple) -> tuple:
        if not axis:
            raise ValueError("is empty; name at least one")
        twice = sorted(str(value) for value, times in Counter(axis).items() if times > 1)
        if twice:
            raise ValueError(f"{', '.join(twice)} is there twice; name each once")
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
            raise ValueError("experiment.replay.pace: free would not treat all cells alike; use lockstep")
        unknown = sorted(set(self.evaluation_envs) - set(self.envs))
        if unknown:
            raise ValueError(f"evaluation_envs.{unknown[0]}: not among envs")
        runs = len(self.envs) * len(self.collector_depths) * len(self.seeds)
        if runs * (1 + len(self.learner_depths)) > MOST_LEARNERS:
            raise ValueError(
                f"seeds: {runs} runs with {1 + len(self.learner_depths)} learners each are more than "
                f"{MOST_LEARNERS} learners; split the matrix"
            )
        return self


class MatrixRun(NamedTuple):
    """One collector network with all learners, or, fed from its stream, one learner more. `name`: of its folder."""

    name: str
    collector_depth: int
    experiment: Experiment

    @property
    def fed(self) -> bool:
        """Whether it trains on the recorded stream of another run, with no collector at work."""
        return self.experiment.stream is not None

    @property
    def learner_depths(self) -> tuple[int, ...]:
        """Of the cells it carries."""
        return tuple(learner.depth for learner in self.experiment.learners.values())


def load_matrix(path: Path) -> MatrixConfig:
    """The matrix in a YAML file, every run of it valid. Raises ConfigError, a line for each mistake."""
    try:
        matrix = MatrixConfig.model_validate(read_yaml(path, "matrix", "envs"))
    except ValidationError as error:
        raise ConfigError("\n".join(f"{path}: {line}" for line in explain(error, MatrixConfig))) from error
    expand(matrix, prefix=f"{path}: ")
    return matrix


def expand(matrix: MatrixConfig, prefix: str = "") -> list[MatrixRun]:
    """Every run: one for each environment, collector depth and seed. Raises ConfigError as `load_matrix` does."""
    return [
        _make_run(matrix, env, depth, seed, prefix)
        for env in matrix.envs
        for depth in matrix.collector_depths
        for seed in matrix.seeds
    ]


def learner_name(depth: int) -> str:
    return f"d{depth}"


def _make_run(matrix: MatrixConfig, env: str, depth: int, seed: int, prefix: str) -> MatrixRun:
    values = copy.deepcopy(matrix.experiment)
    collector = {**values.get("collector", {}), "depth": depth}
    alike = {key: value for key, value in collector.items() if key in NetworkConfig.model_fields}
    if "learner_resources" in collector:
        alike["resources"] = collector["learner_resources"]
    values |= {"env": env, "seed": seed, "collector": collector}
    # The collector learner starts from seed 0: no passive learner may be its twin.
    values["learners"] = {learner_name(each): {**alike, "depth": each, "seed": 1} for each in matrix.learner_depths}
    if env in matrix.evaluation_envs:
        values["evaluation"] = {**values.get("evaluation", {}), "env": matrix.evaluation_envs[env]}
    name = f"{env.replace(':', '.')}-c{depth}-s{seed}"
    return MatrixRun(name, depth, parse_experiment(values, prefix))


def fed_run(run: MatrixRun, depth: int, stream: Path) -> MatrixRun:
    """The learner of `depth` that `run` would have, alone, trained on the recorded `stream`."""
    name = learner_name(depth)
    changes = {"learners": {name: run.experiment.learners[name]}, "record": False, "stream": str(stream)}
    return run._replace(name=f"{run.name}-{name}", experiment=run.experiment.model_copy(update=changes))


def write_matrix(matrix: MatrixConfig, path: Path) -> None:
    path.write_text(
        yaml.safe_dump(matrix.model_dump(mode="json", exclude_unset=True), sort_keys=False), encoding="utf-8"
    )
