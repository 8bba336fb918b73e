"""A Reverb server: `process.py` runs this script with the Python of Reverb's environment. It stands alone.

Reads one JSON line from standard input: `{"port": int, "tables": [{"name", "max_size", "min_size_to_sample",
"samples_per_insert", "min_diff", "max_diff"}, ...]}`. A table's limiter keeps `inserted * samples_per_insert - sampled`
within [min_diff, max_diff]. Prints one line, `READY port` or `ERROR text`. Exits when standard input closes, so that it
never outlives its parent.
"""

import ctypes
import errno
import importlib
import importlib.util
import json
import os
import signal
import socket
import sys
import tempfile
import types
from typing import Any

os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
PR_SET_PDEATHSIG = 1  # of <linux/prctl.h>


def main() -> int:
    # A stopped process does not notice that its input closes; Linux can end it with its parent.
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    # The parent reads one line only: the output of libraries goes to standard error.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    request = json.loads(sys.stdin.readline())
    port = int(request["port"])
    try:
        _server = start_server(port, request["tables"])  # serves until nothing refers to it
    except Exception as error:  # noqa: BLE001 - the parent gets any error as one line
        text = " ".join(f"{type(error).__name__}: {error}".split())
        print(f"ERROR {text}", file=answers, flush=True)
        return 1
    print(f"READY {port}", file=answers, flush=True)
    sys.stdin.buffer.read()
    # An orderly stop would wait for clients, and nothing here outlives the process anyway.
    os._exit(0)


def start_server(port: int, tables: list[dict[str, Any]]) -> Any:
    """Starts a Reverb server on `port`. Raises `OSError` if the port is taken."""
    reverb = load_reverb()  # takes a moment, so the probe of the port comes after it
    made = [make_table(reverb, **table) for table in tables]
    # Nothing is ever checkpointed, but by default Reverb creates a folder for checkpoints and never removes it.
    with tempfile.TemporaryDirectory(prefix="fathom-reverb-", ignore_cleanup_errors=True) as folder:
        checkpointer = reverb.create_default_checkpointer(folder, "", None)
        probe(port)
        return reverb.Server(made, port, checkpointer)


def load_reverb() -> Any:
    """Returns the C++ part of Reverb, as a module.

    `import reverb` imports all of TensorFlow for its datasets: two seconds of computing and 200 MB, of which a server
    needs the shared libraries only. So the packages on the way to both are imported without their own code.
    """
    for package in ("reverb", "tensorflow", "tensorflow.python"):
        spec = importlib.util.find_spec(package)
        if spec is None:
            raise ModuleNotFoundError(f"No module named '{package}'")
        module = types.ModuleType(package)
        module.__path__ = list(spec.submodule_search_locations or ())
        sys.modules[package] = module
    importlib.import_module("tensorflow.python.pywrap_tensorflow")
    return importlib.import_module("reverb.libpybind")


def make_table(reverb: Any, name: str, max_size: int, **limits: float) -> Any:
    return reverb.Table(
        name=name,
        sampler=reverb.UniformSelector(),
        remover=reverb.FifoSelector(),
        max_size=max_size,
        max_times_sampled=0,
        rate_limiter=reverb.RateLimiter(**limits),
        extensions=[],
        signature=None,
    )


def probe(port: int) -> None:
    """Raises `OSError` if a program listens on `port`.

    Reverb would not notice that program, because SO_REUSEPORT lets both listen. SO_REUSEADDR alone finds a listener,
    and ignores the connections of a dead server in TIME_WAIT.
    """
    for family, host in ((socket.AF_INET6, "::"), (socket.AF_INET, "")):
        try:
            with socket.socket(family, socket.SOCK_STREAM) as probing:
                probing.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                probing.bind((host, port))
        except OSError as error:
            if family == socket.AF_INET or error.errno not in (errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL):  # no IPv6
                raise


if __name__ == "__main__":
    sys.exit(main())
