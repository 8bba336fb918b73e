"""Where the figures of `fathom bench` go: to the console, into a file, beside those of another."""

import json
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from deploy.bench.saved import check_save, compare, describe_machine, differences, load, save
from deploy.cli.options import EXIT_FAILED
from deploy.cli.output import complain, print_rows, show
from deploy.replay.server.provision import ProvisionError
from shared.errors import ConfigError, RunFailed
from shared.replay.errors import ReplayError

Result = dict[str, Any]
Measure = Callable[[], Result]


class Outputs(NamedTuple):
    """Where a result goes besides the console; `as_json`: there as one object."""

    as_json: bool = False
    save: Path | None = None
    compare: Path | None = None


def measure_and_show(name: str, measure: Measure, outputs: Outputs) -> int:
    """Measures and shows, saves and compares what came out. Files that cannot serve are refused before, if possible."""
    signal.signal(signal.SIGINT, signal.default_int_handler)  # also where a shell made us ignore Ctrl-C
    if outputs.save:
        check_save(outputs.save)
    before = load(outputs.compare, name) if outputs.compare else None
    try:
        result = measure()
    except (RunFailed, ReplayError, ProvisionError) as error:  # one line each, with cause and remedy
        complain(str(error))
        return EXIT_FAILED
    if outputs.save is None and before is None:
        _show(result, outputs.as_json)
        return 0
    machine = describe_machine(result.get("device"))
    if outputs.save:
        save(outputs.save, name, machine, result)
    if outputs.compare is None or before is None:
        _show(result, outputs.as_json)
        return 0
    try:
        unlike = differences(outputs.compare, before["machine"], machine)
        rows = compare(outputs.compare, before["result"], result)
    except ConfigError:  # which must not cost the measurement
        _show(result, outputs.as_json)
        raise
    if outputs.as_json:
        print(json.dumps({**result, "compared": rows}))
    else:
        _show(result, as_json=False)
        print_rows(rows)
    if unlike:
        _warn(f"--compare: {outputs.compare} is from another machine: {'; '.join(unlike)}")
    return 0


def _show(result: Result, as_json: bool) -> None:
    """As `show`; a row of many figures is a column, and figures of the whole come below."""
    if as_json or "rows" not in result:
        show(result, as_json)
        return
    (first, *names), rows = result["rows"][0], result["rows"]
    print_rows([{first: name} | {str(row[first]): row[name] for row in rows} for name in names])
    whole = {name: value for name, value in result.items() if name not in ("rows", "details")}
    if whole:
        show(whole, as_json=False)


def _warn(text: str) -> None:
    print(f"fathom: {text}", file=sys.stderr)
