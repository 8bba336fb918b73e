"""Steps between a checked experiment and its run: JAX's settings, environments, plan, stream."""

import os
import traceback
from pathlib import Path

from shared.config import Experiment
from shared.envs.registry import Envs, make_envs
from shared.errors import RunFailed
from shared.plan import Plan, make_plan


def prepare_jax(cpu_only: bool) -> None:
    """Turns on JAX's persistent compilation cache, for this process and those that it starts.

    `cpu_only` keeps this process off the GPUs, which belong to the roles. The call must precede any computation of JAX.
    """
    import jax

    cache = Path(os.environ.get("FATHOM_CACHE") or "~/.cache/fathom").expanduser() / "xla"
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(cache))
    jax.config.update("jax_compilation_cache_dir", os.environ["JAX_COMPILATION_CACHE_DIR"])
    if cpu_only:
        jax.config.update("jax_platforms", "cpu")


def make_envs_and_plan(experiment: Experiment) -> tuple[Envs, Plan]:
    """Raises ConfigError if the experiment's environments do not exist or its numbers do not fit together."""
    envs = make_envs(experiment)
    return envs, make_plan(experiment, envs.training.spec)


def check_stream(experiment: Experiment, plan: Plan, envs: Envs) -> str:
    """Returns the absolute path of the experiment's stream. Raises ConfigError unless it is whole and fits."""
    from shared.stream.format import describe
    from shared.stream.read import open_stream

    stream = open_stream(Path(str(experiment.stream)).absolute())
    stream.check_fits(describe(experiment, plan, envs.training.spec))
    return str(stream.directory)


def explain_failure(error: Exception, run_dir: Path) -> str:
    """Returns one line for the user; the traceback of an unexpected error goes to logs/driver.log."""
    if isinstance(error, RunFailed):
        return str(error)
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename or run_dir}: {error.strerror}; make room or name another --run-dir, then run again"
    log = run_dir / "logs" / "driver.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    log.write_text("".join(traceback.format_exception(error)), encoding="utf-8")
    return f"{type(error).__name__}: {' '.join(str(error).split())} (details: {log})"
