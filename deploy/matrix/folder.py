"""A matrix's folder: which of its runs it holds, and what it may become.

    OUT/matrix.yaml
    OUT/<env>-c<collector depth>-s<seed>/                     a run with all learners
    OUT/<env>-c<collector depth>-s<seed>-d<learner depth>/    a learner that was added when that run was done

The folder can be moved: a run counts as done wherever its stream lay before.
"""

import json
import time
from pathlib import Path

from deploy.matrix.expand import MatrixConfig, MatrixRun, expand, fed_run, load_matrix
from deploy.run.run_dir import read_status
from shared.config import Experiment
from shared.config_file import load_experiment
from shared.errors import ConfigError
from shared.stream.format import MANIFEST

MATRIX = "matrix.yaml"
STREAM = "stream"  # where a run keeps what it records
SILENT_S = 60.0  # a run that goes on writes its status every few seconds


def runs_in(matrix: MatrixConfig, out: Path) -> list[MatrixRun]:
    """Every run that `matrix` consists of in `out`, in the matrix's order.

    Those of `expand(matrix)`; where such a run is done with fewer learners it stays as it is, and each missing
    learner follows it as a run of its own, fed from its stream.
    """
    return [run for whole in expand(matrix) for run in _as_held(whole, out)]


def _as_held(whole: MatrixRun, out: Path) -> list[MatrixRun]:
    held, learners = _finished(out / whole.name), whole.experiment.learners
    if held is None:
        return [whole]
    kept = {name: learner for name, learner in learners.items() if name in held.learners}
    done = whole._replace(experiment=whole.experiment.model_copy(update={"learners": kept}))
    if held != done.experiment:
        return [whole]
    missing = [learner.depth for name, learner in learners.items() if name not in kept]
    return [done, *(fed_run(whole, depth, out.absolute() / whole.name / STREAM) for depth in missing)]


def is_done(run_dir: Path, run: MatrixRun) -> bool:
    """Whether `run_dir` holds this very run, finished."""
    held = _finished(run_dir)
    return held is not None and _without_place(held) == _without_place(run.experiment)


def is_begun(run_dir: Path, run: MatrixRun) -> bool:
    """Whether `run_dir` holds this very run, so that it can go on."""
    return _held(run_dir) == run.experiment


def _finished(run_dir: Path) -> Experiment | None:
    """What a finished run did; none where there is no such run."""
    return _held(run_dir) if read_status(run_dir).get("state") == "done" else None


def _held(run_dir: Path) -> Experiment | None:
    try:
        return load_experiment(run_dir / "config.yaml")
    except ConfigError:  # not there, or cut short, or of another version
        return None


def progress(run_dir: Path) -> str:
    """How far a run came that is not done, for a person."""
    path = run_dir / "status.json"
    try:
        status = json.loads(path.read_text())
        silent = time.time() - path.stat().st_mtime
        updates = min(status["updates"].values()) / status["updates_planned"]
        share = f"{50 * (status['env_steps'] / status['budget'] + updates):.0f} %"
        state, reason = status["state"], status["reason"]
    except (OSError, ValueError, KeyError):  # not there, or cut short
        return "not started"
    if state == "running":
        return f"running, {share}" if silent < SILENT_S else f"stopped without a word at {share}"
    if state == "done":
        return "done with another configuration"
    return f"{state} at {share}: {reason}" if reason else f"{state} at {share}"


def _without_place(experiment: Experiment) -> Experiment:
    """A stream is named by its run, not by where the matrix's folder lies."""
    if experiment.stream is None:
        return experiment
    return experiment.model_copy(update={"stream": "/".join(Path(experiment.stream).parts[-2:])})


def check_out(out: Path, matrix: MatrixConfig) -> None:
    """Raises ConfigError where `out` holds anything but this matrix or a part of it, or cannot be grown to it."""
    if not (out / MATRIX).exists():
        if out.exists() and any(out.iterdir() if out.is_dir() else [out]):
            raise ConfigError(f"--out: {out} is not empty and holds no matrix; name another folder")
        return
    _check_same(load_matrix(out / MATRIX), matrix, out)
    for run in runs_in(matrix, out):
        if run.fed and not is_done(out / run.name, run):
            _check_stream(run, recorded=bool(matrix.experiment.get("record")))


def _check_same(before: MatrixConfig, now: MatrixConfig, out: Path) -> None:
    """Axes may have grown; all else is as it was, or cells would not be comparable."""
    if before.experiment != now.experiment:
        raise ConfigError(f"--out: {out} holds a matrix with other experiment; name another folder")
    for axis in ("envs", "collector_depths", "learner_depths", "seeds"):
        gone = [value for value in getattr(before, axis) if value not in getattr(now, axis)]
        if gone:
            raise ConfigError(f"--out: {out} holds a matrix with {axis} {gone[0]}, too; name another folder")
    for env in before.envs:
        if before.evaluation_envs.get(env) != now.evaluation_envs.get(env):
            raise ConfigError(f"--out: {out} holds a matrix with other evaluation_envs; name another folder")


def _check_stream(run: MatrixRun, recorded: bool) -> None:
    """That there is one; `fathom run` verifies it. Raises ConfigError."""
    stream = Path(str(run.experiment.stream))
    if not (stream / MANIFEST).exists():
        remedy = f"put {STREAM}/ back" if recorded else "set experiment.record: true before the first run"
        raise ConfigError(
            f"learner_depths: {run.learner_depths[0]} was added, but {stream.parent} kept no stream; "
            f"{remedy}, or name another --out"
        )
