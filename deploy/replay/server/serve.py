"""Runs one Reverb server. Started by `server.py` with the Python of Reverb's own environment; stands alone.

Reads one JSON line from standard input: `{"port": int, "tables": [{"name", "max_size",
"min_size_to_sample", "samples_per_insert" (null: no limit beyond the minimum size), "min_diff", "max_diff"}, ...]}`.
Prints one line, `READY port` or `ERROR text`. Exits when standard input closes, so that no crash of its
parent leaves it behind.
"""

import ctypes
import errno
import json
import os
import shutil
import signal
import socket
import sys
import tempfile
from typing import Any

os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"


PR_SET_PDEATHSIG = 1  # of <linux/prctl.h>


def main() -> int:
    # A stopped process would not see its input close. Elsewhere than on Linux that has to do.
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    # Only the one line may reach the parent: what libraries print goes to standard error with the rest.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    request = json.loads(sys.stdin.readline())
    port = int(request["port"])
    try:
        server = start_server(port, request["tables"])
    except Exception as error:  # noqa: BLE001 - whatever it was, the parent must get it as one line
        text = " ".join(f"{type(error).__name__}: {error}".split())
        print(f"ERROR {text}", file=answers, flush=True)
        return 1
    print(f"READY {server.port}", file=answers, flush=True)
    sys.stdin.buffer.read()
    # No orderly stop: it waits for clients, and nothing here outlives the process anyway.
    os._exit(0)


def start_server(port: int, tables: list[dict[str, Any]]) -> Any:
    """The running `reverb.Server` on `port`. Raises `OSError` when the port is taken."""
    import reverb  # seconds of work; a taken port is told sooner by the probe after it, which must come last

    made = [make_table(reverb, **table) for table in tables]
    # Nothing here is ever checkpointed, but left to itself Reverb makes a folder for it and never removes it.
    folder = tempfile.mkdtemp(prefix="fathom-reverb-")
    try:
        checkpointer = reverb.platform.checkpointers_lib.DefaultCheckpointer(path=folder)
        probe(port)
        return reverb.Server(tables=made, port=port, checkpointer=checkpointer)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def make_table(
    reverb: Any,
    name: str,
    max_size: int,
    min_size_to_sample: int,
    samples_per_insert: float | None,
    min_diff: float = 0.0,
    max_diff: float = 0.0,
) -> Any:
    """A table whose limiter keeps `inserted * samples_per_insert - sampled` within [min_diff, max_diff]."""
    if samples_per_insert is None:
        limiter = reverb.rate_limiters.MinSize(min_size_to_sample)
    else:
        limiter = reverb.rate_limiters.RateLimiter(samples_per_insert, min_size_to_sample, min_diff, max_diff)
    return reverb.Table(
        name=name,
        sampler=reverb.selectors.Uniform(),
        remover=reverb.selectors.Fifo(),
        max_size=max_size,
        max_times_sampled=0,
        rate_limiter=limiter,
    )


def probe(port: int) -> None:
    """Raises `OSError` when something listens on `port`.

    Reverb would not notice: its listening socket has SO_REUSEPORT, and two servers would share the port.
    SO_REUSEADDR alone does find a listener, and passes over a dead server's connections in TIME_WAIT.
    """
    for family, host in ((socket.AF_INET6, "::"), (socket.AF_INET, "")):
        try:
            with socket.socket(family, socket.SOCK_STREAM) as probing:
                probing.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                probing.bind((host, port))
        except OSError as error:
            no_ipv6 = (errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL)
            if family == socket.AF_INET6 and error.errno in no_ipv6:
                continue
            raise


if __name__ == "__main__":
    sys.exit(main())
