"""Folder of a matrix: the runs that it holds, and the matrices that it may grow to.

    OUT/matrix.yaml
    OUT/<env>-c<collector depth>-s<seed>/                     a run with all learners
    OUT/<env>-c<collector depth>-s<seed>-d<learner depth>/    a learner that was added after that run was done

The folder can be moved: a run stays done although the path of its stream has changed.
"""

import time
from pathlib import Path

from deploy.layout import STREAM
from deploy.matrix.expand import MatrixConfig, MatrixRun, expand, fed_run, load_matrix
from deploy.run.run_dir import read_status
from shared.config import Experiment
from shared.config_file import load_experiment
from shared.errors import ConfigError
from shared.stream.format import MANIFEST

MATRIX = "matrix.yaml"
SILENT_S = 60.0  # a live run writes its status every few seconds


def runs_in(matrix: MatrixConfig, out: Path) -> list[MatrixRun]:
    """Returns every run of which `matrix` consists in `out`, in the matrix's order.

    These are the runs of `expand(matrix)`. But a run that is done with fewer learners stays as it is: each missing
    learner follows it as a run of its own, fed from its stream.
    """
    return [run for whole in expand(matrix) for run in _split_at_held(whole, out)]


def _split_at_held(whole: MatrixRun, out: Path) -> list[MatrixRun]:
    held, learners = _finished(out / whole.name), whole.experiment.learners
    if held is None:
        return [whole]
    trained = {name: learner for name, learner in learners.items() if name in held.learners}
    done = whole._replace(experiment=whole.experiment.model_copy(update={"learners": trained}))
    if held != done.experiment:
        return [whole]
    missing = [learner.depth for name, learner in learners.items() if name not in trained]
    return [done, *(fed_run(whole, depth, out.absolute() / whole.name / STREAM) for depth in missing)]


def is_done(run_dir: Path, run: MatrixRun) -> bool:
    """Returns true if `run_dir` holds this run, finished."""
    held = _finished(run_dir)
    return held is not None and _without_place(held) == _without_place(run.experiment)


def is_begun(run_dir: Path, run: MatrixRun) -> bool:
    """Returns true if `run_dir` holds this run, so that it can be resumed."""
    return _held(run_dir) == run.experiment


def _finished(run_dir: Path) -> Experiment | None:
    return _held(run_dir) if read_status(run_dir).get("state") == "done" else None


def _held(run_dir: Path) -> Experiment | None:
    try:
        return load_experiment(run_dir / "config.yaml")
    except ConfigError:  # missing, cut short, or of another version
        return None


def progress(run_dir: Path) -> str:
    """Returns the progress of an unfinished run as a text for the user."""
    status = read_status(run_dir)
    try:
        silent_s = time.time() - (run_dir / "status.json").stat().st_mtime
        updates = min(status["updates"].values()) / status["updates_planned"]
        share = f"{50 * (status['env_steps'] / status['budget'] + updates):.0f} %"
        state, reason = status["state"], status["reason"]
    except (OSError, ValueError, KeyError):  # missing or cut short
        return "not started"
    if state == "running":
        return f"running, {share}" if silent_s < SILENT_S else f"stopped at {share} without giving a reason"
    if state == "done":
        return "done with another configuration"
    return f"{state} at {share}: {reason}" if reason else f"{state} at {share}"


def _without_place(experiment: Experiment) -> Experiment:
    """Shortens the path of the stream to the part within the matrix's folder, which may have been moved."""
    if experiment.stream is None:
        return experiment
    return experiment.model_copy(update={"stream": "/".join(Path(experiment.stream).parts[-2:])})


def check_out(out: Path, matrix: MatrixConfig) -> None:
    """Raises ConfigError unless `out` is empty, or holds this matrix or a part of it that can grow to it."""
    if not (out / MATRIX).exists():
        if out.exists() and any(out.iterdir() if out.is_dir() else [out]):
            raise ConfigError(f"--out: {out} is not empty and holds no matrix; name another folder")
        return
    _check_grown(load_matrix(out / MATRIX), matrix, out)
    for run in runs_in(matrix, out):
        stream = Path(run.experiment.stream or "")
        if run.fed and not is_done(out / run.name, run) and not (stream / MANIFEST).exists():
            recorded = matrix.experiment.get("record")
            remedy = f"put {STREAM}/ back" if recorded else "set experiment.record: true before the first run"
            raise ConfigError(
                f"learner_depths: {run.learner_depths[0]} was added, but {stream.parent} kept no stream; "
                f"{remedy}, or name another --out"
            )


def _check_grown(before: MatrixConfig, now: MatrixConfig, out: Path) -> None:
    """Raises ConfigError if anything but axes has grown: cells of different experiments cannot be compared."""
    if before.experiment != now.experiment:
        raise ConfigError(f"--out: {out} holds a matrix with another experiment; name another folder")
    for axis in ("envs", "collector_depths", "learner_depths", "seeds"):
        if gone := [value for value in getattr(before, axis) if value not in getattr(now, axis)]:
            raise ConfigError(f"--out: {out} holds a matrix that also has {axis} {gone[0]}; name another folder")
    for env in before.envs:
        if before.evaluation_envs.get(env) != now.evaluation_envs.get(env):
            raise ConfigError(f"--out: {out} holds a matrix with other evaluation_envs; name another folder")
