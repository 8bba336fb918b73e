"""What `fathom eval` and `fathom render` do: numbers and pictures of a trained policy."""

from pathlib import Path
from typing import NamedTuple

import jax

from deploy.commands import make_envs_and_plan, named_env, prepare_jax
from deploy.output import make_console, show
from deploy.render.render import Picture
from shared.config import ConfigError, Experiment, load_experiment
from shared.envs.base import GoalEnv
from shared.envs.registry import Envs
from shared.networks import make_networks
from shared.plan import Plan
from shared.policy import PolicyFunction, deterministic_policy, random_policy
from shared.types import Params


class Trained(NamedTuple):
    """A learner of a run that has ended, as its checkpoint holds it."""

    experiment: Experiment
    plan: Plan
    envs: Envs
    updates: int
    actor: Params


def load_trained(run_dir: Path, learner: str) -> Trained:
    """Raises ConfigError if there is no such run, learner or checkpoint."""
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


def evaluate(run_dir: Path, learner: str, episodes: int | None, seed: int, as_json: bool) -> int:
    """A finished run's policy on fresh episodes."""
    if episodes is not None and episodes < 1:
        raise ConfigError(f"--episodes: {episodes} is not positive")
    trained = load_trained(run_dir, learner)
    from collector.evaluator import Evaluator

    experiment = trained.experiment
    if episodes is not None:
        changed = experiment.evaluation.model_copy(update={"episodes": episodes})
        experiment = experiment.model_copy(update={"evaluation": changed})
    evaluator = Evaluator(experiment, trained.plan, trained.envs.evaluation)
    metrics = evaluator.measure(experiment.learner(learner), trained.actor, seed)
    result = {"learner": learner, "updates": trained.updates, "episodes": experiment.evaluation.episodes, **metrics}
    show(result, as_json)
    return 0


def render(
    run_dir: Path | None,
    learner: str,
    env_id: str | None,
    random: bool,
    picture: Picture,
    out: Path | None,
    seed: int,
    steps: int | None,
) -> int:
    """Draws an episode of a run's learner, or of random actions in `env_id`, into a file."""
    if (run_dir is None) == (env_id is None):
        raise ConfigError("render: name either a run directory or --env ENV --random")
    if random != (env_id is not None):
        raise ConfigError("--random: goes together with --env; a run's learner acts by its own policy")
    if steps is not None and steps < 1:
        raise ConfigError(f"--steps: {steps} is not positive")
    from deploy.render.render import render as draw

    if run_dir:
        play, default = _trained_play(run_dir, learner), run_dir / "videos" / f"{learner}.{picture}"
    else:
        play, default = _random_play(str(env_id)), Path(f"{str(env_id).replace(':', '.')}.{picture}")
    try:
        draw(play.env, play.policy, play.params, out or default, picture, seed, _say, play.title, steps)
    except OSError as error:
        raise ConfigError(f"--out: {out or default}: {error.strerror or error}; name another file") from error
    return 0


class Play(NamedTuple):
    """Who acts where."""

    env: GoalEnv
    policy: PolicyFunction
    params: Params
    title: str


def _random_play(env_id: str) -> Play:
    env = named_env(env_id)
    return Play(env, random_policy(env.spec.action_size), {}, f"{env_id}, random actions")


def _trained_play(run_dir: Path, learner: str) -> Play:
    trained = load_trained(run_dir, learner)
    env, experiment = trained.envs.evaluation, trained.experiment
    actor = make_networks(experiment.learner(learner), env.spec).actor
    title = f"{experiment.evaluation.env or experiment.env}, {learner} after {trained.updates} updates"
    return Play(env, deterministic_policy(actor), trained.actor, title)


def _say(text: str) -> None:
    make_console().print(text, highlight=False)
