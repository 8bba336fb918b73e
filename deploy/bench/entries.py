"""What a window costs for each table that it is in, in time and memory; a real server, nobody samples."""

import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from deploy.replay.server.process import ReplayServer, TableSpec
from deploy.replay.server.provision import reverb_python
from shared.errors import ConfigError
from shared.replay import wire
from shared.replay.codec import INT_COLUMNS, Columns
from shared.replay.insert import Inserter

ENVIRONMENTS = 64
UNROLL = 62
CHUNKS_PER_WINDOW = 18
ROW_FLOATS = 37  # the ant's
FLUSH_S = 60.0
LONG_KEY = np.uint64(2**63)  # keys of a run take all of their bytes


def bench_entries(
    tables: Sequence[int], unrolls: int = 100, say: Callable[[str], None] = lambda text: print(text, file=sys.stderr)
) -> dict[str, Any]:
    """A row for each number of tables: one collector of 64 environments inserts `unrolls` unrolls of windows.

    Rows are the ant's (37 random floats, 3 ints), windows 18 x 62 of them. `env_steps_per_second`;
    `entries_per_second`, over all tables; `collector_cpu_us`, `server_cpu_us` of an entry, its share of the chunk
    included; `entry_bytes` of the server's resident memory, chunks taken off. Raises `ConfigError`, `ReplayError`.
    """
    if not tables or min(tables) < 1:
        raise ConfigError(f"--tables: positive numbers are needed, not {list(tables)}")
    python = reverb_python(say)
    return {"rows": [_row(python, count, unrolls) for count in tables]}


def _row(python: Path, tables: int, unrolls: int) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    floats = rng.standard_normal((ENVIRONMENTS, UNROLL, ROW_FLOATS), dtype=np.float32)
    ints = np.zeros((ENVIRONMENTS, UNROLL, INT_COLUMNS), np.int32)
    chunk, columns = chunk_bytes(Columns(floats, ints), 0) / ENVIRONMENTS, Columns(floats, ints)
    names = [f"entries/{number}" for number in range(tables)]
    with tempfile.TemporaryDirectory(prefix="fathom-bench-") as folder:
        server = ReplayServer(python, Path(folder) / "server.log")
        try:
            windows = unrolls * ENVIRONMENTS
            address = server.start([TableSpec(name, windows, min_size_to_sample=1) for name in names])
            inserter = Inserter(address, names, CHUNKS_PER_WINDOW, ENVIRONMENTS)
            try:
                for number in range(CHUNKS_PER_WINDOW - 1):  # which complete no window
                    inserter.insert(columns, number)
                inserter.flush(FLUSH_S)
                served, ours = psutil.Process(server.pid), psutil.Process()
                before = _cpu(served), _cpu(ours), served.memory_info().rss, time.perf_counter()
                for number in range(unrolls):
                    inserter.insert(columns, CHUNKS_PER_WINDOW - 1 + number)
                inserter.flush(FLUSH_S)
                after = _cpu(served), _cpu(ours), served.memory_info().rss, time.perf_counter()
            finally:
                inserter.close()
        finally:
            server.stop()
    server_cpu, our_cpu, grown, seconds = (b - a for a, b in zip(before, after, strict=True))
    entries = windows * tables
    return {
        "tables": tables,
        "env_steps_per_second": windows * UNROLL / seconds,
        "entries_per_second": entries / seconds,
        "collector_cpu_us": 1e6 * our_cpu / entries,
        "server_cpu_us": 1e6 * server_cpu / entries,
        "entry_bytes": (grown - windows * chunk) / entries,
    }


def chunk_bytes(columns: Columns, start: int) -> int:
    """Of the chunks of `columns` `[N, T, ...]` in an insert message; their first steps are `start`."""
    keys = np.full(len(columns.floats), LONG_KEY)
    return len(wire.chunks(keys, [np.asarray(column) for column in columns], keys, start))


def item_bytes(chunks_per_window: int, table: str = "0123456789abcdef-1/active") -> int:
    """Of a window's entry in an insert message, for a table whose name is as long as a run's."""
    window = wire.trajectories(np.full((1, chunks_per_window), LONG_KEY), UNROLL, columns=2)
    return len(wire.items(table, np.full(1, LONG_KEY), window))


def _cpu(process: psutil.Process) -> float:
    times = process.cpu_times()
    return times.user + times.system
