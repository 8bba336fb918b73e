"""Output of commands: one line for a mistake, a table or JSON for a result. Every value is printed as it is."""

import os
import sys
from functools import partial
from typing import IO, Any

from rich.console import Console
from rich.table import Table

from shared.config_file import printable
from shared.files import to_json

WIDTH_OF_A_LOG = 200


class _Console(Console):
    def on_broken_pipe(self) -> None:
        """Silences the output: the command goes on without a reader, such as a `head` that has ended."""
        silence(self.file)


# A console for values: brackets in file names are no markup, and `:x:` is no emoji.
printed_as_is = partial(_Console, markup=False, emoji=False, highlight=False)


def silence(file: IO[str]) -> None:
    """Directs `file` to the null device, also for what its buffer holds and what child processes write to it."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, file.fileno())
    os.close(null)


def complain(text: str, style: str = "red") -> None:
    """Prints one coloured line on standard error."""
    printed_as_is(stderr=True).print(f"fathom: {printable(text)}", style=style, soft_wrap=True)


def say(text: str) -> None:
    """Prints one line on standard output, however long it is."""
    make_console().print(text, soft_wrap=True)


def show(result: dict[str, Any], as_json: bool) -> None:
    """Prints a result: as JSON, or as a table of its `rows`, or of its names and values if it has no rows."""
    if as_json:
        say(to_json(result))
        return
    rows = result["rows"] if "rows" in result else [{"": name, "value": value} for name, value in result.items()]
    print_rows(rows)


def print_rows(rows: list[dict[str, Any]]) -> None:
    """Prints a table with a column for each key of the first row."""
    table = Table(box=None, pad_edge=False)
    for name in rows[0]:
        # Names that are cut short may look alike, so they are folded.
        table.add_column(name, justify="left" if isinstance(rows[0][name], str) else "right", overflow="fold")
    for row in rows:
        table.add_row(*(f"{value:,.4g}" if isinstance(value, float) else str(value) for value in row.values()))
    make_console().print(table)


def make_console() -> Console:
    """Returns a console on standard output, wide enough for a table if there is no terminal."""
    return printed_as_is(file=sys.stdout, width=None if sys.stdout.isatty() else WIDTH_OF_A_LOG)
