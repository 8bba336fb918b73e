"""`fathom render`: a picture, a film or a 3-D page of an episode, or of the same episodes in all cells of a matrix."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tyro.conf import Positional

from deploy.cli.options import EXIT_FAILED, named_env
from deploy.cli.output import complain, say
from shared.config import EnvOptions
from shared.errors import ConfigError


@dataclass(frozen=True)
class Render:
    """Draw episodes: of a run's trained policy, of random actions, or of all cells of a matrix side by side."""

    folder: Positional[Path | None] = None
    """Run whose evaluation environment is drawn, or a matrix; none: give --env and --random."""
    learner: str | None = None
    """Learner of the run; none: active."""
    env: str | None = None
    """Environment to draw without a run."""
    env_options: EnvOptions = EnvOptions()  # noqa: RUF009 - frozen
    """Options of --env."""
    random: bool = False
    """Random actions."""
    format: Literal["png", "mp4", "html"] = "png"
    """A contact sheet or paths, a film, or a page: in 3-D of an episode, with a player of a matrix."""
    out: Path | None = None
    """File to write, of a matrix the folder; none: FOLDER/videos/LEARNER.FORMAT, FOLDER/videos, or ENV.FORMAT here."""
    seed: int | None = None
    """Chooses start and goal; none: 0. A matrix shows episodes of its evaluations."""
    steps: int | None = None
    """Most environment steps to draw; none: the whole episode."""

    def execute(self) -> int:
        if (self.folder is None) == (self.env is None):
            raise ConfigError("render: name either a run or a matrix, or --env ENV --random")
        if self.random != (self.env is not None):
            raise ConfigError("--random: goes together with --env; a run's learner acts by its own policy")
        if self.folder and self.env_options != EnvOptions():
            raise ConfigError("--env-options: goes together with --env; a run has its own")
        if self.steps is not None and self.steps < 1:
            raise ConfigError(f"--steps: {self.steps} is not positive")
        from deploy.matrix.folder import MATRIX

        if self.folder and (self.folder / MATRIX).exists():
            return self._render_matrix(self.folder)
        return self._render_episode()

    def _render_matrix(self, folder: Path) -> int:
        for name in ("learner", "seed", "steps"):
            if getattr(self, name) is not None:
                raise ConfigError(f"--{name}: {folder} is a matrix, which shows all cells; leave it out, or name a run")
        from deploy.report.gallery.make import write_galleries
        from deploy.report.read import read_matrix

        record = read_matrix(folder)
        try:
            written = write_galleries(record, self.out or folder / "videos", self.format, say)
        except OSError as error:
            raise ConfigError(f"--out: {error.filename}: {error.strerror or error}; name another folder") from error
        for each in record.missing:
            complain(": ".join(filter(None, (each.run, each.part, each.reason))))
        count = f"{len(written)} file{'s' * (len(written) > 1)}"
        say(f"{count}: {', '.join(map(str, written))}" if written else "nothing can be drawn")
        return 0 if written else EXIT_FAILED

    def _render_episode(self) -> int:
        from deploy.render.draw import render
        from shared.policy import random_policy

        learner = self.learner or "active"
        if self.folder:
            from deploy.run.trained import load_trained

            trained = load_trained(self.folder, learner)
            name, env = next(iter(trained.envs.evaluations.items()))
            policy, chunk, params = trained.policy, trained.chunk, trained.params
            title = f"{name}, {learner} after {trained.updates} updates"
            stem = self.folder / "videos" / learner
        else:
            env = named_env(str(self.env), self.env_options)
            policy, chunk, params = random_policy(env.spec.action_size), 1, {}
            title = f"{self.env}, random actions"
            stem = Path(str(self.env).replace(":", "."))
        out = self.out or stem.with_name(f"{stem.name}.{self.format}")
        try:
            render(env, policy, params, out, self.format, self.seed or 0, say, title, self.steps, chunk)
        except OSError as error:
            raise ConfigError(f"--out: {out}: {error.strerror or error}; name another file") from error
        return 0
