"""Output of commands: one line for a mistake, a table or JSON for a result."""

import json
import sys
from typing import Any

from rich.console import Console
from rich.table import Table


def complain(text: str, style: str = "red") -> None:
    """Prints one coloured line on standard error."""
    Console(stderr=True, soft_wrap=True).print(f"fathom: {text}", style=style, highlight=False, markup=False)


def say(text: str) -> None:
    """Prints one line on standard output as it is."""
    make_console().print(text, highlight=False, markup=False, soft_wrap=True)


def show(result: dict[str, Any], as_json: bool) -> None:
    """Prints a result: as JSON, or as a table of its `rows`, or of its names and values if it has no rows."""
    if as_json:
        print(json.dumps(result))
        return
    rows = result["rows"] if "rows" in result else [{"": name, "value": value} for name, value in result.items()]
    print_rows(rows)


def print_rows(rows: list[dict[str, Any]]) -> None:
    """Prints a table with a column for each key of the first row."""
    table = Table(box=None, pad_edge=False)
    for name in rows[0]:
        table.add_column(name, justify="left" if isinstance(rows[0][name], str) else "right")
    for row in rows:
        table.add_row(*(f"{value:,.4g}" if isinstance(value, float) else str(value) for value in row.values()))
    make_console().print(table)


def make_console() -> Console:
    """Returns a console on standard output, wide enough for a table if there is no terminal."""
    return Console(file=sys.stdout, width=None if sys.stdout.isatty() else 200)
