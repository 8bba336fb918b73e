"""What commands print: one line for a mistake, a table or JSON for a result."""

import json
import sys
from typing import Any

from rich.console import Console
from rich.table import Table


def complain(text: str) -> None:
    """One red line on standard error."""
    Console(stderr=True, soft_wrap=True).print(f"fathom: {text}", style="red", highlight=False, markup=False)


def show(result: dict[str, Any], as_json: bool) -> None:
    """A result by name, or its `rows` where it has them."""
    if as_json:
        print(json.dumps(result))
        return
    rows = result["rows"] if "rows" in result else [{"": name, "value": value} for name, value in result.items()]
    print_rows(rows)


def print_rows(rows: list[dict[str, Any]]) -> None:
    table = Table(box=None, pad_edge=False)
    for name in rows[0]:
        table.add_column(name, justify="left" if isinstance(rows[0][name], str) else "right")
    for row in rows:
        table.add_row(*(f"{value:,.4g}" if isinstance(value, float) else str(value) for value in row.values()))
    make_console().print(table)


def make_console() -> Console:
    """Standard output; wide enough for a table where there is no terminal to ask."""
    return Console(file=sys.stdout, width=None if sys.stdout.isatty() else 200)
