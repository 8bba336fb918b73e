"""Configuration files: YAML to `Experiment`, and one line for each mistake in them."""

from collections.abc import Mapping
from pathlib import Path

import yaml
from pydantic import BaseModel, ValidationError

from shared import strict_yaml
from shared.config import Experiment, LearnerConfig
from shared.errors import ConfigError

RENAMED = {
    "collector.resources": "collector.learner_resources",
    "collector.actor_resources": "collector.collector_resources",
    "environments": "envs",
    "evaluation_environments": "evaluation_envs",
}
"""Keys of older versions, and what they are called now."""
SHOWN_CHARS = 80  # of a mistaken value in its message


def load_experiment(path: Path) -> Experiment:
    """The experiment in a YAML file. Raises ConfigError, a line for each mistake."""
    loaded = {key: value for key, value in read_yaml(path, "experiment", "env").items() if key != "provenance"}
    return parse_experiment(loaded, prefix=f"{path}: ")  # provenance is of a run's config.yaml


def read_yaml(path: Path, what: str, key: str) -> Mapping:
    """The mapping in a YAML file: of a `what`, which needs at least `key`. Raises ConfigError."""
    try:
        loaded = strict_yaml.load(strict_yaml.read_text(Path(path)))
    except (OSError, UnicodeDecodeError) as error:
        cause = error.strerror if isinstance(error, OSError) else "not UTF-8"
        raise ConfigError(f"{path}: cannot be read ({cause}); name the {what}'s YAML file") from error
    except yaml.YAMLError as error:
        problem, line = strict_yaml.explain(error)
        where = f", line {line}" if line else ""
        raise ConfigError(f"{path}{where}: not valid YAML ({printable(problem)})") from error
    if not isinstance(loaded, Mapping):
        raise ConfigError(f"{path}: holds no {what}; it needs at least the key {key}")
    return loaded


def parse_experiment(values: Mapping, prefix: str = "") -> Experiment:
    """`values` as an Experiment. Raises ConfigError, a line for each mistake, each naming its field."""
    try:
        return Experiment.model_validate(dict(values))
    except ValidationError as error:
        raise ConfigError("\n".join(prefix + line for line in explain(error))) from error


def explain(error: ValidationError, model: type[BaseModel] = Experiment) -> list[str]:
    """One line for each mistake: the field, what is wrong, and what was given."""
    lines = []
    for mistake in error.errors():
        field = ".".join(_short(str(part)) for part in mistake["loc"])
        message = mistake["msg"].removeprefix("Value error, ")
        if mistake["type"] == "extra_forbidden":
            message = _explain_unknown_key(mistake["loc"], model)
        elif mistake["type"] == "missing":
            message = "is required"
        elif mistake["type"] != "value_error":
            message = f"{message[0].lower()}{message[1:]}, got {_short(repr(mistake['input']))}"
        lines.append(printable(f"{field}: {message}" if field else message))
    return lines


def _short(text: str) -> str:
    return text if len(text) <= SHOWN_CHARS else text[:SHOWN_CHARS] + "..."


def printable(text: str) -> str:
    """One line that a terminal shows as it is, whatever a file's names and values hold."""
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in text)


def _explain_unknown_key(location: tuple[int | str, ...], model: type[BaseModel]) -> str:
    """Returns the new name of a renamed key, or the keys of `model` that exist where `location` ends."""
    new_name = RENAMED.get(".".join(map(str, location)))
    if new_name and _has_key(model, new_name):
        return f"is now called {new_name}; use that name"
    if location[0] == "learners" and len(location) > 1:
        model, location = LearnerConfig, location[2:]
    for part in location[:-1]:
        model = model.model_fields[str(part)].annotation  # type: ignore[assignment]
    return "unknown key; known here: " + ", ".join(model.model_fields)


def _has_key(model: type[BaseModel], key: str) -> bool:
    return key.split(".")[0] in model.model_fields
