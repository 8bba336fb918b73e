"""What kinds of values an experiment's keys have.

Limits far beyond any use keep later arithmetic finite, and lists with an entry for each from filling the memory.
"""

from typing import Annotated, Any

from pydantic import BeforeValidator, Field


def _number(value: Any) -> Any:
    """`true` is a number to Python."""
    if isinstance(value, bool):
        raise ValueError(f"input should be a number, got {value}")
    return value


def _whole(value: Any) -> Any:
    """YAML reads 1e8 as a text and 1.0e+8 as a float; both are whole numbers here."""
    if isinstance(value, str) and not value.lstrip("+-").isdecimal():
        try:
            value = float(value)
        except ValueError:
            return value
    return int(value) if isinstance(value, float) and value.is_integer() else _number(value)


Whole = Annotated[int, BeforeValidator(_whole)]
PositiveInt = Annotated[Whole, Field(gt=0, le=10**12)]
Size = Annotated[Whole, Field(gt=0, le=10**6)]
Depth = Annotated[Whole, Field(le=2**14)]
Seed = Annotated[Whole, Field(ge=0, lt=2**32)]
Number = Annotated[float, BeforeValidator(_number), Field(ge=-1e9, le=1e9)]
NotNegative = Annotated[Number, Field(ge=0)]
PositiveFloat = Annotated[Number, Field(gt=0)]
CONTROL = r"\x00-\x1f\x7f"
Text = Annotated[str, Field(pattern=rf"^[^{CONTROL}]{{1,4096}}$")]
EnvId = Annotated[str, Field(min_length=1, max_length=200)]
