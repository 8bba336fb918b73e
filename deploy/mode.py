"""Modes of a run: distributed, in one process, or there with joint updates."""

import os
from enum import StrEnum

from shared.config import Experiment
from shared.errors import ConfigError

DETERMINISTIC = "--xla_gpu_deterministic_ops=true"
"""Flag of XLA that leaves out operations whose results differ from run to run, and choices of programs by timing."""


class Mode(StrEnum):
    """A run resumes in the mode in which it began: results of modes differ, by rounding or by what is sampled."""

    DISTRIBUTED = "distributed"
    """Each role is a Ray actor, with a Reverb server between them."""
    IN_PROCESS = "in_process"
    """All roles share one process, and learners update side by side."""
    TOGETHER = "together"
    """All roles share one process, and learners of equal networks update as one computation."""

    @property
    def options(self) -> str:
        """The options of `fathom run` that choose the mode."""
        return {
            Mode.DISTRIBUTED: "neither --in-process nor --together",
            Mode.IN_PROCESS: "--in-process without --together",
            Mode.TOGETHER: "--in-process --together",
        }[self]


def check_mode(experiment: Experiment, mode: Mode, prefix: str = "") -> None:
    """Raises ConfigError, its key after `prefix`, if the experiment needs one process, and the mode is another."""
    if mode is not Mode.DISTRIBUTED:
        return
    if experiment.replay.same_batches:
        key, reason = "same_batches", "the replay server draws for each learner by itself, and takes no seed"
    elif experiment.replay.sampling != "uniform":
        key, reason = "sampling", "the replay server draws from all windows of a learner alike"
    else:
        return
    raise ConfigError(f"{prefix}replay.{key}: {reason}; add --in-process, or leave it out")


def make_deterministic(mode: Mode) -> None:
    """Has XLA compute deterministically on GPUs, in this process and those that it starts, before any computation.

    Raises ConfigError in a mode whose results differ anyway.
    """
    if mode is Mode.DISTRIBUTED:
        raise ConfigError(
            "--deterministic: the replay server's draws differ in every distributed run; add --in-process, "
            "or leave it out"
        )
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {DETERMINISTIC}".strip()


def choose_mode(in_process: bool, together: bool) -> Mode:
    """Returns the mode that the options choose. Raises ConfigError if they do not fit together."""
    if together and not in_process:
        raise ConfigError("--together: only learners in one process can update together; add --in-process")
    return Mode.TOGETHER if together else Mode.IN_PROCESS if in_process else Mode.DISTRIBUTED
