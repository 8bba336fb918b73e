"""Puts the faults into a copy of the project, one at a time, and prints the test that noticed each fault.

    .venv/bin/python tests/mutation/run.py [--only WORDS] [--revision REV] [--jobs N] [--out FILE]

Exits with status 1 if no test noticed a fault, or if a fault does not apply. `--revision` takes product and tests from
a commit, so that two test suites can be compared on the same faults.
"""

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from queue import SimpleQueue
from typing import NamedTuple

import psutil

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from tests.mutation.faults import FAULTS, Fault  # noqa: E402 - a script, run from anywhere

LIMIT_S = 900.0  # for all tests of one fault
_FAILED = re.compile(r"^(?:FAILED|ERROR) (.+?)(?: - .*)?$", re.MULTILINE)
_mtimes = count(int(time.time()))


class Outcome(NamedTuple):
    """Result for one fault. `noticed_by`: a test's id, "hung", "does not apply", or empty if no test noticed it."""

    fault: Fault
    noticed_by: str
    seconds: float

    @property
    def noticed(self) -> bool:
        return self.noticed_by not in ("", "does not apply")


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="", help="faults whose name contains this text")
    parser.add_argument("--revision", help="a commit whose product and tests are used; default: the working tree")
    parser.add_argument("--jobs", type=int, default=1, help="faults tried at a time")
    parser.add_argument("--out", type=Path, help="a file for the outcomes, as JSON")
    options = parser.parse_args(arguments)
    faults = [fault for fault in FAULTS if options.only in fault.name]
    with tempfile.TemporaryDirectory(prefix="fathom-faults-") as folder:
        copies: SimpleQueue[Path] = SimpleQueue()
        for job in range(options.jobs):
            copies.put(_copy(Path(folder) / str(job), options.revision))

        def try_in_a_copy(fault: Fault) -> Outcome:
            copy = copies.get()
            try:
                outcome = try_fault(fault, copy)
            finally:
                copies.put(copy)
            print(_line(outcome), flush=True)
            return outcome

        with ThreadPoolExecutor(options.jobs) as jobs:
            outcomes = list(jobs.map(try_in_a_copy, faults))
    if options.out:
        options.out.write_text(json.dumps([_as_json(outcome) for outcome in outcomes], indent=1) + "\n")
    noticed = sum(outcome.noticed for outcome in outcomes)
    print(f"{len(outcomes)} faults, {noticed} noticed, {len(outcomes) - noticed} not")
    return int(noticed < len(outcomes))


def try_fault(fault: Fault, copy: Path) -> Outcome:
    """Applies the fault to `copy`, runs the fault's tests there, and restores `copy`."""
    started = time.monotonic()
    path = copy / fault.file
    before = path.read_text(encoding="utf-8") if path.exists() else ""
    if before.count(fault.old) != 1:
        return Outcome(fault, "does not apply", 0.0)
    with _written(path, before, before.replace(fault.old, fault.new)):
        noticed_by = _run_tests(copy, fault.tests)
    return Outcome(fault, noticed_by, time.monotonic() - started)


@contextmanager
def _written(path: Path, before: str, after: str) -> Iterator[None]:
    """Writes `after` to `path`, and `before` when the context ends.

    Each version gets a new modification time: Python compiles a file again only if its size or this time, in seconds,
    has changed.
    """
    for_now = next(_mtimes)
    path.write_text(after, encoding="utf-8")
    os.utime(path, (for_now, for_now))
    try:
        yield
    finally:
        later = next(_mtimes)
        path.write_text(before, encoding="utf-8")
        os.utime(path, (later, later))


def _run_tests(copy: Path, tests: Sequence[str]) -> str:
    """Returns the id of the first test that fails; empty if all pass."""
    paths = [str(Path("tests") / test) for test in tests]
    command = [sys.executable, "-m", "pytest", "-x", "-p", "no:cacheprovider", "--durations=0", "-rfE", *paths]
    environ = os.environ | {"PYTHONPATH": str(copy)}  # comes before the installed project
    with tempfile.TemporaryFile("w+") as output:
        process = subprocess.Popen(
            command, cwd=copy, env=environ, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            status = process.wait(LIMIT_S)
        except subprocess.TimeoutExpired:
            return "hung"
        finally:
            _end(process)
        output.seek(0)
        printed = output.read()
    if status == 0:
        return ""
    failed = _FAILED.search(printed)
    if failed is None:
        raise RuntimeError(f"pytest ended with status {status} and names no test:\n{printed[-2000:]}")
    return failed[1]


def _end(process: subprocess.Popen[bytes]) -> None:
    """Kills pytest and its child processes if pytest still runs; the children of these processes end with them."""
    if process.poll() is None:
        for started in (*psutil.Process(process.pid).children(), process):
            started.kill()
        process.wait()


def _copy(folder: Path, revision: str | None) -> Path:
    """Copies the project at `revision`, or all files of the working tree that git tracks or does not ignore."""
    folder.mkdir()
    if revision is not None:
        archive = subprocess.run(["git", "archive", revision], cwd=ROOT, check=True, capture_output=True).stdout
        subprocess.run(["tar", "-x"], cwd=folder, input=archive, check=True)
        return folder
    listed = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    for name in subprocess.run(listed, cwd=ROOT, check=True, capture_output=True, text=True).stdout.splitlines():
        if (ROOT / name).exists():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name)
    return folder


def _line(outcome: Outcome) -> str:
    noticed_by = outcome.noticed_by or "NOT NOTICED"
    return f"{outcome.fault.name} | {outcome.fault.file} | {noticed_by} | {outcome.seconds:.0f} s"


def _as_json(outcome: Outcome) -> dict[str, object]:
    return {
        "fault": outcome.fault.name,
        "file": outcome.fault.file,
        "noticed_by": outcome.noticed_by,
        "seconds": round(outcome.seconds, 1),
    }


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
