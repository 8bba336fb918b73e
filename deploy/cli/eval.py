"""`fathom eval`: evaluation of a trained policy on new episodes."""

from dataclasses import dataclass
from pathlib import Path

from tyro.conf import Positional

from deploy.cli.output import show
from shared.errors import ConfigError


@dataclass(frozen=True)
class Eval:
    """Evaluate a trained policy of a run."""

    run_dir: Positional[Path]
    learner: str = "active"
    """Name of the learner."""
    episodes: int | None = None
    """Number of new episodes; none: as many as in the run."""
    seed: int = 0
    """Seed of starts and goals."""
    json: bool = False
    """Print one JSON object."""

    def execute(self) -> int:
        if self.episodes is not None and self.episodes < 1:
            raise ConfigError(f"--episodes: {self.episodes} is not positive")
        from deploy.run.trained import load_trained

        trained = load_trained(self.run_dir, self.learner)
        from collector.evaluator import Evaluator, holds_episodes

        episodes = self.episodes or trained.experiment.evaluation.episodes
        evaluation = trained.experiment.evaluation.model_copy(update={"episodes": episodes})
        experiment = trained.experiment.model_copy(update={"evaluation": evaluation})
        evaluator = Evaluator(experiment, trained.plan, trained.envs.evaluations, {self.learner: trained.policy})
        result = {"learner": self.learner, "updates": trained.updates, "episodes": episodes}
        metrics = evaluator.measure_everywhere(self.learner, trained.params, self.seed)
        show(result | {name: value for name, value in metrics.items() if not holds_episodes(name)}, self.json)
        return 0
