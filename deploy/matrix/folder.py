"""Folder of a matrix: the runs that it holds, and the matrices that it may grow to.

    OUT/matrix.yaml
    OUT/<env>-c<collector depth>-s<seed>/                     a run with all learners
    OUT/<env>-c<collector depth>-s<seed>-<learner>/           a learner that was added to that run later

The folder can be moved: a run stays done although the path of its stream has changed.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from deploy.layout import STREAM
from deploy.matrix.expand import MatrixConfig, MatrixRun, expand, fed_run, learner_name, load_matrix, matrix_keys
from deploy.recovery.resume import Change, changed_results
from deploy.run.run_dir import SILENT_S, read_status, silent_seconds
from deploy.run.setup import check_ends
from shared.config import Experiment
from shared.config_file import load_experiment
from shared.errors import ConfigError
from shared.stream.format import MANIFEST
from shared.stream.read import open_stream

MATRIX = "matrix.yaml"
CONFIG = "config.yaml"


class Agenda(NamedTuple):
    """Runs of a matrix by name, sorted by the content of their folders."""

    done: list[str]
    waiting: dict[str, MatrixRun]
    """Runs that begin or resume."""
    replaced: dict[str, str]
    """Waiting runs that replace another run, with a text on it."""
    kept: dict[str, str]
    """Runs that do not execute because their folders hold something else, with the reason and the remedy."""

    @property
    def num_runs(self) -> int:
        return len(self.done) + len(self.waiting) + len(self.kept)

    @property
    def lines(self) -> list[str]:
        """Lines for the user on the runs that do not simply begin or resume."""
        return [
            *(f"{name}: done before" for name in self.done),
            *(f"{name}: kept and not executed, {reason}" for name, reason in self.kept.items()),
            *(f"{name}: replaced, {text}" for name, text in self.replaced.items()),
        ]


def make_agenda(matrix: MatrixConfig, out: Path, overwrite: bool) -> Agenda:
    """Sorts the runs of `matrix`; `overwrite` replaces each run in `out` whose configuration is another."""
    agenda = Agenda([], {}, {}, {})
    for run in runs_in(matrix, out):
        run_dir = out / run.name
        other = _find_other(run_dir, run)
        if other and not (overwrite and other.is_run):
            agenda.kept[run.name] = f"{other.text}; {other.remedy}"
            continue
        if other:
            agenda.replaced[run.name] = other.text
        if not other and _is_finished(run_dir):
            agenda.done.append(run.name)
        else:
            agenda.waiting[run.name] = run
    return agenda


def runs_in(matrix: MatrixConfig, out: Path) -> list[MatrixRun]:
    """Returns every run of which `matrix` consists in `out`, in the matrix's order.

    These are the runs of `expand(matrix)`. But a run with fewer learners that is done, or that records its stream,
    stays as it is: each missing learner follows it as a run of its own, fed from its stream.
    """
    return [run for whole in expand(matrix) for run in _split_at_held(whole, out)]


def _split_at_held(whole: MatrixRun, out: Path) -> list[MatrixRun]:
    run_dir = out / whole.name
    held = _held(run_dir)
    if held is None:
        return [whole]
    whole = whole._replace(experiment=_with_held_names(whole, held, out))
    if not (_is_finished(run_dir) or whole.experiment.record):
        return [whole]
    part = _without_new_learners(whole.experiment, held)
    if changed_results(held, part):
        return [whole]
    missing = [name for name in whole.experiment.learners if name not in part.learners]
    fed = [fed_run(whole, name, out.absolute() / whole.name / STREAM) for name in missing]
    return [whole._replace(experiment=part), *fed]


def _with_held_names(whole: MatrixRun, held: Experiment, out: Path) -> Experiment:
    """Returns the experiment of `whole` with learners of its own objective called `d<depth>` if `out` has them so.

    A matrix without objectives gives these names, so objectives can be added to it.
    """
    learners = {}
    own = whole.experiment.algorithm.objective
    for name, learner in whole.experiment.learners.items():
        plain = f"d{learner.depth}"
        has_plain = plain in held.learners or (out / f"{whole.name}-{plain}" / CONFIG).exists()
        if has_plain and name == learner_name(own, learner.depth) and learner.algorithm == {"objective": own}:
            learners[plain] = learner.model_copy(update={"algorithm": {}})
        else:
            learners[name] = learner
    return whole.experiment.model_copy(update={"learners": learners})


def _without_new_learners(experiment: Experiment, held: Experiment) -> Experiment:
    """Returns `experiment` with those of its learners alone whose names `held` has, too."""
    learners = {name: learner for name, learner in experiment.learners.items() if name in held.learners}
    return experiment.model_copy(update={"learners": learners})


def is_done(run_dir: Path, run: MatrixRun) -> bool:
    """Returns true if `run_dir` holds this run, finished. Keys that change no result may differ."""
    held = _held(run_dir)
    return held is not None and _is_finished(run_dir) and not changed_results(held, run.experiment)


def _is_finished(run_dir: Path) -> bool:
    return read_status(run_dir).get("state") == "done"


def _held(run_dir: Path) -> Experiment | None:
    try:
        return load_experiment(run_dir / CONFIG)
    except ConfigError:  # missing, cut short, or of another version
        return None


class _Other(NamedTuple):
    """Content of a run's folder that is not this run."""

    text: str
    remedy: str
    is_run: bool


def _find_other(run_dir: Path, run: MatrixRun) -> _Other | None:
    """Returns what `run_dir` holds instead of `run`; none if it holds `run` or nothing."""
    path = run_dir / CONFIG
    if not path.exists():
        if not run_dir.exists() or (run_dir.is_dir() and not any(run_dir.iterdir())):
            return None
        return _Other("its folder holds files, but no run", "move them, or name another --out", False)
    which = "a finished run" if _is_finished(run_dir) else "an unfinished run"
    try:
        held = load_experiment(path)
    except ConfigError as error:
        mistake = str(error).splitlines()[0].removeprefix(str(path)).lstrip(":, ").partition("; known here")[0]
        remedy = "use the version that wrote it, name another --out, or add --overwrite"
        return _Other(f"its folder holds {which} whose {CONFIG} cannot be read ({mistake})", remedy, True)
    changed = changed_results(held, run.experiment)
    if not changed:
        return None
    # A new learner alone would be no reason if the other keys were set back and there is a stream.
    changed = changed_results(held, _without_new_learners(run.experiment, held)) or changed
    text = f"its folder holds {which} with another configuration ({_text(changed)})"
    return _Other(text, "set it back, name another --out, or add --overwrite", True)


def _text(changed: Sequence[Change]) -> str:
    return ", ".join(map(str, changed))


def progress(run_dir: Path) -> str:
    """Returns the progress of a run as a text for the user; a run whose processes still end is "done", too."""
    status = read_status(run_dir)
    if status.get("state") == "done":
        return "done"
    try:
        silent_s = silent_seconds(run_dir)
        updates = min(status["updates"].values()) / status["updates_planned"]
        share = f"{50 * (status['env_steps'] / status['budget'] + updates):.0f} %"
        state, reason, phase = status["state"], status["reason"], status.get("phase", "")
    except (OSError, ValueError, KeyError):  # missing or cut short
        return "begun, but its status.json cannot be read" if (run_dir / CONFIG).exists() else "not started"
    if state == "running":
        doing = phase or f"running, {share}"
        return doing if silent_s < SILENT_S else f"stopped at {share} without giving a reason"
    return f"{state} at {share}: {reason}" if reason else f"{state} at {share}"


def check_out(out: Path, matrix: MatrixConfig, overwrite: bool) -> None:
    """Raises ConfigError unless `out` is empty, or holds this matrix or a part of it that can grow to it.

    `overwrite` allows another experiment.
    """
    try:
        new = not (out / MATRIX).exists()
        occupied = out.exists() and any(out.iterdir() if out.is_dir() else [out])
    except OSError as error:
        raise ConfigError(f"--out: {out} cannot be read ({error.strerror}); name another folder") from error
    if new and occupied:
        raise ConfigError(f"--out: {out} is not empty and holds no matrix; name another folder")
    if new:
        return
    try:
        before = load_matrix(out / MATRIX)
    except ConfigError as error:
        if not overwrite:
            line = str(error).splitlines()[0]
            raise ConfigError(f"--out: {line}; name another folder, or add --overwrite: it keeps equal runs") from error
    else:
        _check_grown(before, matrix, out, overwrite)
    for run in runs_in(matrix, out):
        stream = Path(run.experiment.stream or "")
        recorded = not run.fed or (stream / MANIFEST).exists() or not _is_finished(stream.parent)
        if not recorded and not is_done(out / run.name, run):
            missing = "set experiment.record: true before the first run"
            remedy = f"put {STREAM}/ back" if matrix.experiment.get("record") else missing
            raise ConfigError(
                f"{_added(run, matrix)}, but {stream.parent} kept no stream; {remedy}, or name another --out"
            )
        if run.fed and (stream / MANIFEST).exists() and not is_done(out / run.name, run):
            with matrix_keys(matrix):
                check_ends(run.experiment, open_stream(stream, verify=False))


def _added(run: MatrixRun, matrix: MatrixConfig) -> str:
    """Returns the learner that a fed run adds, after the matrix's key."""
    (name,) = run.experiment.learners
    depth = run.learner_depths[0]
    return f"objectives: learner {name} was added" if matrix.objectives else f"learner_depths: {depth} was added"


def _check_grown(before: MatrixConfig, now: MatrixConfig, out: Path, overwrite: bool) -> None:
    """Raises ConfigError if anything but axes has grown: cells of different experiments cannot be compared."""
    for axis in ("envs", "collector_depths", "learner_depths", "seeds"):
        if gone := [value for value in getattr(before, axis) if value not in getattr(now, axis)]:
            raise ConfigError(f"--out: {out} holds a matrix that also has {axis} {gone[0]}; name another folder")
    _check_objectives(before, now, out, overwrite)
    if overwrite:
        return
    for key in ("evaluation_envs", "budgets"):
        if any(getattr(before, key).get(env) != getattr(now, key).get(env) for env in before.envs):
            raise ConfigError(f"--out: {out} holds a matrix with other {key}; name another folder")
    # One run shows the keys of all; its learners are copies of its collector network.
    one_run = {axis: getattr(before, axis)[:1] for axis in ("envs", "collector_depths", "seeds")}
    held, asked = (
        expand(matrix.model_copy(update={**one_run, "learner_depths": ()}))[0].experiment for matrix in (before, now)
    )
    if changed := changed_results(held, asked):
        raise ConfigError(
            f"--out: {out} holds a matrix with another experiment ({_text(changed)}); set it back, "
            "name another folder, or add --overwrite"
        )


def _check_objectives(before: MatrixConfig, now: MatrixConfig, out: Path, overwrite: bool) -> None:
    """Raises ConfigError if learners of `before` are gone, or, unless `overwrite`, if their keys have changed."""
    if not before.learner_depths:
        return
    gone = [name for name in before.objective_keys if name not in now.objective_keys]
    if gone or (before.objectives and not now.objectives):
        name = [*gone, *before.objectives][0]
        raise ConfigError(f"--out: {out} holds a matrix that also has objectives {name}; name another folder")
    for name, keys in before.objective_keys.items():
        if keys != now.objective_keys[name] and not overwrite:
            raise ConfigError(
                f"--out: {out} holds a matrix with other keys of objectives.{name} ({keys}); set them back, "
                "name another folder, or add --overwrite"
            )
