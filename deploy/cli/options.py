"""Options of several commands, with their errors; exit statuses."""

import re
from typing import Any

from shared.errors import ConfigError

EXIT_FAILED, EXIT_BAD_INPUT, EXIT_INTERRUPTED = 1, 2, 130


def folder_mode(text: str) -> int:
    """Returns the value of `--dir-mode`, three octal digits, as a number. Raises ConfigError."""
    if not re.fullmatch("[02]?7[0-7]{2}", text):
        raise ConfigError(
            f"--dir-mode: {text!r:.20} is not the mode of a folder that you can use; "
            "write three octal digits that begin with 7, such as 0750"
        )
    return int(text, 8)


def named_env(env_id: str) -> Any:
    """Returns the environment (a GoalEnv) of an `--env` option. Raises ConfigError."""
    from shared.envs.registry import make_env

    try:
        return make_env(env_id)
    except ValueError as error:
        raise ConfigError(f"--env: {error}") from error
