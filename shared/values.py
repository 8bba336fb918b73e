"""Types of the values of an experiment's keys.

Limits far beyond any use keep later arithmetic finite and later lists small enough for the memory.
"""

from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from shared.strict_yaml import DECIMAL


class Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)

    def __hash__(self) -> int:  # a dict among the values has none
        return hash(self.model_dump_json())


def _number(value: Any) -> Any:
    """Refuses `true`, which is a number in Python, and texts that are not decimal numbers, such as `010`."""
    if isinstance(value, bool):
        raise ValueError(f"input should be a number, got {value}")
    if isinstance(value, str):
        if not DECIMAL.fullmatch(value):
            raise ValueError(f"input should be a valid number, written in decimal digits, got {value!r:.80}")
        return float(value)
    return value


def _whole(value: Any) -> Any:
    """Accepts 1e8, which YAML reads as a text, and 1.0e+8, which it reads as a float, as whole numbers."""
    if isinstance(value, str):
        if not DECIMAL.fullmatch(value):
            raise ValueError(f"input should be a valid integer, written in decimal digits, got {value!r:.80}")
        value = float(value) if set(value) & set(".eE") else int(value)
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
ObjectiveId = Annotated[str, Field(min_length=1, max_length=200)]
