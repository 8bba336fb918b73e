"""Ray clusters: the connection of a driver to a cluster, and a process that holds a cluster for several drivers.

The holder is a process of its own because Ray ends every connected process without a message when its cluster dies.
"""

import json
import os
import secrets
import select
import signal
import socket
import sys
import textwrap
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any

import psutil
import ray
from ray.exceptions import RayError

from deploy.scheduling.fork_server import as_python
from deploy.scheduling.packages import package_importer
from deploy.scheduling.placement import read_nodes
from deploy.scheduling.reaper import guarded, is_alive, kill_marked, marked
from shared.disk import find_write_fault
from shared.errors import RunFailed

CONNECT_S = 10.0
LOOK_S = 5.0
GCS = "gcs_server"
SERVERS = (GCS, "raylet")  # without one of these, a cluster is dead
Servers = Mapping[str, psutil.Process]
"""Servers of a cluster that this process started, by name; empty if it is connected to another cluster."""
PASSED_ON = ("RAY_ADDRESS", "RAY_AUTH_MODE", "RAY_AUTH_TOKEN")  # variables by which other drivers enter a cluster
LONGEST_PATH = 43  # bytes of Ray's folder: its sockets' paths have 64 more, and an operating system allows 107 at most


@contextmanager
def cluster(
    object_store_bytes: int, namespace: str, say: Callable[[str], None] = lambda text: None
) -> Iterator[Servers]:
    """Connects to the cluster at RAY_ADDRESS, or to a new cluster on this machine, whose servers are yielded.

    Args:
        object_store_bytes: size of a new cluster's object store.
        namespace: Ray's namespace of the driver's actors.
        say: gets what the user should know.

    Raises:
        RunFailed: there is no cluster; the line has a remedy.
    """
    options = {
        "namespace": namespace,
        "log_to_driver": False,
        "logging_level": "CRITICAL",
        # Ray puts the driver's working directory first on the workers' path.
        "runtime_env": {"worker_process_setup_hook": package_importer()},
    }
    os.environ.setdefault("RAY_prestart_worker_first_driver", "0")  # of workers without a role
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # JAX_PLATFORMS keeps a role off the GPUs
    # JAX warns of any fork; Ray's children exec at once.
    warnings.filterwarnings("ignore", message=r"os\.fork\(\) was called", category=RuntimeWarning)
    handler = signal.getsignal(signal.SIGTERM)
    address = os.environ.get("RAY_ADDRESS", "local")
    try:
        if address in ("", "local"):
            _start(options | {"object_store_memory": object_store_bytes, "_temp_dir": _ray_folder(say)}, say)
        else:
            _connect(address, options)
    finally:
        signal.signal(signal.SIGTERM, handler)  # Ray's own handler would hide the signal from the run
    servers = {name: child for child in psutil.Process().children() if (name := child.name()) in SERVERS}
    try:
        yield servers
    finally:
        if answers(servers):
            ray.shutdown()


def find_dead(servers: Servers) -> str:
    """Returns the name of a server that has died; empty if none has. Ray says nothing of it for minutes."""
    return next((name for name, server in servers.items() if not is_alive(server)), "")


def answers(servers: Servers) -> bool:
    """Returns whether the cluster may be asked anything: without its GCS, Ray waits a minute and ends the process."""
    return GCS not in servers or is_alive(servers[GCS])


def _start(options: dict[str, Any], say: Callable[[str], None]) -> None:
    """Starts a cluster on this machine. A second try follows a failed one: Ray gives up after 30 s, too soon for a
    machine on which several programs start.
    """
    _make_token()
    for last in (False, True):
        with marked() as token:
            try:
                with as_python():
                    ray.init(address="local", include_dashboard=False, **options)
                return
            except Exception as error:  # Ray raises errors of many types, also plain ones
                ray.shutdown()
                kill_marked(token)
                reason = _in_one_line(error)
                if isinstance(error, OSError) and error.errno:
                    raise RunFailed(f"Ray did not start ({reason}); RAY_TMPDIR names another folder for it") from error
                if last:
                    raise RunFailed(
                        f"Ray did not start on this machine ({reason}); run again when fewer programs use the machine, "
                        "or name a running cluster by RAY_ADDRESS"
                    ) from error
        say(f"Ray did not start ({reason}); trying once more")


def _make_token() -> None:
    """Makes a token for a new cluster if Ray cannot write its own, which it keeps in the user's home."""
    path = Path(os.path.expanduser("~/.ray/auth_token"))
    named = {"RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"} & set(os.environ)
    if not named and not os.path.exists(path) and find_write_fault(path.parent):
        os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)


def _ray_folder(say: Callable[[str], None]) -> str:
    """Returns the folder for Ray's logs and sockets: Ray's own choice, or one that can be used. Raises RunFailed."""
    chosen = Path(os.environ.get("RAY_TMPDIR", os.environ.get("TMPDIR", "/tmp")), "ray").absolute()
    if not (fault := _find_fault(chosen)):
        return str(chosen)
    other = Path(f"/tmp/fathom-ray-{os.getuid()}")
    if _find_fault(other):
        raise RunFailed(
            f"RAY_TMPDIR: Ray needs a folder for its logs and sockets, and {chosen} {fault}; name a folder that you "
            f"can write, with at most {LONGEST_PATH - len('/ray')} characters"
        )
    say(f"Ray's logs and sockets are in {other}, because {chosen} {fault}; RAY_TMPDIR names another folder")
    return str(other)


def _find_fault(folder: Path) -> str:
    """Returns why Ray cannot use `folder`; empty if it can."""
    if len(os.fsencode(folder)) > LONGEST_PATH:
        return "is too long for the path of a socket"
    reason = find_write_fault(folder)
    return f"cannot be written ({reason})" if reason else ""


def _connect(address: str, options: dict[str, Any]) -> None:
    if "://" in address:
        raise RunFailed(
            f"RAY_ADDRESS: {address} is an address for clients outside the cluster, but a run belongs inside; on a "
            "node of the cluster use RAY_ADDRESS=auto or HOST:6379, from outside use "
            "`ray job submit --address http://HOST:8265`"
        )
    host, _, port = address.rpartition(":")
    try:
        if port.isdigit():  # Ray itself would retry for a quarter of an hour
            socket.create_connection((host.strip("[]"), int(port)), CONNECT_S).close()
        ray.init(address="auto", **options)
    except (OSError, ValueError, RuntimeError, RayError) as error:
        reason = _in_one_line(error.__cause__ or error)
        raise RunFailed(
            f"RAY_ADDRESS: no connection to a Ray cluster at {address} ({reason}); start one there with `ray start "
            "--head`, or unset RAY_ADDRESS to have one started here"
        ) from error


def _in_one_line(error: BaseException) -> str:
    """Returns an error's type and its text, of which a traceback is left out except for its end, the cause."""
    text = str(error).strip()
    if "Traceback" in text:
        text = text.splitlines()[-1]
    return textwrap.shorten(f"{type(error).__name__}: {text}", 250)


def hold(store_bytes: int) -> None:
    """Holds a cluster until standard input closes or the cluster dies.

    Prints one line of JSON: the cluster's `nodes`, and `environ`, by which other processes find and enter it; or the
    `error` that kept the cluster from starting.
    """
    output = sys.stdout
    with redirect_stdout(sys.stderr):
        try:
            with guarded(), cluster(store_bytes, namespace="fathom-matrix") as servers:
                environ = {"RAY_ADDRESS": ray.get_runtime_context().gcs_address}
                environ |= {name: os.environ[name] for name in PASSED_ON if name in os.environ}
                answer = {"environ": environ, "nodes": [node._asdict() for node in read_nodes(ray.nodes())]}
                print(json.dumps(answer), file=output, flush=True)
                while not select.select([sys.stdin], [], [], LOOK_S)[0]:  # nothing is ever written
                    if find_dead(servers):
                        os._exit(1)  # at exit, Ray would wait for the dead; the reaper ends the rest
                    if not ray.cluster_resources():  # every node is dead
                        return
        except Exception as error:  # noqa: BLE001 - the parent waits for an answer, whatever the error
            reason = f"{'' if isinstance(error, RunFailed) else f'Ray did not start: {type(error).__name__}: '}{error}"
            print(json.dumps({"error": " ".join(reason.split())}), file=output, flush=True)


if __name__ == "__main__":
    hold(int(sys.argv[1]))
