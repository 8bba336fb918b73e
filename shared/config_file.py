"""Configuration files: YAML to `Experiment`, with one line for each mistake."""

from collections.abc import Mapping
from pathlib import Path

import yaml
from pydantic import BaseModel, ValidationError

from shared import strict_yaml
from shared.config import Experiment, LearnerConfig
from shared.errors import ConfigError
from shared.mistakes import describe, describe_unknown_key

RENAMED = {
    "collector.resources": "collector.learner_resources",
    "collector.actor_resources": "collector.collector_resources",
    "evaluation.env": "evaluation.envs",
    "environments": "envs",
    "evaluation_environments": "evaluation_envs",
}
"""New names of keys of older versions."""
MOST_BYTES = 2**18  # of a file: PyYAML reads some 100 kB a second


def load_experiment(path: Path) -> Experiment:
    """Returns the experiment in a YAML file. Raises ConfigError, a line for each mistake."""
    loaded = {key: value for key, value in read_yaml(path, "experiment", "env").items() if key != "provenance"}
    return parse_experiment(loaded, prefix=f"{path}: ")  # a run's config.yaml has its provenance, too


def read_yaml(path: Path, what: str, key: str) -> Mapping:
    """Returns the mapping in the YAML file of a `what`, which needs at least `key`. Raises ConfigError."""
    try:
        with open(path, "rb") as file:
            content = file.read(MOST_BYTES + 1)  # a device may have no end
        if len(content) > MOST_BYTES:
            raise yaml.YAMLError(f"more than {MOST_BYTES // 1024} kB")
        loaded = strict_yaml.load(content.decode("utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        cause = error.strerror if isinstance(error, OSError) else "not UTF-8"
        raise ConfigError(f"{path}: cannot be read ({cause}); name the {what}'s YAML file") from error
    except yaml.YAMLError as error:
        problem, line = strict_yaml.explain(error)
        where = f", line {line}" if line else ""
        notation = isinstance(error, strict_yaml.OtherNotation)
        reason = printable(problem) if notation else f"not valid YAML ({printable(problem)})"
        raise ConfigError(f"{path}{where}: {reason}") from error
    if not isinstance(loaded, Mapping):
        raise ConfigError(f"{path}: holds no {what}; it needs at least the key {key}")
    return loaded


def parse_experiment(values: Mapping, prefix: str = "") -> Experiment:
    """Returns `values` as an Experiment. Raises ConfigError: a line for each mistake, with its field."""
    try:
        return Experiment.model_validate(dict(values))
    except ValidationError as error:
        raise ConfigError("\n".join(prefix + line for line in explain(error))) from error


def explain(error: ValidationError, model: type[BaseModel] = Experiment) -> list[str]:
    """Returns a line for each mistake: the field, what is wrong, and the value."""
    lines = []
    for mistake in error.errors():
        if mistake["type"] == "default_factory_not_called":  # it needs a key that has a line already
            continue
        field, message = describe(mistake)
        if mistake["type"] == "extra_forbidden":
            message = _explain_unknown_key(mistake["loc"], model)
        lines.append(printable(f"{field}: {message}" if field else message))
    return lines


def printable(text: str) -> str:
    """Returns `text` as one line without control characters, which a file's names and values may hold."""
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in text)


def _explain_unknown_key(location: tuple[int | str, ...], model: type[BaseModel]) -> str:
    """Returns the new name of a renamed key, or the keys of `model` that exist where `location` ends."""
    new_name = RENAMED.get(".".join(map(str, location)))
    if new_name and new_name.split(".")[0] in model.model_fields:
        return f"is now called {new_name}; use that name"
    if location[0] == "learners" and len(location) > 1:
        model, location = LearnerConfig, location[2:]
    return describe_unknown_key(model, location)
