"""Configuration of an experiment, validated before anything starts.

YAML -> `Experiment` (frozen, unknown keys refused) -> `Plan` (`shared/plan.py`). Inner functions receive
values, never a configuration.
"""

import re
from collections import Counter
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError, field_validator, model_validator

from shared.algorithm_config import PACE_KEYS, AlgorithmConfig, derive_algorithm, missing_reader
from shared.errors import ConfigError
from shared.mistakes import describe, describe_unknown_key
from shared.network_config import NetworkConfig
from shared.values import (
    CONTROL,
    EnvId,
    Frozen,
    NotNegative,
    PositiveFloat,
    PositiveInt,
    Seed,
    Size,
    Text,
    Whole,
)

LONGEST_NAME = 64  # characters of a learner's name, which is a part of file and table names
ACTIVE = "active"  # the collector learner's name, in tables, metrics and summaries


class EnvOptions(Frozen):
    """Differences of an environment from the one that its id names."""

    episode_length: Annotated[Whole, Field(ge=2, le=10**6)] | None = None
    """Environment steps of an episode, and of a relabelling window; none: the environment's own."""
    backend: Literal["spring", "generalized", "mjx"] | None = None
    """Brax's physics; none: the environment's own."""
    physics_dt: Annotated[PositiveFloat, Field(ge=1e-5, le=1)] | None = None
    """Seconds of one physics step; none: the environment's own."""
    reference_state: bool = False
    """Humanoids: the reference's 268 numbers, which hold the commanded goal."""
    fixed_goals: bool = False
    """While collecting, each environment keeps its first start and goal for the whole run, as the reference does."""
    separate_walls: bool = False
    """Mazes: a box for each wall cell, as in the reference, instead of few large ones."""
    bodies: Annotated[Whole, Field(ge=1, le=16)] = 1
    """Points in mazes: number of points that share a maze and one joint goal."""

    def refuse(self, *names: str) -> "EnvOptions":
        """Returns the options. Raises ValueError that names the option if one of `names` is set."""
        for name in names:
            if getattr(self, name) != type(self).model_fields[name].default:
                raise ValueError(f"env_options.{name}: this environment has no such option; leave it out")
        return self


_NAME = r"[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?"
LabelKey = Annotated[str, Field(pattern=rf"^([a-z0-9.-]+/)?{_NAME}$")]
LabelValue = Annotated[str, Field(pattern=rf"^{_NAME}$")]


class Resources(Frozen):
    """Resources of one role on its node."""

    cpus: NotNegative = 0
    """Cores that Ray reserves; 0: roles share all cores."""
    gpus: NotNegative | None = None
    """GPUs, or a share of one; 0: the CPU alone; none: a share of the cluster's GPUs."""
    memory_gb: NotNegative = 0
    """GB (1e9 bytes) of memory that Ray reserves; it enforces no limit."""
    labels: dict[LabelKey, LabelValue] = Field(default={})
    """Labels of suitable nodes, as given by `ray start --labels`; none: any node."""
    threads: Size | None = None
    """Threads of the CPU's computations; none: all cores."""

    @field_validator("gpus")
    @classmethod
    def _whole_gpus(cls, gpus: float | None) -> float | None:
        if gpus is not None and gpus > 1 and not gpus.is_integer():
            raise ValueError(f"{gpus:g} GPUs are neither a share of one nor whole; use {int(gpus)} or {int(gpus) + 1}")
        return gpus

    @model_validator(mode="after")
    def _labelled(self) -> "Resources":
        if self.labels and self.gpus is None:
            raise ValueError("labels say where the role goes; say by gpus what it takes there (0: the CPU alone)")
        return self


class LearnerConfig(NetworkConfig):
    """A learner: its network, its seed of initialisation, its algorithm where it differs, and its resources."""

    seed: Seed = 0
    algorithm: dict[str, Any] = Field(default={})
    """Keys of `algorithm` that are others for this learner, such as `{objective: survival}`."""
    resources: Resources = Resources()


class CollectorConfig(NetworkConfig):
    """The collector network, its learner, and the collectors that act with it."""

    seed: Seed = 0
    learner_resources: Resources = Resources()
    """Resources of the collector learner, which trains this network."""
    actors: Size = 1
    """Collector processes."""
    environments: Size = 512
    """Environments of each collector."""
    unroll_length: Size = 62
    """Steps of each environment in one jitted call."""
    best_of: Size = 1
    """Actions (or action chunks) that a collector samples in each state; the critic's best is taken."""
    collector_resources: Resources = Resources()
    """Resources of each collector."""

    @property
    def learner(self) -> LearnerConfig:
        """The collector learner."""
        return LearnerConfig(**self.network.model_dump(), seed=self.seed, resources=self.learner_resources)


class ReplayConfig(Frozen):
    """The replay buffer and the pace it sets."""

    steps_per_environment: PositiveInt = 10_000
    """Newest steps of each environment, from which windows are drawn."""
    prefill_steps: PositiveInt = 1_000
    """Steps of each environment before training starts (at least one error buffer of windows)."""
    samples_per_insert: Annotated[PositiveFloat, Field(ge=1e-6, le=1e6)] = 1.0
    """Windows trained on per window inserted since training could start; 1.0 reproduces the reference."""
    pace: Literal["lockstep", "free"] = "lockstep"
    """lockstep: the slowest learner sets the pace. free: the collector learner does."""
    sampling: Literal["uniform", "every_environment"] = "uniform"
    """uniform: all windows alike. every_environment: equally many windows of each environment in an update, as in the
    reference; in one process."""
    same_batches: bool = False
    """All learners train on the same minibatches, with the same goals; in one process. Off: each draws its own."""
    port: Annotated[Whole, Field(gt=0, lt=65536)] | None = None
    """The server's port; none: a free one."""
    timeout_seconds: PositiveFloat = 600.0
    """Longest wait for one insert or sample; after it the run ends, and its error says which role waited for which."""
    audit: bool = False
    """Keep the keys of all windows that the server confirmed, in audit/ in the run directory: 16 bytes each."""


class EvaluationConfig(Frozen):
    """Evaluations: deterministic policy by default, fresh episodes, equal keys for all learners."""

    envs: tuple[EnvId, ...] = ()
    """Environments with equal sizes, such as a maze and its `_eval` layout; results without an environment's name are
    of the first. None: the training environment."""
    episodes: Size = 128
    count: Size = 10
    """Evaluations in a run, at equal distances in updates, besides the one of the untrained policy."""
    best_of: Size = 1
    """Actions (or action chunks) that are sampled in each state, of which the critic's best is taken; 1: the policy is
    deterministic."""
    resources: Resources = Resources()

    @model_validator(mode="before")
    @classmethod
    def _of_older_versions(cls, given: Any) -> Any:
        """Their files have one environment at most, as `env`."""
        if isinstance(given, Mapping) and "env" in given and "envs" not in given:
            return {"envs" if key == "env" else key: value for key, value in given.items()}
        return given

    @field_validator("envs", mode="before")
    @classmethod
    def _one(cls, given: Any) -> Any:
        return () if given is None else (given,) if isinstance(given, str) else given

    @field_validator("envs")
    @classmethod
    def _different(cls, envs: tuple[str, ...]) -> tuple[str, ...]:
        if twice := [name for name, times in Counter(envs).items() if times > 1]:
            raise ValueError(f"{twice[0]} is named twice; name each once")
        return envs


class BudgetConfig(Frozen):
    env_steps: PositiveInt = 100_000_000


class SnapshotConfig(Frozen):
    """Snapshots, from which `--resume` resumes a run."""

    count: Size = 20
    """Snapshots in a run, at equal distances in updates."""
    keep: Size = 2
    """Number of newest snapshots that are kept, besides the best by time at goal."""


class SupervisionConfig(Frozen):
    """Limits beyond which a role counts as dead, and its restarts."""

    heartbeat_seconds: PositiveFloat = 30.0
    """Longest time without a heartbeat of a role."""
    progress_seconds: PositiveFloat = 600.0
    """Longest time between two completed calls of a role, counted after the first."""
    start_seconds: PositiveFloat = 300.0
    """Longest time for all processes to start."""
    restarts_per_hour: Annotated[Whole, Field(ge=0, le=10**6)] = 10
    """Restarts of each role; one more death within an hour ends the run."""
    disk_reserve_gb: NotNegative = 1.0
    """GB (1e9 bytes) of disk that stay free; with less, roles that write wait for room."""


class WandbConfig(Frozen):
    """Settings for the copy of a run's metrics at Weights & Biases."""

    project: Annotated[str, Field(pattern=rf"^[^/\\#?%:{CONTROL}]{{1,128}}$")] | None = None
    """Project that gets the same metrics as TensorBoard; none: wandb is not even imported."""
    entity: Annotated[str, Field(pattern=rf"^[^/\\#?%:{CONTROL}]{{1,128}}$")] | None = None
    """User or team that owns the project; none: the account's default."""

    @model_validator(mode="after")
    def _whose(self) -> "WandbConfig":
        if self.entity is not None and self.project is None:
            raise ValueError("entity names the owner of a project, and there is no project; name one, too")
        return self


class Experiment(Frozen):
    """Configuration of one run: an environment, one collector network, and any number of passive learners."""

    env: EnvId
    """An env id that `fathom envs` lists, or your own `package.module:Class`."""
    env_options: EnvOptions = EnvOptions()
    seed: Seed = 0
    collector: CollectorConfig = CollectorConfig()
    learners: dict[str, LearnerConfig] = Field(default={})
    """Passive learners by name."""
    algorithm: AlgorithmConfig = AlgorithmConfig()
    replay: ReplayConfig = ReplayConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    budget: BudgetConfig = BudgetConfig()
    snapshots: SnapshotConfig = SnapshotConfig()
    supervision: SupervisionConfig = SupervisionConfig()
    placement: Literal["pack", "spread"] = "pack"
    """pack: all roles on as few nodes as possible. spread: collectors and learners on different nodes, if possible."""
    record: bool = False
    """Keep all unrolls of the collectors, in stream/ in the run directory."""
    stream: Text | None = None
    """Folder of a recorded stream on which passive learners train; none: collectors make the data."""
    wandb: WandbConfig = WandbConfig()

    @model_validator(mode="after")
    def _names(self) -> "Experiment":
        options = Counter(name.replace("-", "_") for name in self.learners)  # `--learners.a-b` means both
        for name in self.learners:
            wrong = ""
            if name == ACTIVE:
                wrong = "this name is the collector learner's; choose another"
            elif not re.fullmatch("[A-Za-z0-9_-]*[A-Za-z0-9][A-Za-z0-9_-]*", name):
                wrong = "use letters, digits, '-' and '_' in a learner's name"
            elif len(name) > LONGEST_NAME:
                wrong = f"use at most {LONGEST_NAME} characters in a learner's name"
            elif options[name.replace("-", "_")] > 1:
                wrong = "another name differs in '-' and '_' alone; choose another"
            if wrong:
                raise ValueError(f"learners.{name}: {wrong}")
        return self

    @model_validator(mode="after")
    def _algorithms(self) -> "Experiment":
        used = {self.algorithm.objective}
        for name, learner in self.learners.items():
            where = f"learners.{name}.algorithm"
            try:
                objective = derive_algorithm(self.algorithm, learner.algorithm).objective
            except ValidationError as error:
                mistake = error.errors()[0]
                field, message = describe(mistake)
                if mistake["type"] == "extra_forbidden":
                    message = describe_unknown_key(AlgorithmConfig, mistake["loc"])
                raise ValueError(f"{where}.{field}: {message}") from error
            used.add(objective)
            for key in learner.algorithm:
                if key in PACE_KEYS:
                    raise ValueError(f"{where}.{key}: all learners of a run have one pace; set algorithm.{key}")
                if reader := missing_reader(key, {objective}):
                    raise ValueError(
                        f"{where}.{key}: a key of {reader}, and this learner has {objective}; leave it out"
                    )
        default = AlgorithmConfig(objective=self.algorithm.objective)
        for key in AlgorithmConfig.model_fields:
            if (reader := missing_reader(key, used)) and getattr(self.algorithm, key) != getattr(default, key):
                raise ValueError(f"algorithm.{key}: a key of {reader}, which no learner has; leave it out")
        return self

    @model_validator(mode="after")
    def _shared_out(self) -> "Experiment":
        for name, learner in self.all_learners.items():
            gpus = max(int(learner.resources.gpus or 0), 1)
            for field in ("batch_size", "windows_per_update"):
                if (size := getattr(self.algorithm, field)) % gpus:
                    raise ValueError(
                        f"algorithm.{field}: {size} cannot be shared out among the {gpus} GPUs of learner {name}; "
                        f"use a multiple of {gpus}"
                    )
        return self

    @model_validator(mode="after")
    def _streamed(self) -> "Experiment":
        if self.stream is None:
            return self
        if not self.learners:
            raise ValueError("learners: a stream trains passive learners, and there is none; name at least one")
        if self.record:
            raise ValueError("record: what comes from a stream is on disk already; leave it out")
        if self.replay.pace != "lockstep":
            raise ValueError("replay.pace: a stream is fed as fast as its learners train; use lockstep")
        return self

    @property
    def all_learners(self) -> dict[str, LearnerConfig]:
        """Learners by name, the collector learner first; with a stream there is no collector learner."""
        return self.learners if self.stream else {ACTIVE: self.collector.learner, **self.learners}

    def learner(self, name: str) -> LearnerConfig:
        """Returns the learner called `name`. Raises ConfigError that lists the names."""
        if name not in self.all_learners:
            raise ConfigError(f"learner {name!r} is not in this run; it has: {', '.join(self.all_learners)}")
        return self.all_learners[name]

    def algorithm_of(self, name: str) -> AlgorithmConfig:
        """Returns the algorithm of the learner called `name`: the experiment's, with the learner's own keys.

        With another objective, the constants in which objectives differ are that objective's, unless the learner names
        them.
        """
        return derive_algorithm(self.algorithm, self.learner(name).algorithm)
