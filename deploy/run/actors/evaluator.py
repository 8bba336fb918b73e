"""The evaluator's actor."""

from collections.abc import Collection

from collector.evaluator import EvaluationQueue, EvaluationRequest, Evaluator
from deploy.run.actors.role import RoleActor
from shared.config import Experiment
from shared.envs.registry import make_envs
from shared.plan import Plan


class EvaluatorActor(RoleActor):
    def __init__(self, stacks_path: str, experiment: Experiment, plan: Plan, finished: Collection[str]) -> None:
        """`finished`: learners whose last snapshot was evaluated in an earlier life."""
        super().__init__(stacks_path)
        self._experiment, self._plan, self._finished = experiment, plan, frozenset(finished)
        self._snapshots = EvaluationQueue()
        self._reporter.sizes["queue/snapshots"] = lambda: len(self._snapshots)

    def submit(self, snapshot: EvaluationRequest) -> None:
        self._snapshots.put(snapshot)

    def work(self) -> None:
        env = make_envs(self._experiment).evaluation
        evaluator = Evaluator(self._experiment, self._plan, env)
        evaluator.run(self._snapshots, self._reporter, self._stop.is_set, self._finished)
