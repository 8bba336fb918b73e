"""`fathom run` as a child process of a matrix, of the search, or of a benchmark."""

import os
import signal
import subprocess
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import yaml

from deploy.run.interrupt import GRACE_S, Interrupted
from deploy.scheduling.fork_server import python_program
from deploy.scheduling.packages import module_command
from shared.config import Experiment
from shared.files import replace_file

ERROR_PREFIX = "fathom: "  # of the line in which a failed command explains itself
STOP_GRACE_S = 60.0  # an interrupted run ends its own processes in order


class Child(NamedTuple):
    process: subprocess.Popen
    started: float
    """Monotonic time in seconds."""


@contextmanager
def all_ended() -> Iterator[dict[str, Child]]:
    """Children by name, of which the block keeps those that run; none of them outlasts the block.

    At its end they are interrupted, and killed if they do not end. A signal that ends the block goes to the children,
    which take snapshots where it leaves them time.
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


def log_file(run_dir: Path) -> Path:
    """The output of a run that `start_run` started, beside its folder."""
    return run_dir.with_name(f"{run_dir.name}.log")


def start_run(
    experiment: Experiment, run_dir: Path, options: Iterable[str], environ: Mapping[str, str]
) -> subprocess.Popen:
    """Starts a run in a session of its own. Its experiment is written beside `run_dir`, its output to `log_file`.

    Args:
        options: further options of `fathom run`.
        environ: environment variables that are added to this process's, or replace them.
    """
    path = run_dir.with_name(f"{run_dir.name}.yaml")
    replace_file(path, yaml.safe_dump(experiment.model_dump(mode="json"), sort_keys=False))
    command = module_command(
        "deploy.cli", "run", str(path), "--run-dir", str(run_dir), *options, python=python_program()
    )
    return start_command(command, run_dir, environ)


def start_command(command: Sequence[str], folder: Path, environ: Mapping[str, str]) -> subprocess.Popen:
    """Starts a command whose results go to `folder`, in a session of its own; its output goes to `log_file(folder)`."""
    with open(log_file(folder), "w", encoding="utf-8") as output:
        return subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
            env={**os.environ, **environ},
        )


def end_runs(runs: Iterable[subprocess.Popen], grace_s: float = STOP_GRACE_S, number: int = signal.SIGINT) -> None:
    """Sends a signal to the runs that are still going, and kills those that take longer than `grace_s`.

    `number`: the signal; SIGINT ends a run as Ctrl-C does.
    """
    running = [run for run in runs if run.poll() is None]
    for run in running:
        run.send_signal(number)
    deadline = time.monotonic() + grace_s
    for run in running:
        try:
            run.wait(max(deadline - time.monotonic(), 0.1))
        except subprocess.TimeoutExpired:
            os.killpg(run.pid, signal.SIGKILL)
            run.wait()


def why_failed(run_dir: Path, status: int) -> str:
    """Returns the last error line in a run's log, or else its exit status; empty if the run did not fail."""
    if status == 0:
        return ""
    lines = log_file(run_dir).read_text(errors="replace").splitlines()
    errors = [line for line in lines if line.startswith(ERROR_PREFIX)]
    return errors[-1].removeprefix(ERROR_PREFIX) if errors else f"exit status {status}"
