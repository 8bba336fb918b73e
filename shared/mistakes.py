"""Mistakes that pydantic finds in a user's values, in words."""

from collections.abc import Sequence

from pydantic import BaseModel
from pydantic_core import ErrorDetails

SHOWN_CHARS = 80  # of a wrong value, in its message


def describe(mistake: ErrorDetails) -> tuple[str, str]:
    """Returns the dotted key of a mistake, empty for one of the whole, and what is wrong with the value, and the value.

    Checks of our own name the value themselves.
    """
    field = ".".join(_short(str(part)) for part in mistake["loc"])
    message = mistake["msg"].removeprefix("Value error, ")
    if mistake["type"] == "missing":
        return field, "is required"
    if mistake["type"] == "value_error":
        return field, message
    return field, f"{message[0].lower()}{message[1:]}, got {_short(repr(mistake['input']))}"


def describe_unknown_key(model: type[BaseModel], location: Sequence[int | str]) -> str:
    """Returns the keys of `model` that exist where `location`, which ends with an unknown key, is."""
    for part in location[:-1]:
        model = model.model_fields[str(part)].annotation  # type: ignore[assignment]
    return "unknown key; known here: " + ", ".join(model.model_fields)


def _short(text: str) -> str:
    return text if len(text) <= SHOWN_CHARS else text[:SHOWN_CHARS] + "..."
