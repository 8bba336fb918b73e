"""The stream of a run: what its collectors inserted, on disk. Replay's backup; whole, it feeds other learners.

    DIR/collector-0/part-000000123.arrow    a shard for each collector, cut into parts, named by their first unroll
    DIR/collector-0/shard.json              the shard's index: its finished parts and their checksums
    DIR/collector-0/lock                    held by the one process that writes the shard
    DIR/manifest.json                       written last: a recording without it is unfinished

The unrolls of a shard have numbers, strictly increasing from 0. A collector that starts again leaves out one, so no
relabelling window spans a gap. A part holds consecutive numbers. It is a whole Arrow file by itself: a record batch
is one unroll, a row of it one environment's chunk. A part being written is called `.partial`: a file without an end.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import pyarrow as pa
from pydantic import Field

from shared.config import EnvOptions, Experiment, Frozen, PositiveInt
from shared.envs.base import EnvSpec
from shared.plan import Plan
from shared.replay.codec import INT_COLUMNS

FORMAT_VERSION = 2
MANIFEST = "manifest.json"
INDEX = "shard.json"
PARTIAL = ".partial"

Sha256 = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


class StreamDescription(Frozen):
    """What a stream holds, and what a run that is fed from it has to agree with."""

    env: str
    env_options: EnvOptions = EnvOptions()  # but for the episode's length, which has its own entry
    state_size: PositiveInt  # S
    action_size: PositiveInt  # A
    episode_length: PositiveInt
    unroll_length: PositiveInt  # T
    environments: PositiveInt  # N, of each collector
    collectors: PositiveInt
    unrolls: PositiveInt  # of each collector, at least

    @property
    def unroll_bytes(self) -> int:
        """Uncompressed, of one collector."""
        steps = self.environments * self.unroll_length
        return bytes_of_stream(steps, self.state_size, self.action_size)

    @property
    def schema(self) -> pa.Schema:
        """Of every part: `floats` `[T * (S + A)]` and `ints` `[T * 3]` a row."""
        floats, ints = (self.unroll_length * size for size in (self.state_size + self.action_size, INT_COLUMNS))
        return pa.schema([("floats", pa.list_(pa.float32(), floats)), ("ints", pa.list_(pa.int32(), ints))])


class PartSummary(Frozen):
    """One finished part: unrolls `first`, `first` + 1, ... `bytes`: of the file."""

    name: str
    first: Annotated[int, Field(ge=0)]
    unrolls: PositiveInt
    rows: PositiveInt
    bytes: PositiveInt
    sha256: Sha256

    @property
    def numbers(self) -> range:
        return range(self.first, self.first + self.unrolls)


class ShardSummary(Frozen):
    """What is kept of one collector, its parts in order."""

    index: Annotated[int, Field(ge=0)]
    parts: tuple[PartSummary, ...]

    @property
    def next_number(self) -> int:
        """After the newest unroll; 0 for an empty shard."""
        return self.parts[-1].numbers.stop if self.parts else 0

    @property
    def unrolls(self) -> int:
        return sum(part.unrolls for part in self.parts)

    @property
    def rows(self) -> int:
        return sum(part.rows for part in self.parts)

    @property
    def bytes(self) -> int:
        return sum(part.bytes for part in self.parts)


class ShardIndex(Frozen):
    """A shard's own file. `sha256`: of `shard` as JSON, so that a damaged index is not believed."""

    format_version: int
    sha256: Sha256
    shard: ShardSummary


class Manifest(Frozen):
    """`versions`: of the packages that wrote it."""

    format_version: int
    description: StreamDescription
    versions: dict[str, str | None]
    shards: tuple[ShardSummary, ...]


def describe(experiment: Experiment, plan: Plan, spec: EnvSpec) -> StreamDescription:
    """The stream that this run records, or asks for."""
    return StreamDescription(
        env=experiment.env,
        env_options=experiment.env_options.model_copy(update={"episode_length": None}),
        state_size=spec.state_size,
        action_size=spec.action_size,
        episode_length=spec.episode_length,
        unroll_length=plan.unroll_length,
        environments=experiment.collector.environments,
        collectors=experiment.collector.actors,
        unrolls=plan.unrolls,
    )


def bytes_of_stream(env_steps: int, state_size: int, action_size: int) -> int:
    """Uncompressed bytes of a stream of `env_steps` environment steps, over all collectors."""
    return env_steps * 4 * (state_size + action_size + INT_COLUMNS)


def miscount(description: StreamDescription, shards: Sequence[ShardSummary]) -> str:
    """What does not add up, or nothing.

    A shard may have more unrolls than were asked for: its collector makes up for windows lost to a gap.
    """
    if [shard.index for shard in shards] != list(range(description.collectors)):
        return f"shards {[shard.index for shard in shards]} of {description.collectors} collectors"
    for shard in shards:
        if shard.unrolls < description.unrolls:
            return f"collector-{shard.index} has {shard.unrolls} unrolls, {description.unrolls} were expected"
        if wrong := misnumbered(description, shard):
            return wrong
    return ""


def misnumbered(description: StreamDescription, shard: ShardSummary) -> str:
    """What is wrong with a shard's parts, or nothing."""
    next_number = 0
    for part in shard.parts:
        rows = part.unrolls * description.environments
        if part.name != part_name(part.first):
            return f"collector-{shard.index} has {part.name}, {part_name(part.first)} was expected"
        if part.first < next_number:
            return f"collector-{shard.index} has {part.name} where unroll {next_number} or a later one was expected"
        if part.rows != rows:
            return f"collector-{shard.index}/{part.name} has {part.rows} rows, {rows} were expected"
        next_number = part.numbers.stop
    return ""


def shard_folder(directory: Path, index: int) -> Path:
    return Path(directory) / f"collector-{index}"


def part_name(first: int) -> str:
    """Of the part that begins with unroll `first`."""
    return f"part-{first:09d}.arrow"
