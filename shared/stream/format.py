"""Format of a stream: the unrolls of a run's collectors on disk.

    DIR/collector-0/part-000000123.arrow    a shard for each collector, cut into parts, named by their first unroll
    DIR/collector-0/shard.json              the shard's index: finished parts and their checksums
    DIR/collector-0/lock                    held by the one process that writes the shard
    DIR/manifest.json                       written last: a recording without it is unfinished

A stream is replay's backup; a complete recording feeds other learners. The unrolls of a shard have numbers that grow
from 0. A collector that starts again skips one, so that no relabelling window spans a gap. A part holds consecutive
numbers, and is an Arrow file by itself: a record batch is an unroll, a row of it one environment's chunk. The name of a
part that is being written ends in `.partial`; such a file has no end yet. The index may lack the newest parts: those of
a tail get their checksums when a snapshot needs them.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, ClassVar, TypeVar

import pyarrow as pa
from pydantic import Field, ValidationError, ValidationInfo, field_validator

from shared.config import EnvOptions, Experiment
from shared.envs.base import EnvSpec
from shared.errors import ConfigError
from shared.plan import Plan
from shared.replay.codec import INT_COLUMNS
from shared.stream.files import reading
from shared.values import Frozen, PositiveInt

FORMAT_VERSION = 3
WITHOUT_ENDS = 2  # version of older recordings, whose rows do not say how an episode ended
MANIFEST = "manifest.json"
INDEX = "shard.json"
PARTIAL = ".partial"

Count = Annotated[int, Field(ge=0)]
Sha256 = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


class StreamDescription(Frozen):
    """Content of a stream. A run that trains on the stream has to agree with it."""

    env: str
    env_options: EnvOptions = EnvOptions()  # without the episode's length, which is a field here
    state_size: PositiveInt  # S
    action_size: PositiveInt  # A
    goal_size: Count = 0  # G; 0 in a recording without ends
    episode_length: PositiveInt
    unroll_length: PositiveInt  # T
    environments: PositiveInt  # N, of each collector
    collectors: PositiveInt
    unrolls: PositiveInt  # of each collector, at least

    @property
    def unroll_bytes(self) -> int:
        """Uncompressed bytes of one collector's unroll."""
        return bytes_of_stream(self.environments * self.unroll_length, self.row_floats)

    @property
    def row_floats(self) -> int:
        return self.state_size + self.action_size + self.goal_size

    @property
    def has_ends(self) -> bool:
        """True if rows say how an episode ended, and where."""
        return self.goal_size > 0

    @property
    def schema(self) -> pa.Schema:
        """Schema of every part: `floats` `[T * (S + A + G)]` and `ints` `[T * 4]` a row; `[T * 3]` without ends."""
        num_ints = INT_COLUMNS if self.has_ends else INT_COLUMNS - 1
        floats, ints = (self.unroll_length * size for size in (self.row_floats, num_ints))
        return pa.schema([("floats", pa.list_(pa.float32(), floats)), ("ints", pa.list_(pa.int32(), ints))])


class PartSummary(Frozen):
    """A finished part with unrolls `first`, `first` + 1, ...; `bytes` is the file's size."""

    name: str
    first: Count
    unrolls: PositiveInt
    rows: PositiveInt
    bytes: PositiveInt
    sha256: Sha256

    @property
    def numbers(self) -> range:
        return range(self.first, self.first + self.unrolls)


class ShardSummary(Frozen):
    """The parts of collector `index` that are kept, in order."""

    index: Count
    parts: tuple[PartSummary, ...]

    @property
    def next_number(self) -> int:
        """Number after the newest unroll; 0 for an empty shard."""
        return self.parts[-1].numbers.stop if self.parts else 0

    @property
    def unrolls(self) -> int:
        return sum(part.unrolls for part in self.parts)

    @property
    def bytes(self) -> int:
        return sum(part.bytes for part in self.parts)


class ShardIndex(Frozen):
    """A shard's own file; `sha256` is the digest of `shard` as JSON and reveals damage."""

    READABLE: ClassVar = (FORMAT_VERSION,)
    format_version: int
    sha256: Sha256
    shard: ShardSummary


class Manifest(Frozen):
    """The file that completes a recording; `versions` are those of the packages that wrote it."""

    READABLE: ClassVar = (FORMAT_VERSION, WITHOUT_ENDS)
    format_version: int
    description: StreamDescription
    versions: dict[str, str | None]
    shards: tuple[ShardSummary, ...]

    @field_validator("description")
    @classmethod
    def _agrees_with_version(cls, description: StreamDescription, info: ValidationInfo) -> StreamDescription:
        version = info.data["format_version"]
        if description.has_ends != (version != WITHOUT_ENDS):
            raise ValueError(f"goal_size {description.goal_size} in format version {version}")
        return description


File = TypeVar("File", ShardIndex, Manifest)


def read_file(path: Path, kind: type[File], damaged: str, remedy: str, upgrade: str) -> File:
    """Reads an index or a manifest. Raises ConfigError, one line that says `damaged`, or of another format version.

    The line ends with `remedy`, or with `upgrade` if the version is another.
    """
    with reading(path, remedy):
        text = path.read_bytes()
    try:
        values = json.loads(text)
        version = values["format_version"]
    except (ValueError, TypeError, KeyError) as error:
        raise ConfigError(f"{path}: {damaged}; {remedy}") from error
    if version not in kind.READABLE:
        readable = " and ".join(map(str, sorted(kind.READABLE)))
        raise ConfigError(f"{path}: format version {version!r}, this Fathom reads {readable}; {upgrade}")
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        raise ConfigError(
            f"{path}: {damaged} ({'.'.join(map(str, first['loc']))}: {first['msg']}); {remedy}"
        ) from error


def describe(experiment: Experiment, plan: Plan, spec: EnvSpec) -> StreamDescription:
    """Returns the description of the stream that a run records, or trains on."""
    return StreamDescription(
        env=experiment.env,
        env_options=experiment.env_options.model_copy(update={"episode_length": None}),
        state_size=spec.state_size,
        action_size=spec.action_size,
        goal_size=spec.goal_size,
        episode_length=spec.episode_length,
        unroll_length=plan.unroll_length,
        environments=experiment.collector.environments,
        collectors=experiment.collector.actors,
        unrolls=plan.unrolls,
    )


def bytes_of_stream(env_steps: int, row_floats: int) -> int:
    """Returns the uncompressed bytes of a stream of `env_steps` environment steps, over all collectors."""
    return env_steps * 4 * (row_floats + INT_COLUMNS)


def miscount(description: StreamDescription, shards: Sequence[ShardSummary]) -> str:
    """Returns the first contradiction between a description and all its shards; empty if there is none.

    A shard may have more unrolls than the description: its collector makes up for windows lost to a gap.
    """
    indices = [shard.index for shard in shards]
    if indices != list(range(description.collectors)):
        return f"shards {indices} of {description.collectors} collectors"
    for shard in shards:
        if shard.unrolls < description.unrolls:
            return f"collector-{shard.index} has {shard.unrolls} unrolls, {description.unrolls} were expected"
        if wrong := misnumbered(description, shard):
            return wrong
    return ""


def misnumbered(description: StreamDescription, shard: ShardSummary) -> str:
    """Returns the first mistake in a shard's parts; empty if there is none."""
    folder, next_number = f"collector-{shard.index}", 0
    for part in shard.parts:
        rows = part.unrolls * description.environments
        if part.name != part_name(part.first):
            return f"{folder} has {part.name}, {part_name(part.first)} was expected"
        if part.first < next_number:
            return f"{folder} has {part.name} where unroll {next_number} or a later one was expected"
        if part.rows != rows:
            return f"{folder}/{part.name} has {part.rows} rows, {rows} were expected"
        next_number = part.numbers.stop
    return ""


def shard_folder(directory: Path, index: int) -> Path:
    return Path(directory) / f"collector-{index}"


def part_name(first: int) -> str:
    """Returns the name of the part that begins with unroll `first`."""
    return f"part-{first:09d}.arrow"
