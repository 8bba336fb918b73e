"""Speed of the replay path: unrolls in, windows out, against a real server and, if asked, its own client."""

import json
import os
import select
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from deploy.replay.server.process import ReplayServer, TableSpec
from deploy.replay.server.provision import reverb_python
from shared.replay.codec import INT_COLUMNS, Columns
from shared.replay.errors import ReplayError
from shared.replay.insert import Inserter
from shared.replay.sample import Sampler
from shared.stream.format import StreamDescription
from shared.stream.write import StreamWriter

ROW_FLOATS = 290  # a large state and its action side by side
ENVIRONMENTS = 64
UNROLL = 62
CHUNKS_PER_WINDOW = 18
WINDOWS_PER_UPDATE = 64
MAX_WINDOWS = 4096
STOCK_CLIENT = Path(__file__).parents[1] / "replay" / "server" / "stock_client.py"


class StockClient:
    """`stock_client.py` as a child process; one request at a time."""

    def __init__(self, python: Path) -> None:
        self._child = subprocess.Popen(
            [str(python), "-I", "-u", str(STOCK_CLIENT)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )

    def ask(self, do: str, timeout_s: float = 60.0, **request: Any) -> dict[str, Any]:
        """The answer to one request. Raises `ReplayError` when it failed or `timeout_s` seconds passed."""
        stdin, stdout = self._child.stdin, self._child.stdout
        assert stdin is not None
        assert stdout is not None
        stdin.write(json.dumps({"do": do, **request}).encode() + b"\n")
        stdin.flush()
        line, deadline = b"", time.monotonic() + timeout_s
        while not line.endswith(b"\n"):
            ready, _, _ = select.select([stdout], [], [], max(0.0, deadline - time.monotonic()))
            more = os.read(stdout.fileno(), 65536) if ready else b""
            if not more:
                raise ReplayError(f"Reverb's own client {'ended' if ready else 'did not answer'}: {do}")
            line += more
        answer = json.loads(line)
        if "error" in answer:
            raise ReplayError(f"Reverb's own client failed: {do}: {answer['error']}")
        return answer

    def close(self) -> None:
        self._child.kill()
        self._child.communicate()


def bench_replay(
    against_stock: bool = False,
    repetitions: int = 5,
    insert_unrolls: int = 60,
    sample_batches: int = 36,
    say: Callable[[str], None] = print,
) -> dict[str, float | None]:
    """Medians over `repetitions`; rows of 290 floats and 3 ints, 64 environments, windows of 18 x 62 rows.

    `insert_steps_per_second`: environment steps a second of one `Inserter` into two tables, without samplers,
    from numpy unrolls to the last confirmation. `ahead_steps_per_second`: the same, each unroll written to the
    tail of a stream first, as collectors do; turns alternate. `ahead_ratio`: of the medians.
    `stock_insert_steps_per_second`: through Reverb's `TrajectoryWriter`, one for each environment (its own Python and
    process), a whole unroll appended at a time; turns alternate. `insert_ratio`: ours to stock's, of the medians.
    `sample_megabytes_per_second`: uncompressed megabytes (1e6) a second of one `Sampler`, without inserts,
    decoded into its contiguous host batch of 64 windows; the transfer to a device is left out.
    `stock_sample_megabytes_per_second`: the same table through Reverb's `TrajectoryDataset` (its own Python
    and process), windows handed out singly as numpy, not batched; turns alternate. `sample_ratio`: ours to
    stock's, of the medians. States are random floats, which do not compress.
    """
    python = reverb_python(say)
    names, stock_names = ["bench/a", "bench/b"], ["stock/a", "stock/b"]
    tables = [TableSpec(name, MAX_WINDOWS, min_size_to_sample=1) for name in (*names, *stock_names)]
    with tempfile.TemporaryDirectory(prefix="fathom-bench-") as folder:
        server = ReplayServer(python, Path(folder) / "server.log")
        try:
            address = server.start(tables)
            stock = StockClient(python) if against_stock else None
            try:
                stream = Path(folder) / "stream"
                inserted = _insert_speeds(address, names, stock_names, insert_unrolls, repetitions, stream, stock)
                sampled = _sample_speeds(address, names[0], repetitions, sample_batches, stock)
            finally:
                if stock:
                    stock.close()
        finally:
            server.stop()
    speeds = {name: statistics.median(each) if each else None for name, each in (inserted | sampled).items()}

    def ratio(one: str, other: str) -> float | None:
        slow, fast = speeds[one], speeds[other]
        return slow / fast if slow and fast else None

    return {
        **speeds,
        "ahead_ratio": ratio("ahead_steps_per_second", "insert_steps_per_second"),
        "insert_ratio": ratio("insert_steps_per_second", "stock_insert_steps_per_second"),
        "sample_ratio": ratio("sample_megabytes_per_second", "stock_sample_megabytes_per_second"),
    }


def _insert_speeds(
    address: str,
    tables: list[str],
    stock_tables: list[str],
    unrolls: int,
    repetitions: int,
    stream: Path,
    stock: StockClient | None,
) -> dict[str, list[float]]:
    """Environment steps a second, without and with a stream written ahead, and of `stock`; taken in turns."""
    description = StreamDescription(
        env="bench",
        state_size=ROW_FLOATS - 1,
        action_size=1,
        episode_length=CHUNKS_PER_WINDOW * UNROLL,
        unroll_length=UNROLL,
        environments=ENVIRONMENTS,
        collectors=1,
        unrolls=unrolls,
    )
    plain: list[float] = []
    ahead: list[float] = []
    theirs: list[float] = []
    for turn in range(repetitions):
        plain.append(_insert_speed(address, tables, unrolls, 2 * turn, lambda columns, number: None))
        writer = StreamWriter(stream / str(turn), 0, description, keep_unrolls=MAX_WINDOWS // ENVIRONMENTS)
        ahead.append(_insert_speed(address, tables, unrolls, 2 * turn + 1, writer.write))
        writer.close()
        if stock:
            answer = stock.ask(
                "insert_speed",
                address=address,
                tables=stock_tables,
                row_sizes=[ROW_FLOATS, INT_COLUMNS],
                environments=ENVIRONMENTS,
                steps=UNROLL,
                chunks=CHUNKS_PER_WINDOW,
                unrolls=unrolls,
            )
            theirs.append(answer["steps_per_second"])
    return {
        "insert_steps_per_second": plain,
        "ahead_steps_per_second": ahead,
        "stock_insert_steps_per_second": theirs,
    }


def _insert_speed(
    address: str, tables: list[str], unrolls: int, source: int, write: Callable[[Columns, int], None]
) -> float:
    """Environment steps a second, the first window's unrolls (which make no items) left out.

    `source`: another one each time, or its windows would be there already.
    """
    rng = np.random.default_rng(0)
    shape = (ENVIRONMENTS, UNROLL)
    floats = [rng.standard_normal((*shape, ROW_FLOATS), dtype=np.float32) for _ in range(4)]
    ints = np.zeros((*shape, INT_COLUMNS), np.int32)
    inserter = Inserter(address, tables, CHUNKS_PER_WINDOW, ENVIRONMENTS, source=source)

    def insert(number: int) -> None:
        ints[..., 1] = np.arange(UNROLL) + number * UNROLL
        columns = Columns(floats[number % len(floats)], ints)
        write(columns, number)
        inserter.insert(columns, number)

    try:
        for number in range(CHUNKS_PER_WINDOW):
            insert(number)
        inserter.flush(timeout_s=30.0)
        started = time.perf_counter()
        for number in range(CHUNKS_PER_WINDOW, CHUNKS_PER_WINDOW + unrolls):
            insert(number)
        inserter.flush(timeout_s=30.0)
        return unrolls * ENVIRONMENTS * UNROLL / (time.perf_counter() - started)
    finally:
        inserter.close()


def _sample_speeds(
    address: str, table: str, repetitions: int, batches: int, stock: StockClient | None
) -> dict[str, list[float]]:
    """Megabytes a second, ours and of `stock`, taken in turns."""
    ours: list[float] = []
    theirs: list[float] = []
    _our_sample_speed(address, table, batches)  # the first one meets cold memory; stock warms up by itself
    for _ in range(repetitions):
        ours.append(_our_sample_speed(address, table, batches))
        if stock:
            answer = stock.ask(
                "speed",
                address=address,
                table=table,
                row_sizes=[ROW_FLOATS, INT_COLUMNS],
                window_rows=CHUNKS_PER_WINDOW * UNROLL,
                windows=batches * WINDOWS_PER_UPDATE,
            )
            theirs.append(answer["megabytes_per_second"])
    return {"sample_megabytes_per_second": ours, "stock_sample_megabytes_per_second": theirs}


def _our_sample_speed(address: str, table: str, batches: int) -> float:
    def size(columns: Columns) -> int:
        return columns.floats.nbytes + columns.ints.nbytes

    rows = CHUNKS_PER_WINDOW * UNROLL
    sampler = Sampler(address, table, WINDOWS_PER_UPDATE, rows, ROW_FLOATS, transfer=size)
    try:
        for _ in range(2):
            sampler.sample()
        started = time.perf_counter()
        total = sum(sampler.sample()[0] for _ in range(batches))
        return total / (time.perf_counter() - started) / 1e6
    finally:
        sampler.close()
