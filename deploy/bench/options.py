"""The options of `fathom bench`, and which measurement they are of."""

from dataclasses import dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from tyro.conf import Positional, subcommand

from deploy.bench import commands as benches


@dataclass(frozen=True)
class _BenchOptions:
    quick: bool = False
    """Small sizes and few repeats where options do not say otherwise: whether it works, not how fast."""
    json: bool = False
    """Print one JSON object."""
    save: Path | None = None
    """Write the figures to this file, with the machine that they come from."""
    compare: Path | None = None
    """Print every figure beside the one that --save wrote to this file."""

    @property
    def outputs(self) -> benches.Outputs:
        return benches.Outputs(self.json, self.save, self.compare)

    def sized(self) -> Self:
        """With --quick: its sizes in place of all options that were left alone."""
        if not self.quick:
            return self
        alone = {field.name for field in fields(self) if getattr(self, field.name) == field.default}
        return replace(self, **{name: size for name, size in QUICK[type(self)].items() if name in alone})


@dataclass(frozen=True)
class BenchUpdate(_BenchOptions):
    """Speed of a learner's update by depth."""

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


@dataclass(frozen=True)
class BenchRollout(_BenchOptions):
    """Environment steps per second: bare, with a policy, and of a whole collector."""

    env: str = "point_u_maze"
    num_envs: int = 512
    depth: int = 4
    """Depth of the policy's network."""
    width: int = 256
    repeats: int = 9
    """Turns that each of the loops takes."""
    with_replay: bool = False
    """Also measure a whole collector, inserting into a replay server."""


@dataclass(frozen=True)
class BenchReplay(_BenchOptions):
    """Replay in and out: 290-float rows, 64 environments, windows of 18 chunks, two tables."""

    against_stock: bool = False
    """Also measure Reverb's own client."""
    repeats: int = 5
    """Turns that each of the measurements takes."""
    unrolls: int = 60
    """Inserted in one turn."""
    batches: int = 36
    """Of 64 windows, sampled in one turn."""


@dataclass(frozen=True)
class BenchWeights(_BenchOptions):
    """Weights from a learner's device to a collector's, between real processes of this machine."""

    depth: int = 1024
    """Of the actor."""
    width: int = 256
    repeats: int = 9
    """Versions that are sent."""


@dataclass(frozen=True)
class BenchEndToEnd(_BenchOptions):
    """A whole short run, distributed and in one process: speed, and who waits for whom."""

    experiment: Positional[Path | None] = None
    """The experiment's YAML file; none: one of point_u_maze whose learner is slower than its collector."""
    repeats: int = 9
    """Turns of the collector that inserts and of the one that does not."""


@dataclass(frozen=True)
class BenchScaling(_BenchOptions):
    """Simulated collectors and learners against one real replay server: what it carries, and what is full first."""

    collectors: tuple[int, ...] = (1, 4, 16, 64)
    learners: tuple[int, ...] = (1, 4, 16, 64)
    seconds: float = 4.0
    """Measured of each pair."""
    environments: int = 16
    """Of each collector."""
    state_size: int = 29
    action_size: int = 8
    samples_per_insert: float = 1.0


QUICK: dict[type[_BenchOptions], dict[str, Any]] = {
    BenchUpdate: {"depths": (4,), "batch": 32, "width": 32, "repeats": 2, "seconds": 0.2},
    BenchRollout: {"num_envs": 64, "width": 32, "repeats": 3},
    BenchReplay: {"repeats": 2, "unrolls": 8, "batches": 4},
    BenchWeights: {"depth": 64, "repeats": 3},
    BenchEndToEnd: {"repeats": 3},
    BenchScaling: {"collectors": (1, 4), "learners": (1, 4), "seconds": 1.0, "environments": 8},
}

Bench = (
    Annotated[BenchUpdate, subcommand("update")]
    | Annotated[BenchRollout, subcommand("rollout")]
    | Annotated[BenchReplay, subcommand("replay")]
    | Annotated[BenchWeights, subcommand("weights")]
    | Annotated[BenchEndToEnd, subcommand("end-to-end")]
    | Annotated[BenchScaling, subcommand("scaling")]
)


def run_bench(what: Bench) -> int:
    """Measures what the options ask for; the exit status."""
    match what:
        case BenchUpdate(depths=depths, batch=batch, width=width, precision=precision, against=against):
            repeats, seconds = what.repeats, what.seconds
            name, measure = (
                "update",
                partial(benches.update, depths, batch, width, precision, against, repeats, seconds),
            )
        case BenchRollout(env=env, num_envs=num_envs, depth=depth, width=width, repeats=repeats):
            name, measure = "rollout", partial(benches.rollout, env, num_envs, depth, width, repeats, what.with_replay)
        case BenchReplay(against_stock=against_stock, repeats=repeats, unrolls=unrolls, batches=batches):
            name, measure = "replay", partial(benches.replay, against_stock, repeats, unrolls, batches)
        case BenchWeights(depth=depth, width=width, repeats=repeats):
            name, measure = "weights", partial(benches.weights, depth, width, repeats)
        case BenchEndToEnd(experiment=experiment, repeats=repeats):
            name, measure = "end-to-end", partial(benches.end_to_end, experiment, repeats, what.quick)
        case BenchScaling(collectors=collectors, learners=learners, seconds=seconds, environments=environments):
            sizes = (seconds, environments, what.state_size, what.action_size, what.samples_per_insert)
            name, measure = "scaling", partial(benches.scaling, collectors, learners, *sizes)
    return benches.bench(name, measure, what.outputs)
