"""Versioned weights on their way from the collector learner to the collectors."""

from typing import Any, NamedTuple


class Policy(NamedTuple):
    """An actor's parameters; `version` counts the updates that made them."""

    version: int
    params: Any


class ParamStore:
    """Holds the newest published policy, or a reference to it. Older versions never replace newer ones.

    Who made it takes it along when it dies: `clear` forgets it, so that the next life's may be older.
    """

    def __init__(self) -> None:
        self._newest: Policy | None = None

    def publish(self, policy: Policy) -> None:
        if self._newest is None or policy.version >= self._newest.version:
            self._newest = policy

    def clear(self) -> None:
        self._newest = None

    def newest(self, above: int = -1) -> Policy | None:
        """The newest policy; none while nothing newer than version `above` was published."""
        newest = self._newest
        return newest if newest is not None and newest.version > above else None
