"""The stream of a run: all that its collectors inserted, in order, on disk, to be fed again to other learners.

    DIR/collector-0/part-00000.arrow    a shard for each collector, cut into parts
    DIR/manifest.json                   written last: a stream without it is unfinished

The order of the stream is (unroll, collector). A part is a whole Arrow file by itself: a record batch is one
unroll, a row of it one environment's chunk. A part being written is called `.partial`.
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

FORMAT_VERSION = 1
MANIFEST = "manifest.json"
PARTIAL = ".partial"


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
    unrolls: PositiveInt  # of each collector

    @property
    def schema(self) -> pa.Schema:
        """Of every part: `floats` `[T * (S + A)]` and `ints` `[T * 3]` a row."""
        floats, ints = (self.unroll_length * size for size in (self.state_size + self.action_size, INT_COLUMNS))
        return pa.schema([("floats", pa.list_(pa.float32(), floats)), ("ints", pa.list_(pa.int32(), ints))])


class PartSummary(Frozen):
    """One finished part. `bytes`: of the file."""

    name: str
    unrolls: PositiveInt
    rows: PositiveInt
    bytes: PositiveInt
    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


class ShardSummary(Frozen):
    """What one collector recorded, its parts in order."""

    index: Annotated[int, Field(ge=0)]
    parts: tuple[PartSummary, ...]

    @property
    def unrolls(self) -> int:
        return sum(part.unrolls for part in self.parts)

    @property
    def rows(self) -> int:
        return sum(part.rows for part in self.parts)

    @property
    def bytes(self) -> int:
        return sum(part.bytes for part in self.parts)


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
    """What does not add up, or nothing."""
    if [shard.index for shard in shards] != list(range(description.collectors)):
        return f"shards {[shard.index for shard in shards]} of {description.collectors} collectors"
    for shard in shards:
        if shard.unrolls != description.unrolls:
            return f"collector-{shard.index} has {shard.unrolls} unrolls, {description.unrolls} were expected"
        for number, part in enumerate(shard.parts):
            rows = part.unrolls * description.environments
            if part.name != part_name(number):
                return f"collector-{shard.index} has {part.name}, {part_name(number)} was expected"
            if part.rows != rows:
                return f"collector-{shard.index}/{part.name} has {part.rows} rows, {rows} were expected"
    return ""


def shard_folder(directory: Path, index: int) -> Path:
    return Path(directory) / f"collector-{index}"


def part_name(number: int) -> str:
    return f"part-{number:05d}.arrow"
