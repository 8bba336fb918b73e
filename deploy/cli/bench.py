"""`fathom bench`: options of each benchmark, and the function that measures it."""

import sys
from abc import ABC, abstractmethod
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self

from tyro.conf import Positional, arg, subcommand

from deploy.cli.bench_results import Outputs, measure_and_show
from deploy.cli.options import named_env
from shared.errors import ConfigError

Result = dict[str, Any]


@dataclass(frozen=True)
class _BenchOptions(ABC):
    name: ClassVar[str]

    quick: bool = False
    """Small sizes and few repeats where options do not say otherwise: whether it works, not how fast."""
    json: bool = False
    """Print one JSON object."""
    save: Path | None = None
    """Write the figures to this file, with the machine that they come from."""
    compare: Path | None = None
    """Print every figure beside the one that --save wrote to this file."""

    def sized(self) -> Self:
        """With --quick: its sizes in place of all options that were left alone."""
        if not self.quick:
            return self
        alone = {field.name for field in fields(self) if getattr(self, field.name) == field.default}
        return replace(self, **{name: size for name, size in QUICK[type(self)].items() if name in alone})

    @abstractmethod
    def measure(self) -> Result:
        """Imports what it needs, which is neither Ray nor Reverb in most cases."""


@dataclass(frozen=True)
class BenchUpdate(_BenchOptions):
    """Speed of a learner's update by depth."""

    name = "update"

    depths: tuple[int, ...] = (4, 16, 64)
    batch: int = 256
    width: int = 256
    precision: Literal["float32", "bfloat16"] = "float32"
    """Of the computation in the hidden layers."""
    against: Literal["unrolled"] | None = None
    """Also measure the textbook's update, layers one by one, and how far ours is from it."""
    repeats: int = 5
    """At least so many updates of each depth."""
    seconds: float = 3.0
    """At least so many seconds of updates of each depth."""
    seeds: int = 1
    """Also measure so many learners in one vmapped update."""

    def measure(self) -> Result:
        from deploy.bench.update import bench_update

        return bench_update(
            list(self.depths),
            self.batch,
            self.width,
            self.precision,
            self.against,
            self.repeats,
            self.seconds,
            self.seeds,
        )


@dataclass(frozen=True)
class BenchRollout(_BenchOptions):
    """Environment steps per second: bare, with a policy, and of a whole collector."""

    name = "rollout"

    env: str = "point_u_maze"
    num_envs: int = 512
    depth: int = 4
    """Depth of the policy's network."""
    width: int = 256
    repeats: int = 9
    """Turns that each of the loops takes."""
    with_replay: bool = False
    """Also measure a whole collector, inserting into a replay server."""

    def measure(self) -> Result:
        from deploy.bench.rollout import bench_rollout

        env = named_env(self.env)
        return bench_rollout(self.env, env, self.num_envs, self.depth, self.width, self.with_replay, self.repeats)


@dataclass(frozen=True)
class BenchReplay(_BenchOptions):
    """Replay in and out: 290-float rows, 64 environments, windows of 18 chunks, two tables."""

    name = "replay"

    against_stock: bool = False
    """Also measure Reverb's own client."""
    repeats: int = 5
    """Turns that each of the measurements takes."""
    unrolls: int = 60
    """Inserted in one turn."""
    batches: int = 36
    """Of 64 windows, sampled in one turn."""

    def measure(self) -> Result:
        from deploy.bench.replay import bench_replay

        return bench_replay(self.against_stock, self.repeats, self.unrolls, self.batches, say=_say)


@dataclass(frozen=True)
class BenchWeights(_BenchOptions):
    """Weights from a learner's device to a collector's, between real processes of this machine."""

    name = "weights"

    depth: int = 1024
    """Of the actor."""
    width: int = 256
    repeats: int = 9
    """Versions that are sent."""

    def measure(self) -> Result:
        from deploy.run.setup import prepare_jax

        prepare_jax(cpu_only=True)  # a GPU is the two processes' own
        from deploy.bench.weights import bench_weights

        return bench_weights(self.depth, self.width, self.repeats, _say)


@dataclass(frozen=True)
class BenchEndToEnd(_BenchOptions):
    """A whole short run, distributed and in one process: speed, and who waits for whom."""

    name = "end-to-end"

    experiment: Positional[Path | None] = None
    """The experiment's YAML file; none: one of point_u_maze whose learner is slower than its collector."""
    repeats: int = 9
    """Turns of the collector that inserts and of the one that does not."""

    def measure(self) -> Result:
        from deploy.bench.end_to_end import bench_end_to_end

        return bench_end_to_end(self.experiment, self.quick, self.repeats, _say)


@dataclass(frozen=True)
class BenchScaling(_BenchOptions):
    """Simulated collectors and learners against one real replay server: what it carries, and what is full first."""

    name = "scaling"

    collectors: tuple[int, ...] = (1, 4, 16, 64)
    learners: tuple[int, ...] = (1, 4, 16, 64)
    seconds: float = 4.0
    """Measured of each pair."""
    environments: int = 16
    """Of each collector."""
    state_size: int = 29
    action_size: int = 8
    samples_per_insert: float = 1.0

    def measure(self) -> Result:
        from deploy.bench.scaling import bench_scaling

        return bench_scaling(
            self.collectors,
            self.learners,
            seconds=self.seconds,
            environments=self.environments,
            state_size=self.state_size,
            action_size=self.action_size,
            samples_per_insert=self.samples_per_insert,
            say=_say,
        )


@dataclass(frozen=True)
class BenchEntries(_BenchOptions):
    """What a window costs for each table that it is in, in time and memory."""

    name = "entries"

    tables: tuple[int, ...] = (1, 8, 16)
    unrolls: int = 100
    """Inserted into each number of tables, by 64 environments."""

    def measure(self) -> Result:
        from deploy.bench.entries import bench_entries

        return bench_entries(self.tables, self.unrolls, _say)


@dataclass(frozen=True)
class BenchRowBytes(_BenchOptions):
    """Bytes that an environment step takes on its way, of rows that an environment really made."""

    name = "row-bytes"

    envs: tuple[str, ...] = ("point_u_maze", "ant", "humanoid")
    unrolls: int = 20
    """Of 16 environments each."""

    def measure(self) -> Result:
        from deploy.bench.row_bytes import bench_row_bytes

        return bench_row_bytes({env_id: named_env(env_id) for env_id in self.envs}, self.unrolls)


QUICK: dict[type[_BenchOptions], dict[str, Any]] = {
    BenchUpdate: {"depths": (4,), "batch": 32, "width": 32, "repeats": 2, "seconds": 0.2},
    BenchRollout: {"num_envs": 64, "width": 32, "repeats": 3},
    BenchReplay: {"repeats": 2, "unrolls": 8, "batches": 4},
    BenchWeights: {"depth": 64, "repeats": 3},
    BenchEndToEnd: {"repeats": 3},
    BenchScaling: {"collectors": (1, 4), "learners": (1, 4), "seconds": 1.0, "environments": 8},
    BenchEntries: {"tables": (1, 2), "unrolls": 10},
    BenchRowBytes: {"envs": ("point_u_maze",), "unrolls": 6},
}

_What = (
    Annotated[BenchUpdate, subcommand(BenchUpdate.name)]
    | Annotated[BenchRollout, subcommand(BenchRollout.name)]
    | Annotated[BenchReplay, subcommand(BenchReplay.name)]
    | Annotated[BenchWeights, subcommand(BenchWeights.name)]
    | Annotated[BenchEndToEnd, subcommand(BenchEndToEnd.name)]
    | Annotated[BenchScaling, subcommand(BenchScaling.name)]
    | Annotated[BenchEntries, subcommand(BenchEntries.name)]
    | Annotated[BenchRowBytes, subcommand(BenchRowBytes.name)]
)


@dataclass(frozen=True)
class Bench:
    """Measure the speed of one part, or of a whole run."""

    what: Annotated[_What, arg(name="")]

    def execute(self) -> int:
        sized = self.what.sized()
        for count in ("repeats", "unrolls", "batches"):
            if (number := getattr(sized, count, 1)) < 1:
                raise ConfigError(f"--{count}: {number} is not positive; use at least 1")
        return measure_and_show(sized.name, sized.measure, Outputs(sized.json, sized.save, sized.compare))


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
