"""Cost of a window's entry in a table, in time and memory: inserts into a real replay server, without samples."""

import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import psutil

from deploy.bench.harness import replay_server
from deploy.replay.server.process import TableSpec
from shared.errors import ConfigError
from shared.replay import wire
from shared.replay.codec import INT_COLUMNS, Columns
from shared.replay.insert import Inserter

ENVIRONMENTS = 64
UNROLL = 62
CHUNKS_PER_WINDOW = 18
ROW_FLOATS = 39  # the ant's
FLUSH_S = 60.0
LONG_KEY = np.uint64(2**63)  # keys of a run take all of their bytes


def bench_entries(tables: Sequence[int], unrolls: int = 100) -> dict[str, Any]:
    """Returns a row for each number of tables. An entry is one window in one table.

    In each measurement one collector of 64 environments inserts `unrolls` unrolls, each of which completes a window of
    18 x 62 steps in every environment. A step has 37 random floats and 3 ints, as in the ant environment.
    `env_steps_per_second`; `entries_per_second`, over all tables; `collector_cpu_us`, `server_cpu_us`: the process's
    CPU time divided by the number of entries; `entry_bytes`: the server's resident memory without the steps' own data,
    divided likewise. Raises ConfigError, ProvisionError and ReplayError.
    """
    if not tables or min(tables) < 1:
        raise ConfigError(f"--tables: positive numbers are needed, not {list(tables)}")
    return {"rows": [_row(num_tables, unrolls) for num_tables in tables]}


def _row(num_tables: int, unrolls: int) -> dict[str, Any]:
    floats = np.random.default_rng(0).standard_normal((ENVIRONMENTS, UNROLL, ROW_FLOATS), dtype=np.float32)
    columns = Columns(floats, np.zeros((ENVIRONMENTS, UNROLL, INT_COLUMNS), np.int32))
    names = [f"entries/{number}" for number in range(num_tables)]
    windows = unrolls * ENVIRONMENTS
    specs = [TableSpec(name, windows, min_size_to_sample=1) for name in names]
    with replay_server(specs) as (replay, address, _):
        inserter = Inserter(address, names, CHUNKS_PER_WINDOW, ENVIRONMENTS)
        server, collector = psutil.Process(replay.pid), psutil.Process()

        def insert(first: int, last: int) -> tuple[float, ...]:
            """Inserts unrolls and returns what the processes have used by then."""
            for number in range(first, last):
                inserter.insert(columns, number)
            inserter.flush(FLUSH_S)
            cpu_s = (sum(process.cpu_times()[:2]) for process in (server, collector))  # user and system
            return *cpu_s, server.memory_info().rss, time.perf_counter()

        try:
            before = insert(0, CHUNKS_PER_WINDOW - 1)  # these unrolls complete no window
            after = insert(CHUNKS_PER_WINDOW - 1, CHUNKS_PER_WINDOW - 1 + unrolls)
        finally:
            inserter.close()
    server_cpu_s, collector_cpu_s, grown_bytes, seconds = (b - a for a, b in zip(before, after, strict=True))
    entries = windows * num_tables
    return {
        "tables": num_tables,
        "env_steps_per_second": windows * UNROLL / seconds,
        "entries_per_second": entries / seconds,
        "collector_cpu_us": 1e6 * collector_cpu_s / entries,
        "server_cpu_us": 1e6 * server_cpu_s / entries,
        "entry_bytes": (grown_bytes - unrolls * chunk_bytes(columns, 0)) / entries,
    }


def chunk_bytes(columns: Columns, start: int) -> int:
    """Returns the size in an insert message of the chunks of `columns` `[N, T, ...]`, whose first step is `start`."""
    keys = np.full(len(columns.floats), LONG_KEY)
    return len(wire.chunks(keys, [np.asarray(column) for column in columns], keys, start))


def item_bytes(chunks_per_window: int, table: str = "0123456789abcdef-1/active") -> int:
    """Returns the size of a window's entry in an insert message; the table's name is as long as a run's."""
    window = wire.trajectories(np.full((1, chunks_per_window), LONG_KEY), UNROLL, columns=2)
    return len(wire.items(table, np.full(1, LONG_KEY), window))
