"""The index of a shard: which finished parts it has, so that going on does not read gigabytes again."""

import hashlib
import json
from pathlib import Path
from typing import Any

from shared.errors import ConfigError
from shared.files import replace_file
from shared.stream.files import reading
from shared.stream.format import FORMAT_VERSION, INDEX, ShardIndex, ShardSummary


def write_index(folder: Path, shard: ShardSummary, sync: bool = True) -> None:
    """All at once, in place of the one before; see `replace_file`. Raises OSError."""
    index = ShardIndex(format_version=FORMAT_VERSION, sha256=_digest(shard), shard=shard)
    replace_file(folder / INDEX, index.model_dump_json(indent=2) + "\n", sync)


def read_index(folder: Path, remedy: str) -> ShardSummary:
    """Raises ConfigError, one line that ends with `remedy`, unless the index is there as it was written."""
    path = folder / INDEX
    if not path.exists():
        raise ConfigError(f"{path}: missing; {remedy}")
    with reading(path, remedy):
        text = path.read_bytes()
    try:
        values: Any = json.loads(text)
        version = values["format_version"]
    except (ValueError, TypeError, KeyError) as error:
        raise ConfigError(f"{path}: damaged; {remedy}") from error
    if version != FORMAT_VERSION:
        raise ConfigError(f"{path}: format version {version!r}, this Fathom reads {FORMAT_VERSION}; {remedy}")
    try:
        index = ShardIndex.model_validate(values)
    except ValueError as error:
        raise ConfigError(f"{path}: damaged; {remedy}") from error
    if index.sha256 != _digest(index.shard):
        raise ConfigError(f"{path}: damaged; {remedy}")
    return index.shard


def _digest(shard: ShardSummary) -> str:
    return hashlib.sha256(json.dumps(shard.model_dump(mode="json"), sort_keys=True).encode()).hexdigest()
