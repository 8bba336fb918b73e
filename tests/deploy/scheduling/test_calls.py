"""Every exception that Ray may raise for an answer, and what callers get in its place."""

import inspect

import pytest
import ray
from ray import exceptions
from ray.exceptions import RayError, RayTaskError

from deploy.scheduling.calls import CallError, CallFailed, NoAnswer, ProcessDied, get_answer
from shared.errors import RunFailed

DEATHS = {
    *("RayActorError", "ActorDiedError", "ActorUnavailableError", "OutOfMemoryError", "WorkerCrashedError"),
    *("NodeDiedError", "ObjectLostError", "ObjectFetchTimedOutError", "ObjectFreedError", "OwnerDiedError"),
    *("ObjectReconstructionFailedError", "ReferenceCountingAssertionError"),
}
ALL = [kind for _, kind in inspect.getmembers(exceptions, inspect.isclass) if issubclass(kind, RayError)]


def expected(kind: type[RayError]) -> type[Exception]:
    if kind.__name__ in DEATHS:
        return ProcessDied
    return {"GetTimeoutError": NoAnswer, "RayTaskError": CallFailed}.get(kind.__name__, RunFailed)


@pytest.mark.parametrize("kind", ALL, ids=lambda kind: kind.__name__)
def test_every_exception_of_ray_is_one_that_callers_know(kind: type[RayError], monkeypatch: pytest.MonkeyPatch) -> None:
    error = kind.__new__(kind)  # constructors differ
    Exception.__init__(error, "a text")
    if isinstance(error, RayTaskError):
        error.cause = ValueError("a cause")

    def get(reference: object, timeout: float) -> None:
        raise error

    monkeypatch.setattr(ray, "get", get)
    monkeypatch.setattr(kind, "__str__", lambda self: "a text\nand more")
    with pytest.raises((CallError, RunFailed)) as raised:
        get_answer(None, 1.0)
    assert raised.type is expected(kind)
    assert "\n" not in str(raised.value)


def test_the_death_of_an_actor_in_its_constructor_gives_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    text = "The actor died because of an error raised in its creation task\n  File x\nValueError: no such maze\n"
    monkeypatch.setattr(exceptions.ActorDiedError, "__str__", lambda self: text)

    def get(reference: object, timeout: float) -> None:
        raise exceptions.ActorDiedError

    monkeypatch.setattr(ray, "get", get)
    with pytest.raises(ProcessDied, match="could not be created: ValueError: no such maze"):
        get_answer(None, 1.0)
