"""Ray clusters: a driver's connection to one, and a process that holds one which several drivers share.

The holder is a process of its own because Ray ends whoever is connected when its cluster dies, without a word.
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
    """A connection to the cluster at RAY_ADDRESS, else a cluster of our own on this machine. Raises RunFailed."""
    common = {"namespace": namespace, "log_to_driver": False, "logging_level": "CRITICAL"}
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # a role without a GPU: JAX_PLATFORMS says so
    # JAX warns of any fork; Ray's children exec at once.
    warnings.filterwarnings("ignore", message=r"os\.fork\(\) was called", category=RuntimeWarning)
    handler = signal.getsignal(signal.SIGTERM)
    if address := os.environ.get("RAY_ADDRESS"):
        _connect(address, common)
    else:
        ray.init(address="local", include_dashboard=False, object_store_memory=object_store_bytes, **common)
    signal.signal(signal.SIGTERM, handler)  # Ray has set its own, which no run would hear of
    try:
        yield
    finally:
        ray.shutdown()


def _connect(address: str, options: dict[str, Any]) -> None:
    """Raises RunFailed with one line for the user."""
    host, _, port = address.rpartition("://")[2].rpartition(":")
    try:
        if port.isdigit():  # Ray itself would go on trying for a quarter of an hour
            socket.create_connection((host, int(port)), CONNECT_S).close()
        ray.init(address="auto", **options)
    except (OSError, ValueError) as error:
        cause = error.__cause__ or error
        last = f"{type(cause).__name__}: {cause}".strip().splitlines()[-1]  # of a traceback, what it ends with
        reason = textwrap.shorten(last, 250)
        raise RunFailed(f"RAY_ADDRESS: no Ray cluster lets us in at {address} ({reason})") from error


def hold(store_bytes: int) -> None:
    """Says in one line of JSON where the cluster is and what it has; holds it until standard input closes.

    Or says the error that kept it from starting. Ends by itself when the cluster is gone.
    """
    answer = sys.stdout
    with redirect_stdout(sys.stderr):
        try:
            with cluster(store_bytes, namespace="fathom-matrix"):
                print(json.dumps(_describe()), file=answer, flush=True)
                while not select.select([sys.stdin], [], [], LOOK_S)[0]:  # nothing is ever written
                    if not ray.cluster_resources():  # every node is dead
                        return
        except Exception as error:  # noqa: BLE001 - whatever it is, who waits for an answer must hear of it
            reason = (
                str(error) if isinstance(error, RunFailed) else f"Ray did not start: {type(error).__name__}: {error}"
            )
            print(json.dumps({"error": " ".join(reason.split())}), file=answer, flush=True)


def _describe() -> dict[str, Any]:
    """`environ`: by which other processes find the cluster, and may enter it."""
    environ = {"RAY_ADDRESS": ray.get_runtime_context().gcs_address}
    environ |= {name: os.environ[name] for name in ("RAY_ADDRESS", "RAY_AUTH_MODE") if name in os.environ}
    return {"environ": environ, "nodes": [node._asdict() for node in read_nodes(ray.nodes())]}


if __name__ == "__main__":
    hold(int(sys.argv[1]))
