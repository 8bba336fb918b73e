"""The ways to run a run's roles."""

from enum import StrEnum

from shared.errors import ConfigError


class Mode(StrEnum):
    """A run goes on in the mode that it began in: another one's results differ, by rounding or by what is sampled."""

    DISTRIBUTED = "distributed"
    """Each role an actor of Ray's, with a Reverb server between them."""
    IN_PROCESS = "in_process"
    """All in one process, learners side by side."""
    TOGETHER = "together"
    """All in one process, learners of equal networks as one computation."""

    @property
    def options(self) -> str:
        """What has to be said to get it."""
        return {
            Mode.DISTRIBUTED: "neither --in-process nor --together",
            Mode.IN_PROCESS: "--in-process without --together",
            Mode.TOGETHER: "--in-process --together",
        }[self]


def choose_mode(in_process: bool, together: bool) -> Mode:
    """The options' meaning. Raises ConfigError where they do not fit together."""
    if together and not in_process:
        raise ConfigError("--together: only learners in one process can update together; add --in-process")
    return Mode.TOGETHER if together else Mode.IN_PROCESS if in_process else Mode.DISTRIBUTED
