"""Reverb's own client behind JSON lines, for comparison with Fathom's: bit for bit in tests, in speed in the benchmark.

Runs with the Python of Reverb's environment and stands alone. Each line on standard input is a request
`{"do": "write" | "write_steps" | "read" | "speed" | "insert_speed", "address", ...}`. Each answer is one JSON line,
with `error` in it if the request failed. Arrays travel as `.npz` files: one array `[R, ...]` for each column, named
`0`, `1`, ...
"""

import contextlib
import json
import os
import sys
import time
from collections.abc import Callable
from typing import Any

os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"

import numpy as np
import reverb
import tensorflow as tf


def write(address: str, table: str, path: str, chunk_lengths: list[int], items: list[list[Any]]) -> dict[str, Any]:
    """Appends the rows of `path` one by one, then writes `items` to `table`.

    An item has one entry for each column: `[start, stop]` rows, or one row number (which Reverb stores squeezed).
    """
    columns = _load(path)
    with reverb.Client(address).trajectory_writer(num_keep_alive_refs=len(columns[0])) as writer:
        for number, length in enumerate(chunk_lengths):
            writer.configure((number,), num_keep_alive_refs=len(columns[0]), max_chunk_length=length)
        for row in zip(*columns, strict=True):
            writer.append(list(row))
        for item in items:
            trajectory = [
                writer.history[column][slice(*rows) if isinstance(rows, list) else rows]
                for column, rows in enumerate(item)
            ]
            writer.create_item(table, priority=1.0, trajectory=trajectory)
        writer.flush(timeout_ms=10_000)
    return {}


def write_steps(address: str, table: str, path: str, chunk_length: int, rows: int) -> dict[str, Any]:
    """Appends the rows of `path` with Reverb's older writer, delta-encoded, and writes an item of the last `rows`."""
    columns = _load(path)
    client = reverb.Client(address)
    with client.writer(max_sequence_length=rows, delta_encoded=True, chunk_length=chunk_length) as writer:
        for row in zip(*columns, strict=True):
            writer.append(list(row))
        writer.create_item(table, num_timesteps=rows, priority=1.0)
    return {}


def read(address: str, table: str, path: str, windows: int) -> dict[str, Any]:
    """Samples `windows` items, and stores column c of item i in `path` as `i.c`."""
    samples = reverb.Client(address).sample(table, num_samples=windows, emit_timesteps=False)
    arrays = {f"{i}.{c}": column for i, sample in enumerate(samples) for c, column in enumerate(sample.data)}
    np.savez(path, **arrays)
    return {}


def speed(address: str, table: str, row_sizes: list[int], window_rows: int, windows: int) -> dict[str, Any]:
    """Measures uncompressed megabytes per second of `TrajectoryDataset` over `windows` single windows, when warm.

    `row_sizes`: numbers in a row of the float32 column and of the int32 column.
    """
    dataset = reverb.TrajectoryDataset(
        server_address=address,
        table=table,
        dtypes=(tf.float32, tf.int32),
        shapes=tuple(tf.TensorShape([window_rows, size]) for size in row_sizes),
        max_in_flight_samples_per_worker=128,
        rate_limiter_timeout_ms=5000,
    )
    samples = dataset.as_numpy_iterator()
    for _ in range(128):
        next(samples)
    started = time.perf_counter()
    size = sum(column.nbytes for _ in range(windows) for column in next(samples).data)
    return {"megabytes_per_second": size / (time.perf_counter() - started) / 1e6}


def insert_speed(
    address: str, tables: list[str], row_sizes: list[int], environments: int, steps: int, chunks: int, unrolls: int
) -> dict[str, Any]:
    """Measures environment steps per second of a `TrajectoryWriter` for each environment, to the last confirmation.

    An unroll of `steps` rows is appended at once, as one chunk: row by row takes ten times as long. An item in each
    table holds `chunks` unrolls. The first `chunks` unrolls, which make no items, are not timed.
    """
    rng = np.random.default_rng(0)
    floats, ints = row_sizes
    unroll = (rng.standard_normal((steps, floats), dtype=np.float32), np.zeros((steps, ints), np.int32))
    client = reverb.Client(address)
    with contextlib.ExitStack() as stack:
        writers = [
            stack.enter_context(client.trajectory_writer(num_keep_alive_refs=chunks)) for _ in range(environments)
        ]
        for writer in writers:
            for column in range(2):
                writer.configure((column,), num_keep_alive_refs=chunks, max_chunk_length=1)
        for number in range(chunks + unrolls):
            if number == chunks:
                for writer in writers:
                    writer.flush()
                started = time.perf_counter()
            for writer in writers:
                writer.append(list(unroll))
                if number >= chunks:
                    trajectory = [writer.history[column][-chunks:] for column in range(2)]
                    for table in tables:
                        writer.create_item(table, priority=1.0, trajectory=trajectory)
        for writer in writers:
            writer.flush(timeout_ms=30_000)
        seconds = time.perf_counter() - started
    return {"steps_per_second": unrolls * environments * steps / seconds}


def _load(path: str) -> list[Any]:
    with np.load(path) as stored:
        return [stored[str(number)] for number in range(len(stored.files))]


def main() -> None:
    # The parent reads answers only: the output of libraries goes to standard error.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    functions: tuple[Callable[..., dict[str, Any]], ...] = (write, write_steps, read, speed, insert_speed)
    commands = {function.__name__: function for function in functions}
    for line in sys.stdin:
        request = json.loads(line)
        try:
            answer = commands[request.pop("do")](**request)
        except Exception as error:  # noqa: BLE001 - the parent gets any error
            answer = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main()
