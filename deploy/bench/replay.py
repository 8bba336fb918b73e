"""Speed of replay, unrolls in and windows out, against a real server and, on request, Reverb's own client."""

import json
import select
import statistics
import tempfile
import time
from contextlib import ExitStack, closing
from itertools import count
from pathlib import Path
from subprocess import DEVNULL, PIPE, Popen
from typing import Any

import numpy as np

from deploy.bench.harness import Measurements, replay_server, take_turns, to_stderr
from deploy.replay.server.process import TableSpec
from deploy.replay.server.provision import reverb_python
from shared.replay.codec import INT_COLUMNS, Columns
from shared.replay.errors import ReplayError
from shared.replay.insert import Inserter
from shared.replay.sample import Sampler
from shared.stream.format import StreamDescription
from shared.stream.write import StreamWriter

ROW_FLOATS = 293  # a large state, its action and final point side by side
ROW_SIZES = [ROW_FLOATS, INT_COLUMNS]
ENVIRONMENTS = 64
UNROLL = 62
CHUNKS_PER_WINDOW = 18
WINDOW_ROWS = CHUNKS_PER_WINDOW * UNROLL
WINDOWS_PER_UPDATE = 64
MAX_WINDOWS = 4096
FLUSH_S = 30.0
STOCK_CLIENT = Path(__file__).parents[1] / "replay" / "server" / "stock_client.py"
TABLES, STOCK_TABLES = ["bench/a", "bench/b"], ["stock/a", "stock/b"]


class StockClient:
    """`stock_client.py` as a child process; one request at a time."""

    def __init__(self, python: Path) -> None:
        command = [str(python), "-I", "-u", str(STOCK_CLIENT)]
        self._child = Popen(command, stdin=PIPE, stdout=PIPE, stderr=DEVNULL, start_new_session=True, text=True)

    def ask(self, do: str, timeout_s: float = 60.0, **request: Any) -> dict[str, Any]:
        """Returns the answer to one request. Raises ReplayError if it failed or `timeout_s` seconds passed."""
        stdout = self._child.stdout
        assert stdout is not None
        print(json.dumps({"do": do, **request}), file=self._child.stdin, flush=True)
        answered, _, _ = select.select([stdout], [], [], timeout_s)
        line = stdout.readline() if answered else ""
        if not line.endswith("\n"):
            raise ReplayError(f"Reverb's own client {'ended' if answered else 'did not answer'}: {do}")
        answer = json.loads(line)
        if "error" in answer:
            raise ReplayError(f"Reverb's own client failed: {do}: {answer['error']}")
        return answer

    def close(self) -> None:
        self._child.kill()
        self._child.communicate()


def bench_replay(against_stock: bool, repeats: int, unrolls: int, batches: int) -> dict[str, float | None]:
    """Returns medians over `repeats`; rows of 293 floats and 4 ints, 64 environments, windows of 18 x 62 rows.

    `insert_steps_per_second`: environment steps a second of one `Inserter` into two tables, without samplers, from
    numpy unrolls to the last confirmation. `ahead_steps_per_second`: the same with each unroll written to a stream
    first, as collectors do. `stock_insert_steps_per_second`: through one Reverb `TrajectoryWriter` for each
    environment (its own Python and process), a whole unroll appended at a time. `sample_megabytes_per_second`:
    uncompressed megabytes (1e6) a second of one `Sampler`, without inserts, decoded into its contiguous host batch of
    64 windows; the transfer to a device is left out. `stock_sample_megabytes_per_second`: from the same table through
    Reverb's `TrajectoryDataset` (its own Python and process), single windows as numpy arrays, not batched.
    `ahead_ratio`: ahead to plain inserts; `insert_ratio`, `sample_ratio`: ours to stock's; all three of medians of
    turns that alternate with each other. Stock's process starts after the first of them: its threads never rest.
    States are random floats, which do not compress. Stock's figures are None unless `against_stock`.
    """
    with ExitStack() as stack:
        tables = [TableSpec(name, MAX_WINDOWS, min_size_to_sample=1) for name in TABLES + STOCK_TABLES]
        _, address, folder = stack.enter_context(replay_server(tables))
        sources = count()

        def insert() -> float:
            return _insert_speed(address, next(sources), unrolls)

        def insert_ahead() -> float:
            with tempfile.TemporaryDirectory(dir=folder) as stream:
                return _insert_speed(address, next(sources), unrolls, Path(stream))

        def sample() -> float:
            return _sample_speed(address, batches)

        ours = _medians({"insert": insert, "ahead": insert_ahead}, repeats)
        theirs: dict[str, float] = {}
        sample()  # the first call meets cold memory; stock warms up by itself
        if not against_stock:
            ours |= _medians({"sample": sample}, repeats)
        else:
            stock = stack.enter_context(closing(StockClient(reverb_python(to_stderr))))
            inserts = {"insert": insert, "stock_insert": lambda: _stock_insert_speed(stock, address, unrolls)}
            theirs = _medians(inserts, repeats)
            samples = {"sample": sample, "stock_sample": lambda: _stock_sample_speed(stock, address, batches)}
            theirs |= _medians(samples, repeats)
    return {
        "insert_steps_per_second": ours["insert"],
        "ahead_steps_per_second": ours["ahead"],
        "stock_insert_steps_per_second": theirs.get("stock_insert"),
        "sample_megabytes_per_second": theirs["sample"] if theirs else ours["sample"],
        "stock_sample_megabytes_per_second": theirs.get("stock_sample"),
        "ahead_ratio": ours["ahead"] / ours["insert"],
        "insert_ratio": theirs["insert"] / theirs["stock_insert"] if theirs else None,
        "sample_ratio": theirs["sample"] / theirs["stock_sample"] if theirs else None,
    }


def _medians(measurements: Measurements, repeats: int) -> dict[str, float]:
    return {name: statistics.median(turn) for name, turn in take_turns(measurements, repeats).items()}


def _insert_speed(address: str, source: int, unrolls: int, stream: Path | None = None) -> float:
    """Returns environment steps a second, without the first window's unrolls, which make no items.

    Args:
        source: a new one each time; the server drops windows of a source that it has already.
        stream: a folder; each unroll is written to a stream in it first.
    """
    rng = np.random.default_rng(0)
    shape = (ENVIRONMENTS, UNROLL)
    floats = [rng.standard_normal((*shape, ROW_FLOATS), dtype=np.float32) for _ in range(4)]
    ints = np.zeros((*shape, INT_COLUMNS), np.int32)
    with ExitStack() as stack:
        inserter = stack.enter_context(
            closing(Inserter(address, TABLES, CHUNKS_PER_WINDOW, ENVIRONMENTS, source=source))
        )
        writer = stream and stack.enter_context(closing(_stream_writer(stream / str(source), unrolls)))

        def insert(first: int, last: int) -> None:
            for number in range(first, last):
                ints[..., 1] = np.arange(UNROLL) + number * UNROLL
                columns = Columns(floats[number % len(floats)], ints)
                if writer:
                    writer.write(columns, number)
                inserter.insert(columns, number)
            inserter.flush(FLUSH_S)

        insert(0, CHUNKS_PER_WINDOW)
        started = time.perf_counter()
        insert(CHUNKS_PER_WINDOW, CHUNKS_PER_WINDOW + unrolls)
        return unrolls * ENVIRONMENTS * UNROLL / (time.perf_counter() - started)


def _stream_writer(folder: Path, unrolls: int) -> StreamWriter:
    description = StreamDescription(
        env="bench",
        state_size=ROW_FLOATS - 2,
        action_size=1,
        goal_size=1,
        episode_length=WINDOW_ROWS,
        unroll_length=UNROLL,
        environments=ENVIRONMENTS,
        collectors=1,
        unrolls=unrolls,
    )
    return StreamWriter(folder, 0, description, keep_unrolls=MAX_WINDOWS // ENVIRONMENTS)


def _stock_insert_speed(stock: StockClient, address: str, unrolls: int) -> float:
    sizes = {"environments": ENVIRONMENTS, "steps": UNROLL, "chunks": CHUNKS_PER_WINDOW, "unrolls": unrolls}
    answer = stock.ask("insert_speed", address=address, tables=STOCK_TABLES, row_sizes=ROW_SIZES, **sizes)
    return answer["steps_per_second"]


def _sample_speed(address: str, batches: int) -> float:
    """Returns megabytes a second from the first table."""

    def size(columns: Columns) -> int:
        return columns.floats.nbytes + columns.ints.nbytes

    with closing(Sampler(address, TABLES[0], WINDOWS_PER_UPDATE, WINDOW_ROWS, ROW_FLOATS, transfer=size)) as sampler:
        for _ in range(2):
            sampler.sample()
        started = time.perf_counter()
        total_bytes = sum(sampler.sample()[0] for _ in range(batches))
        return total_bytes / (time.perf_counter() - started) / 1e6


def _stock_sample_speed(stock: StockClient, address: str, batches: int) -> float:
    sizes = {"window_rows": WINDOW_ROWS, "windows": batches * WINDOWS_PER_UPDATE}
    answer = stock.ask("speed", address=address, table=TABLES[0], row_sizes=ROW_SIZES, **sizes)
    return answer["megabytes_per_second"]
