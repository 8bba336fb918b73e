"""The evaluator's actor."""

from collections.abc import Collection

from collector.evaluator import EvaluationQueue, EvaluationRequest, Evaluator
from deploy.run.actors.role import RoleActor
from learner.acting import evaluation_policies
from shared.config import Experiment
from shared.envs.registry import make_envs
from shared.plan import Plan


class EvaluatorActor(RoleActor):
    def __init__(
        self, stacks_path: str, experiment: Experiment, plan: Plan, finished: Collection[str], max_waiting_bytes: int
    ) -> None:
        """Evaluates nothing yet.

        Args:
            finished: names of learners whose last policy was evaluated by an earlier incarnation.
            max_waiting_bytes: bound of the queue; see `EvaluationQueue`.
        """
        super().__init__(stacks_path)
        self._experiment, self._plan, self._finished = experiment, plan, frozenset(finished)
        self._queue = EvaluationQueue(max_waiting_bytes)
        self._reporter.sizes["queue/policies"] = lambda: len(self._queue)

    def submit(self, request: EvaluationRequest) -> None:
        self._queue.put(request)

    def work(self) -> None:
        envs = make_envs(self._experiment)
        policies = evaluation_policies(self._experiment, envs.training.spec)
        evaluator = Evaluator(self._experiment, self._plan, envs.evaluations, policies)
        evaluator.run(self._queue, self._reporter, self._stop.is_set, self._finished)
