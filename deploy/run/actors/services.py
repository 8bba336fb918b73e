"""Actors of the services: the replay server's process and the parameter store. Neither needs JAX."""

from collections.abc import Sequence
from pathlib import Path

import ray

from deploy.replay import exposure
from deploy.replay.server.process import ReplayServer, TableSpec
from deploy.replay.server.provision import reverb_python
from deploy.scheduling.processes import Process
from shared.params import ParamStore, Policy


class ReplayServerActor(Process):
    """Owns the Reverb server's process, which ends with this actor."""

    def __init__(self) -> None:
        self._server: ReplayServer | None = None

    def start(self, tables: Sequence[TableSpec], port: int | None, log_path: str) -> str:
        """Starts the server, in an environment that is built on first use, and returns its address."""
        self._server = ReplayServer(reverb_python(), Path(log_path), host=ray.util.get_node_ip_address())
        return self._server.start(tables, port)

    def exposure(self, address: str) -> str | None:
        """Returns a warning if public addresses reach the server, with the command that closes them; else None."""
        return exposure.warning(int(address.rpartition(":")[2]))

    def exit_reason(self) -> str | None:
        return self._server.exit_reason() if self._server else "the replay server was not started"

    def stop(self) -> None:
        if self._server:
            self._server.stop()


class ParamStoreActor(Process):
    """Holds a reference to the newest policy: `Policy(version, [ObjectRef])`."""

    def __init__(self) -> None:
        self._store = ParamStore()

    def publish(self, policy: Policy) -> None:
        self._store.publish(policy)

    def newest(self, above: int) -> Policy | None:
        return self._store.newest(above)

    def clear(self) -> None:
        self._store.clear()

    def empty(self) -> bool:
        """True before the first policy: after a restart of the store, or while the collector learner starts."""
        return self._store.newest() is None
