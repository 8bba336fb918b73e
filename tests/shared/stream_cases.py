"""Recorded streams of random unrolls, in the present format and in the one before it."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pyarrow as pa

from shared.replay.codec import Columns
from shared.stream.format import ShardSummary, StreamDescription
from shared.stream.write import StreamWriter, write_manifest

N, T, F = 3, 4, 8
DESCRIPTION = StreamDescription(
    env="point_u_maze",
    state_size=4,
    action_size=2,
    goal_size=2,
    episode_length=20,
    unroll_length=T,
    environments=N,
    collectors=2,
    unrolls=5,
)


def unroll(collector: int, number: int, description: StreamDescription = DESCRIPTION) -> Columns:
    """Returns floats of arbitrary bits, with NaNs and subnormals, and ints that count unrolls and chunks."""
    shape = num_envs, num_steps = description.environments, description.unroll_length
    rng = np.random.default_rng([collector, number])
    floats = rng.integers(2**32, size=(*shape, description.row_floats), dtype=np.uint32).view(np.float32)
    environments, steps = np.indices(shape)
    ends = (number + environments + steps) % 3
    counts = collector * num_envs + environments, number * num_steps + steps, np.full(shape, number)
    return Columns(floats, np.stack([*counts, ends], axis=-1).astype(np.int32))


def write_shards(directory: Path, description: StreamDescription = DESCRIPTION) -> list[ShardSummary]:
    """Writes all unrolls of `description` in parts of 2, without a manifest."""
    shards = []
    for index in range(description.collectors):
        writer = StreamWriter(directory, index, description, part_bytes=2 * description.unroll_bytes)
        for number in range(description.unrolls):
            writer.write(unroll(index, number, description), number)
        shards.append(writer.close())
    return shards


def record(directory: Path, description: StreamDescription = DESCRIPTION) -> Path:
    """Writes a complete stream, and returns `directory`."""
    write_manifest(directory, description, write_shards(directory, description))
    return directory


def downgrade(stream: Path, to: Path) -> Path:
    """Writes `stream` again in format version 2, whose rows do not say how episodes ended, and returns `to`."""
    manifest = json.loads((stream / "manifest.json").read_text())
    described = manifest["description"]
    del described["goal_size"]
    manifest["format_version"] = 2
    sizes = {"floats": described["state_size"] + described["action_size"], "ints": 3}
    for shard in manifest["shards"]:
        for part in shard["parts"]:
            path = to / f"collector-{shard['index']}" / part["name"]
            path.parent.mkdir(parents=True, exist_ok=True)
            rows = pa.ipc.open_file((stream / path.relative_to(to)).read_bytes()).read_all()
            old = pa.table({name: _cut(rows[name], described["unroll_length"], size) for name, size in sizes.items()})
            with pa.ipc.new_file(str(path), old.schema) as file:
                file.write_table(old, max_chunksize=described["environments"])
            data = path.read_bytes()
            part |= {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    (to / "manifest.json").write_text(json.dumps(manifest))
    return to


def _cut(chunks: pa.ChunkedArray, steps: int, size: int) -> pa.FixedSizeListArray:
    """Returns the first `size` numbers of every step; a list of `chunks` holds the numbers of `steps` steps."""
    kept = chunks.combine_chunks().flatten().to_numpy().reshape(len(chunks), steps, -1)[..., :size]
    return pa.FixedSizeListArray.from_arrays(kept.ravel(), steps * size)
