"""Execution of a matrix: each run is a `fathom run` in a process of its own, and runs that are done are skipped."""

import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from deploy.matrix.capacity import may_start, open_capacity
from deploy.matrix.expand import MatrixConfig, MatrixRun, write_matrix
from deploy.matrix.folder import MATRIX, Agenda, progress
from deploy.run.child import STOP_GRACE_S, end_runs, log_file, start_run, why_failed
from deploy.run.interrupt import GRACE_S, Interrupted
from deploy.scheduling.reaper import guarded
from shared.errors import ConfigError
from shared.files import OWNER_ONLY, make_folder

POLL_S = 0.2
PROGRESS_EVERY_S = 30.0
CLUSTER_LOST = "failed (the Ray cluster that the runs share died)"


class Child(NamedTuple):
    process: subprocess.Popen
    started: float
    """Monotonic time in seconds."""


def execute(
    matrix: MatrixConfig,
    agenda: Agenda,
    out: Path,
    parallel: int | None,
    in_process: bool,
    say: Callable[[str], None],
    dir_mode: int = OWNER_ONLY,
) -> dict[str, str]:
    """Executes the runs in `out` that wait; a failed run does not stop the others.

    Runs execute at once as far as `may_start` allows. No process is left behind, also after an interrupt.
    Returns why each run that is not done then was kept or failed, by name.
    Raises ConfigError before any run starts: `out` cannot be written, or Ray is too small for a run.
    """
    failures, waiting = dict(agenda.kept), dict(agenda.waiting)
    for line in agenda.lines:
        say(line)
    with guarded(), open_capacity([*waiting.values()], parallel, in_process) as capacity, _children() as children:
        try:
            make_folder(out, dir_mode)
            write_matrix(matrix, out / MATRIX)
        except OSError as error:
            raise ConfigError(f"--out: {out} cannot be written ({error.strerror}); name another folder") from error
        reported = time.monotonic()
        while (waiting or children) and not capacity.lost:
            for name, run in list(waiting.items()):
                running = [capacity.demands[other] for other in children]
                if run.fed_by in {*waiting, *children}:
                    continue  # the stream is not complete
                if may_start(capacity.demands[name], running, capacity.nodes, parallel):
                    del waiting[name]
                    say(f"{name}: started" + " on a recorded stream" * run.fed)
                    option = "--overwrite" if name in agenda.replaced else "--resume-anyway"
                    process = _start(out, run, option, in_process, dir_mode, capacity.environ)
                    children[name] = Child(process, time.monotonic())
            for name, child in list(children.items()):
                if child.process.poll() is not None:
                    del children[name]
                    if reason := why_failed(out / name, child.process.returncode):
                        failures[name] = f"failed ({reason}; see {log_file(out / name)})"
                    say(f"{name}: {failures.get(name, 'done')} after {time.monotonic() - child.started:.0f} s")
            if children and time.monotonic() - reported > PROGRESS_EVERY_S:
                reported = time.monotonic()
                for name in children:
                    say(f"{name}: {progress(out / name)}")
            time.sleep(POLL_S)
        for name in (*children, *waiting):
            failures[name] = CLUSTER_LOST
            say(f"{name}: {CLUSTER_LOST}")
    return failures


@contextmanager
def _children() -> Iterator[dict[str, Child]]:
    """Running children by name. At the end, all that still run are interrupted, and killed if they do not end.

    A signal that ends the block goes to the children, which take snapshots where it leaves them time.
    """
    children: dict[str, Child] = {}
    number, grace_s = signal.SIGINT, STOP_GRACE_S
    try:
        yield children
    except Interrupted as error:
        number = signal.Signals(error.number)
        grace_s += GRACE_S.get(number, 0.0)
        raise
    finally:
        end_runs((child.process for child in children.values()), grace_s, number)


def _start(
    out: Path, run: MatrixRun, option: str, in_process: bool, dir_mode: int, environ: Mapping[str, str]
) -> subprocess.Popen:
    """Starts `fathom run`, which begins, resumes or replaces the run by `option`."""
    options = [option, "--dir-mode", f"{dir_mode:04o}", *["--in-process"] * in_process]
    group = os.environ.get("WANDB_RUN_GROUP", out.name)
    return start_run(run.experiment, out / run.name, options, {"WANDB_RUN_GROUP": group, **environ})
