"""What can go wrong between a client and the replay server. Every one ends the call that met it."""


class ReplayError(RuntimeError):
    """The replay path failed; the subclasses say how."""


class ReplayUnavailable(ReplayError):
    """The server is gone, was never there, or no longer answers."""


class ReplayTimeout(ReplayError):
    """The server is there, but nothing was confirmed or nothing arrived for as long as the caller allows."""


class ReplayMismatch(ReplayError):
    """Another server answers on this address: its tables are not this run's, or it was restarted."""


class ReplayStopped(ReplayError):
    """The caller asked to stop while waiting."""


class ReplayExhausted(ReplayError):
    """Every window of `max_windows` was handed out."""
