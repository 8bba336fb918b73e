"""Execution of a matrix: each run is a `fathom run` in a process of its own, and runs that are done are skipped."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import yaml

from deploy.matrix.capacity import may_start, open_capacity
from deploy.matrix.expand import MatrixConfig, MatrixRun, write_matrix
from deploy.matrix.folder import MATRIX, is_begun, is_done, progress, runs_in
from deploy.scheduling.reaper import guarded
from shared.errors import ConfigError
from shared.files import OWNER_ONLY, make_folder

POLL_S = 0.2
PROGRESS_EVERY_S = 30.0
STOP_GRACE_S = 60.0  # an interrupted run ends its own processes in order
ERROR_PREFIX = "fathom: "  # of the line in which a failed command explains itself
CLUSTER_LOST = "failed (the Ray cluster that the runs share died)"


class Child(NamedTuple):
    process: subprocess.Popen
    started: float
    """Monotonic time in seconds."""


def execute(
    matrix: MatrixConfig,
    out: Path,
    parallel: int | None,
    in_process: bool,
    say: Callable[[str], None],
    dir_mode: int = OWNER_ONLY,
) -> dict[str, str]:
    """Executes every run in `out` that is not done; a failed run does not stop the others.

    Runs execute at once as far as `may_start` allows. No process is left behind, also after an interrupt.
    Returns why each run failed, by name in the matrix's order: an empty text for a run that is done.
    Raises ConfigError before any run starts: `out` cannot be written, or Ray is too small for a run.
    """
    runs = runs_in(matrix, out)
    failures = {run.name: "" for run in runs}
    waiting = {run.name: run for run in runs if not is_done(out / run.name, run)}
    for name in failures:
        if name not in waiting:
            say(f"{name}: done before")
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
                if may_start(capacity.demands[name], running, capacity.nodes, parallel):
                    del waiting[name]
                    say(f"{name}: started" + " on a recorded stream" * run.fed)
                    process = _start(out, run, in_process, dir_mode, capacity.environ)
                    children[name] = Child(process, time.monotonic())
            for name, child in list(children.items()):
                if child.process.poll() is not None:
                    del children[name]
                    failures[name] = _why_failed(out / f"{name}.log", child.process.returncode)
                    say(f"{name}: {failures[name] or 'done'} after {time.monotonic() - child.started:.0f} s")
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
    """Running children by name. At the end, all that still run are interrupted, and killed if they do not end."""
    children: dict[str, Child] = {}
    try:
        yield children
    finally:
        running = [child.process for child in children.values()]
        for process in running:
            process.send_signal(signal.SIGINT)
        deadline = time.monotonic() + STOP_GRACE_S
        for process in running:
            try:
                process.wait(max(deadline - time.monotonic(), 0.1))
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()


def _start(out: Path, run: MatrixRun, in_process: bool, dir_mode: int, environ: Mapping[str, str]) -> subprocess.Popen:
    """Starts `fathom run` in a session of its own; its output goes to a file beside the run's folder."""
    experiment = out / f"{run.name}.yaml"
    experiment.write_text(yaml.safe_dump(run.experiment.model_dump(mode="json"), sort_keys=False), encoding="utf-8")
    command = [sys.executable, "-m", "deploy.cli", "run", str(experiment), "--run-dir", str(out / run.name)]
    command += ["--resume" if is_begun(out / run.name, run) else "--overwrite"]
    command += ["--dir-mode", f"{dir_mode:04o}"] + ["--in-process"] * in_process
    with open(out / f"{run.name}.log", "w", encoding="utf-8") as log:
        return subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
            env={"WANDB_RUN_GROUP": out.name, **os.environ, **environ},
        )


def _why_failed(log: Path, status: int) -> str:
    """Returns the last error line in `log`, or else the exit status; empty if the run did not fail."""
    if status == 0:
        return ""
    errors = [line for line in log.read_text(errors="replace").splitlines() if line.startswith(ERROR_PREFIX)]
    reason = errors[-1].removeprefix(ERROR_PREFIX) if errors else f"exit status {status}"
    return f"failed ({reason}; see {log})"
