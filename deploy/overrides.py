"""An experiment's keys as command-line options: `--learners.deep.depth 64`.

tyro parses; every value then goes the same way as a YAML file's, so that a mistake reads the same.
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin

import tyro
import yaml
from pydantic import BaseModel

from shared.config import ConfigError, Experiment, parse_experiment


def override(experiment: Experiment, options: Sequence[str], path: Path) -> Experiment:
    """`experiment` changed by `options`. Raises ConfigError that names the option or the field."""
    for option in options:
        if option.startswith("--learners."):
            experiment.learner(option.split(".")[1].split("=")[0])
    command = f"fathom run {path}"
    parsed: Any
    parsed, unknown = tyro.cli(_mirror(experiment), args=list(options), prog=command, return_unknown_args=True)
    if unknown:
        raise ConfigError(f"{unknown[0]}: no such option; `{command} --help` lists them")
    return parse_experiment(_values(parsed), prefix="--")


def _mirror(model: BaseModel) -> type:
    """A dataclass of `model`'s keys, each option a text with the present value as its default."""
    fields: list[tuple[str, Any, Any]] = []
    for name, info in type(model).model_fields.items():
        value = getattr(model, name)
        if isinstance(value, BaseModel):
            fields.append(_section(name, _mirror(value)))
        elif isinstance(value, dict) and not _is_text(info.annotation):
            members = [_section(key, _mirror(member)) for key, member in value.items()]
            fields.append(_section(name, dataclasses.make_dataclass(name, members)))
        else:
            option = tyro.conf.arg(help=info.description or "", metavar=_metavar(info.annotation))
            fields.append((name, Annotated[str, option], _text(value)))
    return dataclasses.make_dataclass(type(model).__name__, fields)


def _is_text(annotation: Any) -> bool:
    """Whether a mapping holds no sections, and so is one option: `{key: value}`."""
    return get_origin(get_args(annotation)[1]) is Annotated


def _section(name: str, mirror: type) -> tuple[str, Any, Any]:
    return name, mirror, dataclasses.field(default_factory=mirror)


def _metavar(annotation: Any) -> str:
    """What a value looks like: INT, FLOAT, or the choices."""
    if get_origin(annotation) is dict:
        return "{KEY: VALUE}"
    parts = [part for part in get_args(annotation) if part is not type(None)] or [annotation]
    parts = [get_args(part)[0] if get_origin(part) is Annotated else part for part in parts]
    return "|".join(str(getattr(part, "__name__", part)).upper() for part in parts)


def _text(value: Any) -> str:
    return "none" if value is None else str(value)


def _values(parsed: Any) -> Any:
    """The mirror's texts as YAML would have read them."""
    if dataclasses.is_dataclass(parsed):
        return {field.name: _values(getattr(parsed, field.name)) for field in dataclasses.fields(parsed)}
    return None if parsed == "none" else yaml.safe_load(parsed)
