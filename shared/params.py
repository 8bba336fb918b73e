"""Versioned policies on their way from the collector learner to the collectors."""

from typing import Any, NamedTuple


class Policy(NamedTuple):
    """Parameters after `version` updates: an actor's, or with best-of-K acting an `ActorCritic`."""

    version: int
    params: Any


class ParamStore:
    """Store of the newest published policy, or of a reference to it. Older versions never replace newer ones.

    Weights die with the learner that published them. `clear` drops the reference, so that the learner's next
    incarnation may publish an older version.
    """

    def __init__(self) -> None:
        self._newest: Policy | None = None

    def publish(self, policy: Policy) -> None:
        if self._newest is None or policy.version >= self._newest.version:
            self._newest = policy

    def clear(self) -> None:
        self._newest = None

    def newest(self, above: int = -1) -> Policy | None:
        """Returns the newest policy; none if it is no newer than version `above`."""
        newest = self._newest
        return newest if newest is not None and newest.version > above else None
