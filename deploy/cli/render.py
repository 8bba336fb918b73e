"""`fathom render`: a picture, a film or a 3-D page of an episode."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

from tyro.conf import Positional

from deploy.cli.options import named_env
from deploy.cli.output import make_console
from shared.errors import ConfigError


@dataclass(frozen=True)
class Render:
    """Draw an episode of a trained policy, or of random actions: a contact sheet, a film, or a 3-D page."""

    run_dir: Positional[Path | None] = None
    """A run, whose evaluation environment is drawn; none: say --env and --random."""
    learner: str = "active"
    """Which learner of the run."""
    env: str | None = None
    """An environment without a run."""
    random: bool = False
    """Random actions."""
    format: Literal["png", "mp4", "html"] = "png"
    out: Path | None = None
    """The file to write; none: RUN_DIR/videos/LEARNER.FORMAT, or ENV.FORMAT here."""
    seed: int = 0
    """Chooses start and goal."""
    steps: int | None = None
    """At most this many environment steps; none: the whole episode."""

    def execute(self) -> int:
        if (self.run_dir is None) == (self.env is None):
            raise ConfigError("render: name either a run directory or --env ENV --random")
        if self.random != (self.env is not None):
            raise ConfigError("--random: goes together with --env; a run's learner acts by its own policy")
        if self.steps is not None and self.steps < 1:
            raise ConfigError(f"--steps: {self.steps} is not positive")
        from deploy.render.draw import render

        if self.run_dir:
            play, default = (
                _trained_play(self.run_dir, self.learner),
                self.run_dir / "videos" / self._name(self.learner),
            )
        else:
            play = _random_play(str(self.env))
            default = Path(self._name(str(self.env).replace(":", ".")))
        path = self.out or default
        try:
            render(play.env, play.policy, play.params, path, self.format, self.seed, _say, play.title, self.steps)
        except OSError as error:
            raise ConfigError(f"--out: {path}: {error.strerror or error}; name another file") from error
        return 0

    def _name(self, stem: str) -> str:
        return f"{stem}.{self.format}"


class _Play(NamedTuple):
    """An environment, the policy that acts in it, and the title of its picture."""

    env: Any
    policy: Any
    params: Any
    title: str


def _random_play(env_id: str) -> _Play:
    from shared.policy import random_policy

    env = named_env(env_id)
    return _Play(env, random_policy(env.spec.action_size), {}, f"{env_id}, random actions")


def _trained_play(run_dir: Path, learner: str) -> _Play:
    from deploy.run.trained import load_trained
    from shared.networks import make_networks
    from shared.policy import deterministic_policy

    trained = load_trained(run_dir, learner)
    env, experiment = trained.envs.evaluation, trained.experiment
    actor = make_networks(experiment.learner(learner), env.spec).actor
    title = f"{experiment.evaluation.env or experiment.env}, {learner} after {trained.updates} updates"
    return _Play(env, deterministic_policy(actor), trained.actor, title)


def _say(text: str) -> None:
    make_console().print(text, highlight=False)
