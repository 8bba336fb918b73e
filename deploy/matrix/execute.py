"""Carrying a matrix out: each run is a `fathom run` of its own, skipped where it is done."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import yaml

from deploy.matrix.config import MatrixConfig, MatrixRun, expand, load_matrix, write_matrix
from deploy.reaper import guarded
from shared.config import ConfigError, load_experiment

POLL_S = 0.2
STOP_GRACE_S = 60.0  # a run that is interrupted ends its own processes in order
MATRIX = "matrix.yaml"


class Outcome(NamedTuple):
    """`reason`: why a run failed; empty if it is done."""

    run: MatrixRun
    reason: str


def prepare_out(out: Path, matrix: MatrixConfig) -> Path:
    """The matrix's folder. Raises ConfigError where it holds anything but this matrix, or a part of it."""
    out = out.absolute()
    if not (out / MATRIX).exists():
        if out.exists() and any(out.iterdir() if out.is_dir() else [out]):
            raise ConfigError(f"--out: {out} is not empty and holds no matrix; name another folder")
    else:
        _check_same(load_matrix(out / MATRIX), matrix, out)
    out.mkdir(parents=True, exist_ok=True)
    write_matrix(matrix, out / MATRIX)
    return out


def _check_same(before: MatrixConfig, now: MatrixConfig, out: Path) -> None:
    """Axes may have grown, but for the learners': runs that are done have no room for more."""
    if (before.experiment, before.learner_depths) != (now.experiment, now.learner_depths):
        field = "experiment" if before.experiment != now.experiment else "learner_depths"
        raise ConfigError(f"--out: {out} holds a matrix with other {field}; name another folder")
    for axis in ("environments", "collector_depths", "seeds"):
        gone = set(getattr(before, axis)) - set(getattr(now, axis))
        if gone:
            raise ConfigError(f"--out: {out} holds a matrix with {axis} {gone.pop()}, too; name another folder")


def execute(
    matrix: MatrixConfig, out: Path, parallel: int, in_process: bool, say: Callable[[str], None]
) -> list[Outcome]:
    """Every run that is not done, up to `parallel` at once; a failed one does not stop the others.

    Returns all outcomes in the matrix's order. Leaves no process behind, also when it is interrupted.
    """
    runs = expand(matrix)
    outcomes: dict[str, Outcome] = {}
    waiting = []
    for run in runs:
        if is_done(out / run.name, run):
            outcomes[run.name] = Outcome(run, "")
            say(f"{run.name}: done before")
        else:
            waiting.append(run)
    with guarded(), _children() as children:
        while waiting or children:
            while waiting and len(children) < parallel:
                run = waiting.pop(0)
                say(f"{run.name}: started")
                children[run.name] = (run, _start(out, run, in_process), time.monotonic())
            for name, (run, child, started) in list(children.items()):
                if child.poll() is not None:
                    del children[name]
                    outcomes[name] = Outcome(run, _why_failed(out / name, child.returncode))
                    ending = outcomes[name].reason or "done"
                    say(f"{name}: {ending} after {time.monotonic() - started:.0f} s")
            time.sleep(POLL_S)
    return [outcomes[run.name] for run in runs]


def is_done(run_dir: Path, run: MatrixRun) -> bool:
    """Whether `run_dir` holds this very run, finished."""
    try:
        state = json.loads((run_dir / "status.json").read_text())["state"]
        return state == "done" and load_experiment(run_dir / "config.yaml") == run.experiment
    except (OSError, ValueError, KeyError):  # not there, or cut short, or of another version
        return False


Children = dict[str, tuple[MatrixRun, subprocess.Popen, float]]


@contextmanager
def _children() -> Iterator[Children]:
    """Running children by name; whatever ends the matrix ends them in order."""
    children: Children = {}
    try:
        yield children
    finally:
        running = [child for _, child, _ in children.values()]
        for child in running:
            child.send_signal(signal.SIGINT)
        _wait(running)


def _wait(running: Sequence[subprocess.Popen]) -> None:
    deadline = time.monotonic() + STOP_GRACE_S
    for child in running:
        try:
            child.wait(max(deadline - time.monotonic(), 0.1))
        except subprocess.TimeoutExpired:
            os.killpg(child.pid, signal.SIGKILL)
            child.wait()


def _start(out: Path, run: MatrixRun, in_process: bool) -> subprocess.Popen:
    """`fathom run` in a session of its own, its output in a file beside the run's folder."""
    experiment = out / f"{run.name}.yaml"
    experiment.write_text(yaml.safe_dump(run.experiment.model_dump(mode="json"), sort_keys=False), encoding="utf-8")
    command = [sys.executable, "-m", "deploy.cli", "run", str(experiment), "--run-dir", str(out / run.name)]
    command += ["--overwrite"] + ["--in-process"] * in_process
    with open(out / f"{run.name}.log", "w", encoding="utf-8") as log:
        return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True)


def _why_failed(run_dir: Path, status: int) -> str:
    if status == 0:
        return ""
    try:
        reason = json.loads((run_dir / "status.json").read_text())["reason"]
    except (OSError, ValueError, KeyError):
        reason = ""
    return f"failed ({reason or f'exit status {status}'}; see {run_dir}.log)"
