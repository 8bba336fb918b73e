"""Errors that end a command. Each is one line that names what is wrong, where, and the remedy."""


class ConfigError(ValueError):
    """A mistake in what the user wrote: a file, a key, an option. Several mistakes are several lines."""


class RunFailed(RuntimeError):
    """A run that ended before its budget. The line names the role and the cause."""


class EnvironmentBroken(RunFailed):
    """An environment that yields too little to train on. The line names its id, the step, the entry, and the remedy."""
