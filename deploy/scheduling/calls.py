"""Answers of Ray actors, with a deadline, and Ray's many exceptions as the few that callers decide about.

    GetTimeoutError                                      -> NoAnswer: the process may still answer
    RayTaskError                                         -> CallFailed: the method that was called raised an error
    RayActorError, OutOfMemoryError, WorkerCrashedError,
    NodeDiedError, ObjectLostError                       -> ProcessDied: a process or a node is gone
    every other RayError                                 -> RunFailed: the cluster is gone, or starts no processes

Callers restart what died, wait for what does not answer, and let RunFailed end the run.
"""

from typing import Any

import ray
from ray.exceptions import (
    GetTimeoutError,
    NodeDiedError,
    ObjectLostError,
    OutOfMemoryError,
    RayActorError,
    RayError,
    RayTaskError,
    WorkerCrashedError,
)

from shared.errors import RunFailed


class CallError(RuntimeError):
    """A call without an answer; subclasses name the cause."""


class NoAnswer(CallError):
    """No answer arrived in time."""


class CallFailed(CallError):
    """The method that was called raised an error, whose type and text are the message."""


class ProcessDied(CallError):
    """The process that should answer is gone. The message says why, as far as Ray knows."""


def get_answer(reference: Any, timeout_s: float) -> Any:
    """Returns the answer behind an object reference, or the answers behind a list of them.

    Raises NoAnswer after `timeout_s` seconds; CallFailed; ProcessDied; RunFailed if the cluster is gone.
    """
    try:
        return ray.get(reference, timeout=timeout_s)
    except GetTimeoutError as error:
        raise NoAnswer(f"no answer within {timeout_s:g} s") from error
    except RayTaskError as error:
        raise CallFailed(" ".join(f"{type(error.cause).__name__}: {error.cause}".split())) from error.cause
    except OutOfMemoryError as error:
        raise ProcessDied("Ray ended its process because the machine ran out of memory") from error
    except (RayActorError, WorkerCrashedError, NodeDiedError, ObjectLostError) as error:
        raise ProcessDied(_describe_death(str(error))) from error
    except RayError as error:
        first_line = str(error).strip().partition("\n")[0]
        raise RunFailed(f"Ray failed ({type(error).__name__}: {first_line}); run again with --resume") from error


def _describe_death(text: str) -> str:
    if "creation task" in text:  # its constructor raised an error, which is the last line of a traceback
        return f"it could not be created: {text.strip().splitlines()[-1].strip()}"
    return "its process ended unexpectedly (killed, crashed, or out of memory)"
