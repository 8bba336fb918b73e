"""Evaluations of an in-process run: the evaluator's loop in a thread, and its rows in an order that is fixed."""

import threading
from collections import deque
from collections.abc import Iterable

from collector.evaluator import EvaluationQueue, EvaluationRequest, Evaluator
from deploy.run.record import RunRecord
from deploy.run.rounds import TICK_S, Rounds
from shared.metrics import Reporter, Row
from shared.params import Policy
from shared.roles import EVALUATOR


class Evaluations:
    """Evaluates policies beside the learners, so that neither updates nor unrolls wait for it."""

    def __init__(self, record: RunRecord, evaluator: Evaluator, permits: threading.Semaphore, rounds: Rounds) -> None:
        """`permits` bounds the computations at a time."""
        self._record, self._plan = record, record.plan
        self._evaluator, self._permits, self._rounds = evaluator, permits, rounds
        self._learners = list(record.experiment.all_learners)
        self._requests = EvaluationQueue()
        self._rows: dict[tuple[int, str], Row] = {}  # not recorded yet
        updates, last = self._plan.evaluation_updates, record.evaluated
        self._due = deque((at, name) for at in updates for name in self._learners if at > last(name))

    # --- called by the threads of learners ---

    def submit(self, learner: str, policy: Policy) -> None:
        if policy.version > self._record.evaluated(learner):  # a resumed run has evaluated its first policy
            self._requests.put(EvaluationRequest(learner, policy, last=policy.version == self._plan.updates))

    def wait_for_room(self, learner: str) -> None:
        """Waits until the learner's policy, if it has submitted one, is being evaluated. Raises ReplayStopped."""
        while not self._requests.wait_taken(learner, TICK_S):
            self._rounds.check_stopping()

    # --- called by the evaluator's thread ---

    def run(self, reporter: Reporter) -> None:
        """Evaluates until the last policy of every learner is done, or the run is stopping."""
        finished = [name for name in self._learners if self._record.evaluated(name) == self._plan.updates]
        self._evaluator.run(self._requests, reporter, lambda: self._rounds.stopping, finished, self._evaluate)

    def _evaluate(self, learner: str, policy: Policy) -> Row:
        with self._permits:
            return self._evaluator.evaluate(learner, policy)

    # --- called by the thread that drives the run ---

    def record_rows(self, rows: Iterable[Row]) -> None:
        """Records the evaluator's `rows` in the order of updates and learners; keeps those that come too early."""
        self._rows |= {(row["updates"], row["learner"]): row for row in rows}
        while self._due and self._due[0] in self._rows:
            self._record.add(EVALUATOR, self._rows.pop(self._due.popleft()))

    def complete(self, updates: int) -> bool:
        """True once the evaluations of all policies up to `updates` are recorded."""
        return not self._due or self._due[0][0] > updates
