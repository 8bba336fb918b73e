"""Reader of a complete recorded stream; it refuses others."""

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa

from shared.config import EnvOptions
from shared.errors import ConfigError
from shared.replay.codec import Columns
from shared.stream.files import reading
from shared.stream.format import MANIFEST, Manifest, StreamDescription, miscount, read_file, shard_folder
from shared.stream.part import check_bytes, columns_of, whole_batches

_AGAIN = "copy the stream again from where it was recorded, or record it again"
# Fields of a description that a run must agree with, as the user calls them; True for keys of an experiment.
_KEYS = {
    "env": ("env", True),
    "env_options": ("env_options", True),
    "state_size": ("state_size", False),
    "action_size": ("action_size", False),
    "goal_size": ("goal_size", False),
    "episode_length": ("env_options.episode_length", True),
    "unroll_length": ("collector.unroll_length", True),
    "environments": ("collector.environments", True),
    "collectors": ("collector.actors", True),
}


class Stream:
    """A complete recorded stream; see `open_stream`."""

    def __init__(self, directory: Path, manifest: Manifest) -> None:
        self.directory, self.description, self._shards = directory, manifest.description, manifest.shards

    def shard(self, index: int, first: int = 0) -> Iterator[tuple[int, Columns]]:
        """Yields the unrolls of collector `index` from number `first` on, with their numbers; see `columns_of`.

        A recording without ends is read as it is; see `add_ends`. Holds one part in memory, compressed. Raises
        ConfigError if a part changed since the stream was opened.
        """
        for part in self._shards[index].parts:
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

        `wanted` may have fewer unrolls than the stream.
        """
        held = self.description
        if not held.has_ends:
            wanted = wanted.model_copy(update={"goal_size": 0})
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


def _text(value: Any) -> str:
    """Returns a value as a user writes it; of options, those that are not at their defaults."""
    return str(value.model_dump(exclude_defaults=True)) if isinstance(value, EnvOptions) else str(value)


def open_stream(directory: Path, verify: bool = True) -> Stream:
    """Opens the stream in `directory`. Raises ConfigError, one line with a file and a remedy.

    `verify` reads every byte once, in blocks: about a second for each GB. Without it, each part is verified when its
    turn comes.
    """
    directory = Path(directory)
    path = directory / MANIFEST
    if not directory.is_dir():
        raise ConfigError(f"{directory}: no such folder; name the folder of a recorded stream")
    if not path.exists():
        raise ConfigError(f"{path}: missing, so the run did not finish recording; record the stream again")
    upgrade = "use the Fathom that recorded the stream, or record it again"
    manifest = read_file(path, Manifest, "not a stream's manifest", _AGAIN, upgrade)
    if wrong := miscount(manifest.description, manifest.shards):
        raise ConfigError(f"{path}: {wrong}; {_AGAIN}")
    for shard in manifest.shards if verify else ():
        for part in shard.parts:
            part_path = shard_folder(directory, shard.index) / part.name
            check_bytes(part_path, part, "manifest", _AGAIN)
            with reading(part_path, _AGAIN), pa.OSFile(str(part_path), "rb") as file:
                batches = pa.ipc.open_file(file)
                if batches.schema != manifest.description.schema or batches.num_record_batches != part.unrolls:
                    raise ConfigError(f"{part_path}: other rows or unrolls than the manifest says; {_AGAIN}")
    return Stream(directory, manifest)
