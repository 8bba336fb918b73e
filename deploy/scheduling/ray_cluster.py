"""Ray clusters: the connection of a driver to a cluster, and a process that holds a cluster for several drivers.

The holder is a process of its own because Ray ends every connected process without a message when its cluster dies.
"""

import json
import os
import select
import signal
import socket
import sys
import textwrap
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from typing import Any

import ray

from deploy.scheduling.placement import read_nodes
from shared.errors import RunFailed

CONNECT_S = 10.0
LOOK_S = 5.0


@contextmanager
def cluster(object_store_bytes: int, namespace: str) -> Iterator[None]:
    """Connects to the cluster at RAY_ADDRESS, or to a new cluster on this machine. Raises RunFailed."""
    options = {"namespace": namespace, "log_to_driver": False, "logging_level": "CRITICAL"}
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # JAX_PLATFORMS keeps a role off the GPUs
    # JAX warns of any fork; Ray's children exec at once.
    warnings.filterwarnings("ignore", message=r"os\.fork\(\) was called", category=RuntimeWarning)
    handler = signal.getsignal(signal.SIGTERM)
    if address := os.environ.get("RAY_ADDRESS"):
        _connect(address, options)
    else:
        ray.init(address="local", include_dashboard=False, object_store_memory=object_store_bytes, **options)
    signal.signal(signal.SIGTERM, handler)  # Ray's own handler would hide the signal from the run
    try:
        yield
    finally:
        ray.shutdown()


def _connect(address: str, options: dict[str, Any]) -> None:
    host, _, port = address.rpartition("://")[2].rpartition(":")
    try:
        if port.isdigit():  # Ray itself would retry for a quarter of an hour
            socket.create_connection((host, int(port)), CONNECT_S).close()
        ray.init(address="auto", **options)
    except (OSError, ValueError) as error:
        cause = error.__cause__ or error
        reason = f"{type(cause).__name__}: {cause}".strip().splitlines()[-1]  # a traceback ends with the cause
        raise RunFailed(
            f"RAY_ADDRESS: no connection to a Ray cluster at {address} ({textwrap.shorten(reason, 250)})"
        ) from error


def hold(store_bytes: int) -> None:
    """Holds a cluster until standard input closes or the cluster dies.

    Prints one line of JSON: the cluster's `nodes`, and `environ`, by which other processes find and enter it; or the
    `error` that kept the cluster from starting.
    """
    output = sys.stdout
    with redirect_stdout(sys.stderr):
        try:
            with cluster(store_bytes, namespace="fathom-matrix"):
                environ = {"RAY_ADDRESS": ray.get_runtime_context().gcs_address}
                environ |= {name: os.environ[name] for name in ("RAY_ADDRESS", "RAY_AUTH_MODE") if name in os.environ}
                answer = {"environ": environ, "nodes": [node._asdict() for node in read_nodes(ray.nodes())]}
                print(json.dumps(answer), file=output, flush=True)
                while not select.select([sys.stdin], [], [], LOOK_S)[0]:  # nothing is ever written
                    if not ray.cluster_resources():  # every node is dead
                        return
        except Exception as error:  # noqa: BLE001 - the parent waits for an answer, whatever the error
            reason = f"{'' if isinstance(error, RunFailed) else f'Ray did not start: {type(error).__name__}: '}{error}"
            print(json.dumps({"error": " ".join(reason.split())}), file=output, flush=True)


if __name__ == "__main__":
    hold(int(sys.argv[1]))
