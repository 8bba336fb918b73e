"""Reading a recorded stream that is whole, and refusing one that is not."""

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
from pydantic import ValidationError

from shared.config import EnvOptions
from shared.errors import ConfigError
from shared.replay.codec import Columns
from shared.stream.files import reading
from shared.stream.format import (
    FORMAT_VERSION,
    MANIFEST,
    Manifest,
    PartSummary,
    StreamDescription,
    miscount,
    shard_folder,
)
from shared.stream.part import check_bytes, columns_of, whole_batches

_AGAIN = "copy the stream again from where it was recorded, or record it again"


class Stream:
    """A recorded stream that was found whole; see `open_stream`."""

    def __init__(self, directory: Path, manifest: Manifest) -> None:
        self.directory, self._manifest = Path(directory), manifest

    @property
    def description(self) -> StreamDescription:
        return self._manifest.description

    @property
    def unrolls(self) -> int:
        """Of each collector, at least."""
        return self.description.unrolls

    def shard(self, index: int, first: int = 0) -> Iterator[tuple[int, Columns]]:
        """The unrolls of collector `index` from number `first` on in order, with their numbers; see `columns_of`.

        Holds one part in memory, compressed. Raises ConfigError if a part is no longer what it was at opening.
        """
        for part in self._manifest.shards[index].parts:
            if part.numbers.stop <= first:
                continue
            path = shard_folder(self.directory, index) / part.name
            with reading(path, _AGAIN):
                data = path.read_bytes()
            if hashlib.sha256(data).hexdigest() != part.sha256:
                raise ConfigError(f"{path}: changed since the stream was opened; {_AGAIN}")
            for number, batch in zip(part.numbers, whole_batches(data), strict=True):
                if number >= first:
                    yield number, columns_of(path, batch, self.description)

    def check_fits(self, wanted: StreamDescription) -> None:
        """Raises ConfigError, a line for each key in which `wanted` (see `describe`) differs, with both values.

        Fewer unrolls than the stream has are as good.
        """
        held = self.description
        mistakes = [
            f"{key}: {_text(asked)} is asked for, the stream {self.directory} was recorded with {_text(recorded)}; "
            + (f"use {_text(recorded)}" if settable else "use the environment and the env_options of the recording")
            for field, (key, settable) in _KEYS.items()
            if (asked := getattr(wanted, field)) != (recorded := getattr(held, field))
        ]
        if wanted.unrolls > held.unrolls:
            most = held.unrolls * held.collectors * held.environments * held.unroll_length
            mistakes.append(
                f"budget.env_steps: {wanted.unrolls} unrolls of each collector are asked for, the stream "
                f"{self.directory} was recorded with {held.unrolls}; use at most {most}"
            )
        if mistakes:
            raise ConfigError("\n".join(mistakes))


# Fields of a description that a run must agree with: what the user calls them, and whether it is a key to set.
_KEYS = {
    "env": ("env", True),
    "env_options": ("env_options", True),
    "state_size": ("state_size", False),
    "action_size": ("action_size", False),
    "episode_length": ("env_options.episode_length", True),
    "unroll_length": ("collector.unroll_length", True),
    "environments": ("collector.environments", True),
    "collectors": ("collector.actors", True),
}


def _text(value: Any) -> str:
    """As a user writes it; of options, those that differ from what they are when left out."""
    return str(value.model_dump(exclude_defaults=True)) if isinstance(value, EnvOptions) else str(value)


def open_stream(directory: Path, verify: bool = True) -> Stream:
    """The stream in `directory`, every byte of it verified. Raises ConfigError: one line, a file and a remedy.

    Reads all parts once, in blocks: about a second for each GB. Without `verify`, for who knows that it was
    verified already, each part is when its turn comes.
    """
    directory = Path(directory)
    manifest = _read_manifest(directory / MANIFEST)
    if wrong := miscount(manifest.description, manifest.shards):
        raise ConfigError(f"{directory / MANIFEST}: {wrong}; {_AGAIN}")
    for shard in manifest.shards if verify else ():
        for part in shard.parts:
            _check_part(shard_folder(directory, shard.index) / part.name, part, manifest.description.schema)
    return Stream(directory, manifest)


def _read_manifest(path: Path) -> Manifest:
    if not path.parent.is_dir():
        raise ConfigError(f"{path.parent}: no such folder; name the folder of a recorded stream")
    if not path.exists():
        raise ConfigError(f"{path}: missing, so the run did not finish recording; record the stream again")
    with reading(path, _AGAIN):
        text = path.read_bytes()
    try:
        values = json.loads(text)
        version = values["format_version"]
    except (ValueError, TypeError, KeyError) as error:
        raise ConfigError(f"{path}: not a stream's manifest; {_AGAIN}") from error
    if version != FORMAT_VERSION:
        raise ConfigError(
            f"{path}: format version {version!r}, this Fathom reads {FORMAT_VERSION}; "
            "use the Fathom that recorded the stream, or record it again"
        )
    try:
        return Manifest.model_validate(values)
    except ValidationError as error:
        first: Any = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"])
        raise ConfigError(f"{path}: {field}: {first['msg']}; {_AGAIN}") from error


def _check_part(path: Path, part: PartSummary, schema: pa.Schema) -> None:
    """Size, checksum, then that it is the Arrow file the manifest speaks of."""
    check_bytes(path, part, "manifest", _AGAIN)
    with reading(path, _AGAIN), pa.OSFile(str(path), "rb") as file:
        batches = pa.ipc.open_file(file)
        if batches.schema != schema or batches.num_record_batches != part.unrolls:
            raise ConfigError(f"{path}: other rows or unrolls than the manifest says; {_AGAIN}")
