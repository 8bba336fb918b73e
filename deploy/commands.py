"""What each `fathom` command does. Heavy imports come late: `fathom envs` needs neither Ray nor Reverb."""

import json
import os
import signal
import sys
import time
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from deploy.overrides import override
from shared.config import ConfigError, Experiment, load_experiment
from shared.envs.base import GoalEnv
from shared.envs.registry import describe, env_ids, make_env
from shared.plan import Plan, make_plan

EXIT_FAILED = 1


def run(
    experiment_path: Path, overrides: Sequence[str], run_dir: Path | None, in_process: bool, overwrite: bool
) -> int:
    """Checks everything that can be checked, then runs. Raises ConfigError before anything is started."""
    experiment = load_experiment(experiment_path)
    if overrides:
        experiment = override(experiment, overrides, experiment_path)
    prepare_jax(cpu_only=not in_process)
    from deploy.record import RunRecord, check_space, prepare_run_dir

    env, plan = make_env_and_plan(experiment)
    name = f"{experiment_path.stem}-{time.strftime('%Y%m%d-%H%M%S')}"
    run_dir = prepare_run_dir(run_dir or Path("runs") / name, overwrite)
    check_space(run_dir, experiment, env.spec)
    for ending in (signal.SIGINT, signal.SIGTERM):  # Ctrl-C, also where a shell made us ignore it; docker stop
        signal.signal(ending, _interrupt)
    record = RunRecord(run_dir, experiment, plan)
    try:
        return _supervised(record, env, in_process)
    except KeyboardInterrupt:
        record.status("interrupted", "stopped by the user")
        raise
    except Exception as error:  # noqa: BLE001 - however it ends, status.json and one line say why
        reason = explain_failure(error, record.run_dir)
        record.status("failed", reason)
        _complain(reason)
        return EXIT_FAILED
    finally:
        record.close()


def _supervised(record: Any, env: GoalEnv, in_process: bool) -> int:
    from deploy.console import RunConsole
    from deploy.record import write_json
    from deploy.summary import plot, summarise, table

    output = make_console()
    record.status("running")
    with RunConsole(record, output) as console:
        if in_process:
            from deploy.in_process import InProcessRun

            InProcessRun(record, env).run(console.update)
        else:
            from deploy.launch import Launch

            Launch(record, env.spec, console.say).run(console.update)
    summary = summarise(record)
    write_json(record.run_dir / "summary.json", summary)
    plot(record, record.run_dir / "learning_curve.png")
    record.status("done")
    output.print(table(summary))
    output.print(f"results: {record.run_dir}", highlight=False)
    return 0


def evaluate(run_dir: Path, learner: str, episodes: int | None, seed: int, as_json: bool) -> int:
    """A finished run's policy on fresh episodes."""
    if not (run_dir / "config.yaml").exists():
        raise ConfigError(f"{run_dir}: holds no run (no config.yaml); name a run directory")
    experiment = load_experiment(run_dir / "config.yaml")
    experiment.learner(learner)
    if episodes is not None:
        if episodes < 1:
            raise ConfigError(f"--episodes: {episodes} is not positive")
        changed = experiment.evaluation.model_copy(update={"episodes": episodes})
        experiment = experiment.model_copy(update={"evaluation": changed})
    prepare_jax(cpu_only=False)
    import jax

    from collector.evaluator import Evaluator
    from learner.learner import Learner
    from shared import checkpoint

    env, plan = make_env_and_plan(experiment)
    path = run_dir / "checkpoints" / learner
    if not path.exists():
        raise ConfigError(f"{path}: no checkpoint; the run ended before its last update")
    shapes = jax.eval_shape(lambda: Learner.initial_state(experiment, env.spec, learner))
    state = checkpoint.load(path, shapes)
    metrics = Evaluator(experiment, plan, env).measure(experiment.learner(learner), state.actor, seed)
    result = {"learner": learner, "updates": int(state.updates), "episodes": experiment.evaluation.episodes, **metrics}
    _show(result, as_json)
    return 0


def envs(as_json: bool) -> int:
    rows = []
    for env_id in env_ids():
        spec = make_env(env_id).spec
        sizes = {"state": spec.state_size, "goal": spec.goal_size, "action": spec.action_size}
        lengths = {"episode_length": spec.episode_length, "goal_radius": spec.goal_radius}
        rows.append({"env": env_id, **sizes, **lengths, "description": describe(env_id)})
    if as_json:
        print(json.dumps(rows))
        return 0
    _print_rows(rows)
    return 0


def bench_update(depths: Sequence[int], batch: int, width: int, as_json: bool) -> int:
    from deploy.bench.update import bench_update as measure

    _show(measure(list(depths), batch, width), as_json)
    return 0


def bench_rollout(env_id: str, num_envs: int, depth: int, width: int, with_replay: bool, as_json: bool) -> int:
    from deploy.bench.rollout import bench_rollout as measure

    env = named_env(env_id)
    _show(measure(env_id, env, num_envs, depth, width, with_replay), as_json)
    return 0


def bench_replay(against_stock: bool, as_json: bool) -> int:
    from deploy.bench.replay import bench_replay as measure

    try:
        _show(measure(against_stock=against_stock, say=lambda text: print(text, file=sys.stderr)), as_json)
    except RuntimeError as error:  # of the replay path: one line each, with cause and remedy
        _complain(str(error))
        return EXIT_FAILED
    return 0


def named_env(env_id: str, episode_length: int | None = None) -> GoalEnv:
    """The environment, or ConfigError that suggests the nearest."""
    try:
        return make_env(env_id, episode_length)
    except ValueError as error:
        raise ConfigError(f"env: {error}") from error


def make_env_and_plan(experiment: Experiment) -> tuple[GoalEnv, Plan]:
    env = named_env(experiment.env, experiment.episode_length)
    return env, make_plan(experiment, env.spec)


def prepare_jax(cpu_only: bool) -> None:
    """Before JAX is imported: the driver takes no GPU, and what was compiled once is not compiled again."""
    if cpu_only:
        os.environ["JAX_PLATFORMS"] = "cpu"
    cache = Path(os.environ.get("FATHOM_CACHE") or "~/.cache/fathom").expanduser() / "xla"
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(cache))


def explain_failure(error: Exception, run_dir: Path) -> str:
    """One line for the user. What is nobody's known mistake leaves its traceback in the run's logs."""
    from deploy.record import RunFailed

    if isinstance(error, RunFailed):
        return str(error)
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename or run_dir}: {error.strerror}; make room or name another --run-dir, then run again"
    log = run_dir / "logs" / "driver.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    log.write_text("".join(traceback.format_exception(error)), encoding="utf-8")
    return f"{type(error).__name__}: {' '.join(str(error).split())} (details: {log})"


def _interrupt(signal_number: int, frame: Any) -> None:
    """Ends a run in order; see `_supervised`'s caller."""
    raise KeyboardInterrupt


def _complain(text: str) -> None:
    Console(stderr=True, soft_wrap=True).print(f"fathom: {text}", style="red", highlight=False, markup=False)


def _show(result: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print(json.dumps(result))
        return
    rows = result["rows"] if "rows" in result else [{"": name, "value": value} for name, value in result.items()]
    _print_rows(rows)


def _print_rows(rows: list[dict[str, Any]]) -> None:
    table = Table(box=None, pad_edge=False)
    for name in rows[0]:
        table.add_column(name, justify="left" if isinstance(rows[0][name], str) else "right")
    for row in rows:
        table.add_row(*(f"{value:,.4g}" if isinstance(value, float) else str(value) for value in row.values()))
    make_console().print(table)


def make_console() -> Console:
    """Standard output; wide enough for a table where there is no terminal to ask."""
    return Console(file=sys.stdout, width=None if sys.stdout.isatty() else 140)
