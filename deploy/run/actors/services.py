"""The actors that work for the roles: the replay server's keeper and the weights' store. Neither needs JAX."""

from collections.abc import Sequence
from pathlib import Path

import ray

from deploy.replay import exposure as access
from deploy.replay.server.process import ReplayServer, TableSpec
from deploy.replay.server.provision import reverb_python
from deploy.scheduling.processes import Process
from shared.params import ParamStore, Policy


class ReplayServerActor(Process):
    """Owns the Reverb server's process: when this actor goes, the server goes with it."""

    def __init__(self) -> None:
        self._server: ReplayServer | None = None

    def start(self, tables: Sequence[TableSpec], port: int | None, log_path: str) -> str:
        """Provisions the server's environment where needed, starts it, and returns its address."""
        self._server = ReplayServer(reverb_python(), Path(log_path), host=ray.util.get_node_ip_address())
        return self._server.start(tables, port)

    def exposure(self, address: str) -> str | None:
        """Where others than this machine's own network can reach the server, and how to close that; none if nowhere."""
        return access.warning(int(address.rpartition(":")[2]))

    def exit_reason(self) -> str | None:
        return self._server.exit_reason() if self._server else "the replay server was not started"

    def stop(self) -> None:
        if self._server:
            self._server.stop()


class ParamStoreActor(Process):
    """The newest policy's reference: `Policy(version, [ObjectRef])`."""

    def __init__(self) -> None:
        self._store = ParamStore()

    def publish(self, policy: Policy) -> None:
        self._store.publish(policy)

    def newest(self, above: int) -> Policy | None:
        return self._store.newest(above)

    def clear(self) -> None:
        self._store.clear()

    def empty(self) -> bool:
        """It was made anew, or the learner that publishes is only starting."""
        return self._store.newest() is None
