"""Errors of the replay path. Each one ends the call that met it."""


class ReplayError(RuntimeError):
    """A failure of the replay path; subclasses name the cause."""


class ReplayUnavailable(ReplayError):
    """The server is gone, was never there, or no longer answers."""


class ReplayTimeout(ReplayError):
    """The server is there, but no confirmation or window arrived within the caller's time-out."""


class ReplayMismatch(ReplayError):
    """Another server answers at this address: it lacks this run's tables, or it was restarted."""


class ReplayStopped(ReplayError):
    """The caller asked to stop during a wait."""


class ReplayExhausted(ReplayError):
    """The sampler has returned all of its `max_windows` windows."""
