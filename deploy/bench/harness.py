"""Tools of several benchmarks: progress on standard error, measurements in turns, a replay server."""

import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import psutil

from shared.replay.errors import ReplayError

if TYPE_CHECKING:
    from deploy.replay.server.process import ReplayServer, TableSpec

Measurements = dict[str, Callable[[], float]]


def to_stderr(text: str) -> None:
    """Prints a line of progress; standard output is for figures alone."""
    print(text, file=sys.stderr, flush=True)


def take_turns(measurements: Measurements, repeats: int) -> dict[str, list[float]]:
    """Returns `repeats` results of each measurement. Turns alternate, so that a busy moment affects all of them."""
    results: dict[str, list[float]] = {name: [] for name in measurements}
    for _ in range(repeats):
        for name, measure in measurements.items():
            results[name].append(measure())
    return results


@contextmanager
def replay_server(tables: "Sequence[TableSpec]") -> Iterator[tuple["ReplayServer", str, Path]]:
    """Runs a replay server with `tables`. Yields it, its address `host:port`, and a folder that is removed after it.

    Raises ProvisionError. Raises ReplayError if the server does not start, or if an error of replay or psutil ends the
    block; the message gives the reason of the server's end, if the server has ended.
    """
    # Benchmarks that may run without a replay server import this module on machines without grpc.
    from deploy.replay.server.process import ReplayServer
    from deploy.replay.server.provision import reverb_python

    python = reverb_python(to_stderr)
    with tempfile.TemporaryDirectory(prefix="fathom-bench-") as folder:
        server = ReplayServer(python, Path(folder) / "server.log")
        try:
            address = server.start(tables)
            try:
                yield server, address, Path(folder)
            except (ReplayError, psutil.Error) as error:
                raise ReplayError(server.exit_reason() or str(error)) from error
        finally:
            server.stop()
