"""The actors that work for the roles: the replay server's keeper and the weights' store. Neither needs JAX."""

from collections.abc import Sequence
from pathlib import Path

import ray

from deploy.replay_server.provision import reverb_python
from deploy.replay_server.server import ReplayServer, TableSpec
from shared.params import ParamStore, Policy


class ReplayServerActor:
    """Owns the Reverb server's process: when this actor goes, the server goes with it."""

    def start(self, tables: Sequence[TableSpec], port: int | None, log_path: str) -> str:
        """Provisions the server's environment where needed, starts it, and returns its address."""
        self._server = ReplayServer(reverb_python(), Path(log_path), host=ray.util.get_node_ip_address())
        return self._server.start(tables, port)

    def exit_reason(self) -> str | None:
        return self._server.exit_reason()

    def stop(self) -> None:
        self._server.stop()


class ParamStoreActor:
    """The newest policy's reference: `Policy(version, [ObjectRef])`."""

    def __init__(self) -> None:
        self._store = ParamStore()

    def publish(self, policy: Policy) -> None:
        self._store.publish(policy)

    def newest(self, above: int) -> Policy | None:
        return self._store.newest(above)

    def exit_reason(self) -> None:
        """It lives as long as its process does."""
