"""Policies of runs that have ended."""

from pathlib import Path
from typing import NamedTuple

import jax

from deploy.run.setup import make_envs_and_plan, prepare_jax
from shared.config import Experiment
from shared.config_file import load_experiment
from shared.envs.registry import Envs
from shared.errors import ConfigError
from shared.plan import Plan
from shared.types import Params


class Trained(NamedTuple):
    """A learner of a run that has ended, read from its checkpoint, with the run's experiment."""

    experiment: Experiment
    plan: Plan
    envs: Envs
    updates: int
    actor: Params


def load_trained(run_dir: Path, learner: str) -> Trained:
    """Loads a learner's checkpoint. Raises ConfigError if the run, the learner or its checkpoint does not exist."""
    if not (run_dir / "config.yaml").exists():
        raise ConfigError(f"{run_dir}: holds no run (no config.yaml); name a run directory")
    experiment = load_experiment(run_dir / "config.yaml")
    experiment.learner(learner)
    path = run_dir / "checkpoints" / learner
    if not path.exists():
        raise ConfigError(f"{path}: no checkpoint; the run ended before its last update")
    prepare_jax(cpu_only=False)
    from learner.learner import Learner
    from shared import checkpoint

    envs, plan = make_envs_and_plan(experiment)
    shapes = jax.eval_shape(lambda: Learner.initial_state(experiment, envs.training.spec, learner))
    state = checkpoint.load(path, shapes)
    return Trained(experiment, plan, envs, int(state.updates), jax.device_put(state.actor))
