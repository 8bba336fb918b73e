"""Carrying a matrix out: each run is a `fathom run` of its own, skipped where it is done."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
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
STOP_GRACE_S = 60.0  # a run that is interrupted ends its own processes in order
LAST_WORD = "fathom: "  # how the line begins that says why a command failed
CLUSTER_LOST = "failed (the Ray cluster that the runs share died)"


class Outcome(NamedTuple):
    """`reason`: why a run failed; empty if it is done."""

    run: MatrixRun
    reason: str


def execute(
    matrix: MatrixConfig,
    out: Path,
    parallel: int | None,
    in_process: bool,
    say: Callable[[str], None],
    dir_mode: int = OWNER_ONLY,
) -> list[Outcome]:
    """Every run in `out` that is not done, as many at once as `may_start` lets; a failed one does not stop the others.

    Returns all outcomes in the matrix's order. Raises ConfigError before anything is started where Ray has no room
    for a run. Leaves no process behind, also when it is interrupted. `dir_mode`: of `out` and the runs' folders, where
    they are new.
    """
    runs = runs_in(matrix, out)
    outcomes: dict[str, Outcome] = {}
    waiting = []
    for run in runs:
        if is_done(out / run.name, run):
            outcomes[run.name] = Outcome(run, "")
            say(f"{run.name}: done before")
        else:
            waiting.append(run)
    with guarded(), open_capacity(waiting, parallel, in_process) as room, _children() as children:
        _keep(matrix, out, dir_mode)
        said = time.monotonic()
        while (waiting or children) and not room.lost:
            for run in tuple(waiting):
                if may_start(room.asked[run.name], [room.asked[name] for name in children], room.nodes, parallel):
                    waiting.remove(run)
                    say(f"{run.name}: started" + " on a recorded stream" * run.fed)
                    children[run.name] = (run, _start(out, run, in_process, dir_mode, room.environ), time.monotonic())
            for name, (run, child, started) in list(children.items()):
                if child.poll() is not None:
                    del children[name]
                    outcomes[name] = Outcome(run, _why_failed(out / f"{name}.log", child.returncode))
                    ending = outcomes[name].reason or "done"
                    say(f"{name}: {ending} after {time.monotonic() - started:.0f} s")
            if children and time.monotonic() - said > PROGRESS_EVERY_S:
                said = time.monotonic()
                for name in children:
                    say(f"{name}: {progress(out / name)}")
            time.sleep(POLL_S)
        for run in (*(run for run, _, _ in children.values()), *waiting):
            outcomes[run.name] = Outcome(run, CLUSTER_LOST)
            say(f"{run.name}: {CLUSTER_LOST}")
    return [outcomes[run.name] for run in runs]


def _keep(matrix: MatrixConfig, out: Path, dir_mode: int) -> None:
    """What `out` holds from now on."""
    try:
        make_folder(out, dir_mode)
        write_matrix(matrix, out / MATRIX)
    except OSError as error:
        raise ConfigError(f"--out: {out} cannot be written ({error.strerror}); name another folder") from error


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


def _start(out: Path, run: MatrixRun, in_process: bool, dir_mode: int, environ: Mapping[str, str]) -> subprocess.Popen:
    """`fathom run` in a session of its own, its output in a file beside the run's folder."""
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
    """Empty if it did not; a run's last word is the reason, unless it was killed."""
    if status == 0:
        return ""
    words = [line for line in log.read_text(errors="replace").splitlines() if line.startswith(LAST_WORD)]
    reason = words[-1].removeprefix(LAST_WORD) if words else f"exit status {status}"
    return f"failed ({reason}; see {log})"
