"""Policies of runs that have ended."""

from pathlib import Path
from typing import NamedTuple

import jax

from deploy.run.run_dir import SILENT_S, read_status, silent_seconds
from deploy.run.setup import make_envs_and_plan, prepare_jax
from shared.config import Experiment
from shared.config_file import load_experiment
from shared.envs.registry import Envs
from shared.errors import ConfigError
from shared.plan import Plan
from shared.policy import PolicyFunction
from shared.types import Params


class Trained(NamedTuple):
    """A learner of a run that has ended, read from its checkpoint, with the run's experiment.

    `policy`: the policy of the run's evaluations, which decides `chunk` actions at once; `params`: its parameters.
    """

    experiment: Experiment
    plan: Plan
    envs: Envs
    updates: int
    policy: PolicyFunction
    chunk: int
    params: Params


def load_trained(run_dir: Path, learner: str) -> Trained:
    """Loads a learner's checkpoint. Raises ConfigError if the run, the learner or its checkpoint does not exist."""
    if not (run_dir / "config.yaml").exists():
        raise ConfigError(f"{run_dir}: holds no run (no config.yaml); name a run directory")
    experiment = load_experiment(run_dir / "config.yaml")
    experiment.learner(learner)
    path = run_dir / "checkpoints" / learner
    if not path.exists():
        raise ConfigError(_explain_missing(path, run_dir, learner))
    prepare_jax(cpu_only=False)
    from learner.acting import evaluation_policy, policy_params
    from learner.learner import Learner
    from shared import checkpoint

    envs, plan = make_envs_and_plan(experiment)
    spec = envs.training.spec
    like = jax.eval_shape(lambda: Learner.initial_state(experiment, spec, learner))
    try:
        state = checkpoint.load(path, like)
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ConfigError(
            f"{path}: damaged checkpoint ({reason}); put it back, or run again with --overwrite"
        ) from error
    policy, chunk = evaluation_policy(experiment, learner, spec), experiment.algorithm_of(learner).chunk
    params = policy_params(state.actor, state.critic, experiment.evaluation.best_of)
    return Trained(experiment, plan, envs, int(state.updates), policy, chunk, jax.device_put(params))


def _explain_missing(path: Path, run_dir: Path, learner: str) -> str:
    """Returns the reason why a learner's checkpoint, which a run writes after its last update, is not there."""
    status = read_status(run_dir)
    try:
        state, reason = status["state"], status["reason"]
        progress = f"{status['updates'][learner]:,} of {status['updates_planned']:,} updates"
        silent_s = silent_seconds(run_dir)
    except (OSError, KeyError):
        return f"{path}: no checkpoint, and no status of the run; resume it with --resume"
    if state == "done":
        return f"{path}: no checkpoint, although the run is done; put it back, or run again with --overwrite"
    if state != "running":  # failed or interrupted
        because = f" ({reason})" if reason else ""
        return f"{run_dir}: the run ended after {progress}, {state}{because}; resume it with --resume"
    if silent_s < SILENT_S:
        return f"{run_dir}: the run is still going, {progress}; wait for its end, when it writes its checkpoints"
    return f"{run_dir}: silent for {silent_s:,.0f} s, {progress}; if the run died, resume it with --resume"
