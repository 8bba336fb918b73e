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

from shared import strict_yaml
from shared.config import Experiment
from shared.config_file import RENAMED, parse_experiment, printable
from shared.errors import ConfigError


def override(experiment: Experiment, options: Sequence[str], path: Path) -> Experiment:
    """`experiment` changed by `options`. Raises ConfigError that names the option or the field."""
    for option in options:
        if option.startswith("--learners."):
            experiment.learner(option.split(".")[1].split("=")[0])
    command = f"fathom run {path}"
    parsed: Any
    parsed, unknown = tyro.cli(_mirror(experiment), args=list(options), prog=command, return_unknown_args=True)
    if unknown:
        raise ConfigError(f"{printable(unknown[0])}: {_explain_unknown_option(unknown[0], command)}")
    return parse_experiment(_values(parsed, experiment), prefix="--")


def _explain_unknown_option(option: str, command: str) -> str:
    for old, new in RENAMED.items():
        if option.startswith(f"--{old}"):
            return f"is now called --{new}; use that name"
    return f"no such option; `{command} --help` lists them"


def _mirror(model: BaseModel) -> type:
    """A dataclass of `model`'s keys, each option a text with the present value as its default."""
    fields: list[tuple[str, Any, Any]] = []
    for name, info in type(model).model_fields.items():
        value = getattr(model, name)
        if isinstance(value, BaseModel):
            fields.append(_section(name, _mirror(value)))
        elif isinstance(value, dict) and not _is_text(info.annotation):
            # A learner may have a name that no field of Python's can have, such as `very-deep`, or `class`.
            members = [
                _section(f"member_{number}", Annotated[_mirror(member), tyro.conf.arg(name=key)])
                for number, (key, member) in enumerate(value.items())
            ]
            fields.append(_section(name, dataclasses.make_dataclass(name, members)))
        else:
            option = tyro.conf.arg(help=info.description or "", metavar=_metavar(info.annotation))
            fields.append((name, Annotated[str, option], _text(value)))
    return dataclasses.make_dataclass(type(model).__name__, fields)


def _is_text(annotation: Any) -> bool:
    """Whether a mapping holds no sections, and so is one option: `{key: value}`."""
    return get_origin(get_args(annotation)[1]) is Annotated


def _section(name: str, mirror: Any) -> tuple[str, Any, Any]:
    make = get_args(mirror)[0] if get_origin(mirror) is Annotated else mirror
    return name, mirror, dataclasses.field(default_factory=make)


def _metavar(annotation: Any) -> str:
    """What a value looks like: INT, FLOAT, or the choices."""
    if get_origin(annotation) is dict:
        return "{KEY: VALUE}"
    return "|".join(str(getattr(kind, "__name__", kind)).upper() for kind in _kinds(annotation))


def _kinds(annotation: Any) -> list[Any]:
    """Types, or choices, that a value may have besides none."""
    parts = [part for part in get_args(annotation) if part is not type(None)] or [annotation]
    return [get_args(part)[0] if get_origin(part) is Annotated else part for part in parts]


def _text(value: Any) -> str:
    return "none" if value is None else str(value)


def _values(parsed: Any, model: BaseModel, within: str = "") -> dict[str, Any]:
    """The options given as YAML would have read them; what was not given is the `model`'s own."""
    values: dict[str, Any] = {}
    for name, info in type(model).model_fields.items():
        given, present, path = getattr(parsed, name), getattr(model, name), within + name
        if isinstance(present, BaseModel):
            values[name] = _values(given, present, path + ".")
        elif dataclasses.is_dataclass(given):
            members = zip(dataclasses.fields(given), present.items(), strict=True)
            values[name] = {
                key: _values(getattr(given, field.name), member, f"{path}.{key}.") for field, (key, member) in members
            }
        elif given == _text(present):
            values[name] = present
        else:
            values[name] = _read(given, not isinstance(present, dict) and str in _kinds(info.annotation), path)
    return values


def _read(text: str, is_text: bool, field: str) -> Any:
    """An option's value. Raises ConfigError that names the option."""
    if text == "none" or is_text:
        return None if text == "none" else text
    try:
        return strict_yaml.load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"--{field}: {text!r:.60} is no value ({strict_yaml.explain(error)[0]})") from error
