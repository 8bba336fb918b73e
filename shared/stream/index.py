"""Index of a shard: finished parts and their checksums. A writer that resumes has to read no part that is listed."""

import hashlib
import json
from pathlib import Path

from shared.errors import ConfigError
from shared.files import replace_file
from shared.stream.format import FORMAT_VERSION, INDEX, ShardIndex, ShardSummary, read_file

_UPGRADE = "resume with the Fathom that began the run, or begin it again in another folder"


def write_index(folder: Path, shard: ShardSummary, sync: bool = True) -> None:
    """Replaces the index in one step; see `replace_file`. Raises OSError."""
    index = ShardIndex(format_version=FORMAT_VERSION, sha256=_digest(shard), shard=shard)
    replace_file(folder / INDEX, index.model_dump_json(indent=2) + "\n", sync)


def read_index(folder: Path, remedy: str) -> ShardSummary:
    """Reads the index. Raises ConfigError, one line, if it is missing, damaged or of another format version.

    The line ends with `remedy`, unless the version is another: then only another Fathom can go on.
    """
    path = folder / INDEX
    if not path.exists():
        raise ConfigError(f"{path}: missing; {remedy}")
    index = read_file(path, ShardIndex, "damaged", remedy, _UPGRADE)
    if index.sha256 != _digest(index.shard):
        raise ConfigError(f"{path}: damaged; {remedy}")
    return index.shard


def _digest(shard: ShardSummary) -> str:
    return hashlib.sha256(json.dumps(shard.model_dump(mode="json"), sort_keys=True).encode()).hexdigest()
