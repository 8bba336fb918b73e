"""Steps between a checked experiment and its run: JAX's settings, environments, plan, stream."""

import os
import sys
import traceback
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

from learner.objectives.registry import find_objective, make_objectives
from shared.config import Experiment
from shared.disk import NO_ROOM, find_write_fault
from shared.envs.registry import Envs, make_envs
from shared.errors import ConfigError, RunFailed
from shared.plan import Plan, make_plan

if TYPE_CHECKING:
    from shared.stream.read import Stream


def prepare_jax(cpu_only: bool) -> None:
    """Turns on JAX's persistent compilation cache, for this process and those that it starts.

    `cpu_only` keeps this process off the GPUs, which belong to the roles. The call must precede any computation of JAX.
    """
    import jax

    cache = Path(os.environ.get("FATHOM_CACHE") or "~/.cache/fathom").expanduser() / "xla"
    folder = os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(cache))
    jax.config.update("jax_compilation_cache_dir", folder)
    # Small functions, too: a role has dozens of them.
    shortest = os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
    jax.config.update("jax_persistent_cache_min_compile_time_secs", float(shortest))
    if "://" not in folder and (reason := find_write_fault(Path(folder))):
        os.environ["JAX_ENABLE_COMPILATION_CACHE"] = "false"
        jax.config.update("jax_enable_compilation_cache", False)
        remedy = "so every process compiles anew; set FATHOM_CACHE to a folder that you can write"
        print(f"JAX's compilation cache {folder} cannot be written ({reason}), {remedy}", file=sys.stderr)
    # JAX warns of each computation that it cannot read or write, as on a disk that is full: that costs time only.
    warnings.filterwarnings("ignore", message="Error (reading|writing) persistent compilation cache entry")
    if cpu_only:
        jax.config.update("jax_platforms", "cpu")


def make_envs_and_plan(experiment: Experiment) -> tuple[Envs, Plan]:
    """Raises ConfigError if environments or objectives do not exist, or if numbers do not fit together."""
    envs = make_envs(experiment)
    make_objectives(experiment, envs.training.spec)  # which checks them
    return envs, make_plan(experiment, envs.training.spec)


def check_stream(experiment: Experiment, plan: Plan, envs: Envs) -> str:
    """Returns the absolute path of the experiment's stream. Raises ConfigError unless it is whole and fits."""
    from shared.stream.format import describe
    from shared.stream.read import open_stream

    stream = open_stream(Path(str(experiment.stream)).absolute())
    stream.check_fits(describe(experiment, plan, envs.training.spec))
    check_ends(experiment, stream)
    return str(stream.directory)


def check_ends(experiment: Experiment, stream: "Stream") -> None:
    """Raises ConfigError if a learner needs to know how episodes end, and `stream` does not say it."""
    if stream.description.has_ends:
        return
    for name, learner in experiment.all_learners.items():
        algorithm = experiment.algorithm_of(name)
        needs = {
            "objective": find_objective(algorithm.objective, "algorithm.objective").NEEDS_ENDS,
            "final_goals": algorithm.final_goals,
        }
        for key in (key for key, needed in needs.items() if needed):
            field = f"learners.{name}.algorithm" if key in learner.algorithm else "algorithm"
            raise ConfigError(
                f"{field}.{key}: {getattr(algorithm, key)} needs to know how episodes end, and the stream "
                f"{stream.directory} of an older version does not say it; record it again, or leave out learner {name}"
            )


def explain_failure(error: Exception, run_dir: Path) -> str:
    """Returns one line for the user; the traceback of an unexpected error goes to logs/driver.log."""
    if isinstance(error, RunFailed):
        return str(error)
    if isinstance(error, OSError) and error.errno:
        fault = f"{error.filename or run_dir}: {os.strerror(error.errno)}"
        remedy = "make room" if error.errno in NO_ROOM else "correct that"
        return f"{fault}; {remedy} or name another --run-dir, then run again"
    log = run_dir / "logs" / "driver.log"
    details = str(log)
    try:
        log.parent.mkdir(parents=True, exist_ok=True)
        log.write_text("".join(traceback.format_exception(error)), encoding="utf-8")
    except OSError as unwritable:  # such as a full disk
        details = f"not written, {unwritable.strerror}"
    return f"{type(error).__name__}: {' '.join(str(error).split())} (details: {details})"
