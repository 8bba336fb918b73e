"""Options of the command line for the keys of an experiment, such as `--learners.deep.depth 64`.

tyro parses the options. Every value is then read as in a YAML file, so that a mistake gives the same message.
"""

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import NoneType
from typing import Annotated, Any, get_args, get_origin

import tyro
import yaml
from pydantic import BaseModel

from deploy.cli.options import parse_options
from shared import strict_yaml
from shared.config import Experiment
from shared.config_file import RENAMED, parse_experiment, printable
from shared.errors import ConfigError

Section = BaseModel | dict[str, BaseModel]


class _Present(str):
    """Text of a key's present value: the default of an option, by which an option that was not given is told."""


def override(experiment: Experiment, options: Sequence[str], path: Path) -> Experiment:
    """Returns `experiment` with the changes in `options`. Raises ConfigError that names the option or the field."""
    for option in options:
        if option.startswith("--learners."):
            experiment.learner(option.split(".")[1].split("=")[0])
    command = f"fathom run {path}"
    parsed, unknown = parse_options(
        lambda: tyro.cli(_mirror(experiment), args=list(options), prog=command, return_unknown_args=True)
    )
    for option in unknown:
        renamed = [new for old, new in RENAMED.items() if option.startswith(f"--{old}")]
        known = f"is now called --{renamed[0]}; use that name" if renamed else ""
        raise ConfigError(f"{printable(option)}: {known or f'no such option; `{command} --help` lists them'}")
    return parse_experiment(_values(parsed, experiment), prefix="--")


def _entries(section: Section) -> Iterator[tuple[str, Any, Any]]:
    """Yields each key with its field (none for a learner's name) and its present value."""
    if isinstance(section, dict):
        yield from ((name, None, member) for name, member in section.items())
    else:
        yield from ((name, info, getattr(section, name)) for name, info in type(section).model_fields.items())


def _mirror(section: Section) -> type:
    """Makes a dataclass of the section's keys: an option is a text with the present value as its default."""
    fields: list[tuple[str, Any, Any]] = []
    for number, (name, info, value) in enumerate(_entries(section)):
        field = f"field_{number}"  # a learner's name may be no name for Python, such as `very-deep` or `class`
        if isinstance(value, BaseModel) or name == "learners":
            mirror = _mirror(value)
            inner = dataclasses.field(default_factory=mirror)
            fields.append((field, Annotated[mirror, tyro.conf.arg(name=name)], inner))
        else:
            option = tyro.conf.arg(name=name, help=info.description or "", metavar=_metavar(info.annotation))
            fields.append((field, Annotated[str, option], _text(value)))
    return dataclasses.make_dataclass(type(section).__name__, fields)


def _metavar(annotation: Any) -> str:
    """Returns the form of a value for the help: INT, FLOAT, or the choices."""
    if get_origin(annotation) is dict:
        return "{KEY: VALUE}"
    if get_origin(annotation) is tuple:
        return "[NAME, ...]"
    return "|".join(str(getattr(kind, "__name__", kind)).upper() for kind in _kinds(annotation))


def _kinds(annotation: Any) -> list[Any]:
    """Returns the types or choices that a value may have, except none."""
    if get_origin(annotation) is Annotated:
        return _kinds(get_args(annotation)[0])
    return [kind for part in get_args(annotation) for kind in _kinds(part) if kind is not NoneType] or [annotation]


def _text(value: Any) -> _Present:
    if isinstance(value, tuple):
        value = f"[{', '.join(value)}]"  # as it is given
    return _Present("none" if value is None else value)


def _values(parsed: Any, section: Section, within: str = "") -> dict[str, Any]:
    """Returns given options as YAML would read them, and the section's own values of the others.

    Defaults are left out: some depend on other keys, such as the discount on the objective.
    """
    values: dict[str, Any] = {}
    for field, (name, info, present) in zip(dataclasses.fields(parsed), _entries(section), strict=True):
        given = getattr(parsed, field.name)
        if dataclasses.is_dataclass(given):
            values[name] = _values(given, present, f"{within}{name}.")
        elif isinstance(given, _Present):
            if info is None or name in section.model_fields_set:  # type: ignore[union-attr]
                values[name] = present
        else:
            is_list = get_origin(info.annotation) is tuple if info else False
            is_text = not isinstance(present, dict) and not is_list and str in _kinds(info.annotation)
            values[name] = _read(given, is_text, within + name)
    return values


def _read(text: str, is_text: bool, field: str) -> Any:
    """Returns the value of an option. Raises ConfigError that names the option."""
    if text == "none" or is_text:
        return None if text == "none" else text
    try:
        return strict_yaml.load(text)
    except strict_yaml.OtherNotation as error:
        raise ConfigError(f"--{field}: {strict_yaml.explain(error)[0]}") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"--{field}: {text!r:.60} is no value ({strict_yaml.explain(error)[0]})") from error
