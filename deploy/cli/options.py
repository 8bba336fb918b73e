"""Mistakes in command lines, options of several commands, with their errors; exit statuses."""

import io
import re
import sys
from collections.abc import Callable
from contextlib import redirect_stderr
from itertools import groupby
from typing import Any

from shared.config import EnvOptions
from shared.errors import ConfigError

EXIT_FAILED, EXIT_BAD_INPUT, EXIT_INTERRUPTED = 1, 2, 130


_STYLE = re.compile(r"\x1b\[[0-9;]*m")
_PYDANTICS = re.compile(r"\S*\.([a-z-]+): 1 validation error for \w+ (\w+) (.*?) \[type=.*")


def parse_options(parse: Callable[[], Any]) -> Any:
    """Returns what tyro's `parse()` returns. Raises ConfigError, one line, where tyro would print a box and exit."""
    printed = io.StringIO()
    try:
        with redirect_stderr(printed):
            parsed = parse()
    except SystemExit as error:
        if error.code:  # 0 after help
            raise ConfigError(_in_one_line(printed.getvalue())) from error
        raise
    sys.stderr.write(printed.getvalue())  # such as warnings
    return parsed


def _in_one_line(box: str) -> str:
    """Returns the mistake in a box that tyro prints, the values that are possible, and the command that prints help.

    Rules and empty lines separate the parts of a box. The first line is its title.
    """
    lines = [line.strip("│ ") for line in _STYLE.sub("", box).splitlines()[1:]]
    blocks = (" ".join(block) for is_text, block in groupby(lines, lambda line: line.strip("─-╰╯ ") != "") if is_text)
    mistake, *more = [*blocks] or [" ".join(box.split())]
    mistake = mistake.removeprefix("Error parsing ").removesuffix(" (required)").rstrip(".")
    if of_pydantic := _PYDANTICS.fullmatch(mistake):
        section, key, text = of_pydantic.groups()
        mistake = f"--{section}.{key.replace('_', '-')}: {text[0].lower()}{text[1:]}"
    possible = [part.removeprefix("Argument helptext: ") for part in more if part.startswith(("Argument", "Available"))]
    command = re.search("fathom[a-z -]*--help", " ".join(more))
    return "; ".join([mistake, *possible, f"`{command[0] if command else 'fathom --help'}` says more"])


def folder_mode(text: str) -> int:
    """Returns the value of `--dir-mode`, three octal digits, as a number. Raises ConfigError."""
    if not re.fullmatch("[02]?7[0-7]{2}", text):
        raise ConfigError(
            f"--dir-mode: {text!r:.20} is not the mode of a folder that you can use; "
            "write three octal digits that begin with 7, such as 0750"
        )
    return int(text, 8)


def named_env(env_id: str, options: EnvOptions = EnvOptions()) -> Any:  # noqa: B008 - frozen
    """Returns the environment (a GoalEnv) of an `--env` option. Raises ConfigError."""
    from shared.envs.registry import make_env

    try:
        return make_env(env_id, options)
    except ValueError as error:
        text = str(error)
        raise ConfigError(text if text.startswith("env_options.") else f"--env: {text}") from error
