"""`fathom render`: a picture, a film or a 3-D page of an episode."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tyro.conf import Positional

from deploy.cli.options import named_env
from deploy.cli.output import say
from shared.errors import ConfigError


@dataclass(frozen=True)
class Render:
    """Draw an episode of a trained policy, or of random actions: a contact sheet, a film, or a 3-D page."""

    run_dir: Positional[Path | None] = None
    """Run whose evaluation environment is drawn; none: give --env and --random."""
    learner: str = "active"
    """Learner of the run."""
    env: str | None = None
    """Environment to draw without a run."""
    random: bool = False
    """Random actions."""
    format: Literal["png", "mp4", "html"] = "png"
    out: Path | None = None
    """File to write; none: RUN_DIR/videos/LEARNER.FORMAT, or ENV.FORMAT here."""
    seed: int = 0
    """Chooses start and goal."""
    steps: int | None = None
    """Most environment steps to draw; none: the whole episode."""

    def execute(self) -> int:
        if (self.run_dir is None) == (self.env is None):
            raise ConfigError("render: name either a run directory or --env ENV --random")
        if self.random != (self.env is not None):
            raise ConfigError("--random: goes together with --env; a run's learner acts by its own policy")
        if self.steps is not None and self.steps < 1:
            raise ConfigError(f"--steps: {self.steps} is not positive")
        from deploy.render.draw import render
        from shared.policy import random_policy

        if self.run_dir:
            from deploy.run.trained import load_trained

            trained = load_trained(self.run_dir, self.learner)
            env, experiment = trained.envs.evaluation, trained.experiment
            policy, chunk, params = trained.policy, trained.chunk, trained.params
            title = f"{experiment.evaluation.env or experiment.env}, {self.learner} after {trained.updates} updates"
            stem = self.run_dir / "videos" / self.learner
        else:
            env = named_env(str(self.env))
            policy, chunk, params = random_policy(env.spec.action_size), 1, {}
            title = f"{self.env}, random actions"
            stem = Path(str(self.env).replace(":", "."))
        out = self.out or stem.with_name(f"{stem.name}.{self.format}")
        try:
            render(env, policy, params, out, self.format, self.seed, say, title, self.steps, chunk)
        except OSError as error:
            raise ConfigError(f"--out: {out}: {error.strerror or error}; name another file") from error
        return 0
