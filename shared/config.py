"""Configuration of an experiment, validated before anything starts.

YAML -> `Experiment` (frozen, unknown keys refused) -> `Plan` (`shared/plan.py`). Inner functions receive
values, never a configuration.
"""

import re
from collections import Counter
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from shared.errors import ConfigError
from shared.values import (
    CONTROL,
    Depth,
    EnvId,
    NotNegative,
    Number,
    PositiveFloat,
    PositiveInt,
    Seed,
    Size,
    Text,
    Whole,
)

BLOCK_DEPTH = 4  # hidden Dense layers in one residual block
LONGEST_NAME = 64  # characters of a learner's name, which is a part of file and table names
ACTIVE = "active"  # the collector learner's name, in tables, metrics and summaries


class Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)


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
    labels: dict[LabelKey, LabelValue] = {}
    """Labels of suitable nodes, as given by `ray start --labels`; none: any node."""
    threads: Size | None = None
    """Threads of the CPU's computations; none: all cores."""

    def __hash__(self) -> int:  # a dict has none
        return hash((self.cpus, self.gpus, self.memory_gb, *sorted(self.labels.items()), self.threads))

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


class NetworkConfig(Frozen):
    """Sizes of one network: its actor, state-action encoder and goal encoder."""

    depth: Depth = 4
    """Hidden Dense layers of actor and critic, in residual blocks of 4."""
    width: Size = 256
    actor_depth: Depth | None = None
    """The actor's depth; none: `depth`."""
    actor_width: Size | None = None
    critic_depth: Depth | None = None
    """Depth of each of the critic's two encoders; none: `depth`."""
    critic_width: Size | None = None
    representation_size: Size = 64
    layer_norm: bool = True
    residual: bool = True
    activation: Literal["swish", "relu"] = "swish"
    precision: Literal["float32", "bfloat16"] = "float32"
    """Precision of the hidden layers; parameters, residual connections and all losses are float32."""

    @field_validator("depth", "actor_depth", "critic_depth")
    @classmethod
    def _whole_blocks(cls, depth: int | None) -> int | None:
        if depth is not None and (depth <= 0 or depth % BLOCK_DEPTH):
            below = max(depth // BLOCK_DEPTH, 1) * BLOCK_DEPTH
            raise ValueError(
                f"depth {depth} is not a positive multiple of {BLOCK_DEPTH} (residual blocks hold "
                f"{BLOCK_DEPTH} layers); use {below} or {below + BLOCK_DEPTH}"
            )
        return depth


class LearnerConfig(NetworkConfig):
    """A learner: its network, its seed of initialisation and its resources."""

    seed: Seed = 0
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
    collector_resources: Resources = Resources()
    """Resources of each collector."""

    @property
    def learner(self) -> LearnerConfig:
        """The collector learner."""
        network = {name: getattr(self, name) for name in NetworkConfig.model_fields}
        return LearnerConfig(**network, seed=self.seed, resources=self.learner_resources)


class AlgorithmConfig(Frozen):
    """Hyperparameters of contrastive RL; the defaults are the reference's."""

    discount: Annotated[Number, Field(gt=0, lt=1)] = 0.99
    batch_size: Annotated[Size, Field(ge=2)] = 512
    windows_per_update: Size = 512
    minibatches_per_update: Size = 800
    actor_learning_rate: PositiveFloat = 3e-4
    critic_learning_rate: PositiveFloat = 3e-4
    alpha_learning_rate: PositiveFloat = 3e-4
    target_entropy_per_action: Number = -0.5
    logsumexp_penalty: NotNegative = 0.1
    energy: Literal["norm", "l2", "dot", "cosine"] = "norm"
    contrastive_loss: Literal["forward_infonce", "backward_infonce", "symmetric_infonce", "binary_nce"] = (
        "forward_infonce"
    )
    max_gradient_norm: PositiveFloat | None = None
    """Largest global norm of the actor's and of the critic's gradients, each; none: unlimited."""
    non_finite: Literal["skip", "end"] = "skip"
    """Reaction to a gradient step whose loss or gradients are not finite. skip: the step is left out, counted and
    reported; an update without any finite step ends the run. end: the first such step ends the run."""


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
    port: Annotated[Whole, Field(gt=0, lt=65536)] | None = None
    """The server's port; none: a free one."""
    timeout_seconds: PositiveFloat = 600.0
    """Longest wait for one insert or sample; after it the run ends, and its error says which role waited for which."""
    audit: bool = False
    """Keep the keys of all windows that the server confirmed, in audit/ in the run directory: 16 bytes each."""


class EvaluationConfig(Frozen):
    """Evaluations: deterministic policy, fresh episodes, equal keys for all learners."""

    env: EnvId | None = None
    """Another environment with equal sizes, such as a maze's `_eval` layout; none: the training environment."""
    episodes: Size = 128
    count: Size = 10
    """Evaluations in a run, at equal distances in updates, besides the one of the untrained policy."""
    resources: Resources = Resources()


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
    learners: dict[str, LearnerConfig] = {}
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
