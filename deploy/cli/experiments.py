"""`fathom experiments`: the shipped experiments and matrices, which commands find by name."""

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

from deploy.cli.output import complain, print_rows
from shared.errors import ConfigError

FOLDER = Path(__file__).parents[1] / "experiments"
Kind = Literal["experiment", "matrix"]
COMMANDS: dict[Kind, str] = {"experiment": "fathom run", "matrix": "fathom matrix"}


class Shipped(NamedTuple):
    """A file in `FOLDER`. `description`: the comment in its first line."""

    path: Path
    kind: Kind
    description: str


@dataclass(frozen=True)
class Experiments:
    """List the shipped experiments and matrices, which `fathom run` and `fathom matrix` find by name."""

    def execute(self) -> int:
        for kind, command in COMMANDS.items():
            print_rows([{command: name, "": one.description} for name, one in shipped().items() if one.kind == kind])
        return 0


def shipped() -> dict[str, Shipped]:
    """Returns the shipped experiments and matrices by name."""
    found = {}
    for path in sorted(FOLDER.glob("*.yaml")):
        text = path.read_text(encoding="utf-8", errors="replace")
        kind: Kind = "matrix" if re.search("^envs:", text, re.MULTILINE) else "experiment"
        comment, *_ = re.findall(r"\A# *(.*)", text) or [""]
        found[path.stem] = Shipped(path, kind, comment)
    return found


def is_named(argument: str) -> bool:
    """Returns true if an argument of the command line names an experiment."""
    return argument.endswith((".yaml", ".yml")) or os.path.isfile(FOLDER / f"{argument}.yaml")


def find_file(given: Path, kind: Kind) -> Path:
    """Returns the file that `given` names: the user's own, with or without `.yaml`, or else a shipped one.

    Raises ConfigError that lists the shipped names if there is none.
    """
    known, name = shipped(), str(given)
    for own in (given, Path(f"{given}.yaml")):
        if os.path.exists(own) and not os.path.isdir(own):  # false also for what cannot be a path
            if name in known:
                complain(f"{name}: takes the file {own}, not the shipped {known[name].kind} of that name", "yellow")
            return own
    if name not in known:
        names = ", ".join(name for name, one in known.items() if one.kind == kind)
        raise ConfigError(f"{name}: no such file; name the {kind}'s YAML file, or a shipped one: {names}")
    if known[name].kind != kind:
        raise ConfigError(f"{name}: is a shipped {known[name].kind}; use: {COMMANDS[known[name].kind]} {name}")
    return known[name].path
