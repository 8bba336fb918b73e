"""The learner's actor."""

import time
from typing import Any

import jax
import ray

from collector.evaluator import EvaluationRequest
from deploy.layout import STATE
from deploy.recovery import snapshots
from deploy.recovery.background import on_host
from deploy.recovery.restart_states import RestartStates
from deploy.run.actors.role import WritingActor
from learner.devices import share_out
from learner.learner import Learner
from shared import checkpoint
from shared.config import ACTIVE, Experiment
from shared.envs.registry import make_envs
from shared.params import Policy
from shared.plan import Plan
from shared.replay.announcements import ServerIncarnation
from shared.replay.reconnecting import ReconnectingSampler
from shared.roles import learner_role

REMOTE_TIMEOUT_S = 60.0  # for policies on their way to the store and the evaluator


class LearnerActor(WritingActor):
    def __init__(
        self,
        stacks_path: str,
        experiment: Experiment,
        plan: Plan,
        name: str,
        store: Any,
        evaluator: Any,
        run_dir: str,
        last_reported: int,
    ) -> None:
        """Prepares the connection to the replay server.

        Args:
            store: the parameter store, to which the collector learner publishes.
            evaluator: the evaluator's actor.
            last_reported: updates of this learner that the driver has recorded, over all incarnations.
        """
        super().__init__(stacks_path, experiment, run_dir)
        self._plan, self._name, self._last_reported = plan, name, last_reported
        self._store, self._evaluator = store, evaluator
        self._sampler = ReconnectingSampler(
            plan,
            name,
            share_out,
            self._reporter,
            self._stop,
            experiment.replay.timeout_seconds,
            self._paused,
        )
        self._reporter.sizes["queue/batches"] = lambda: self._sampler.batches_ready
        self._newest: Policy | None = None  # published; holds a reference to the weights
        self._published: Any = None
        self._request: EvaluationRequest | None = None
        self._submitted: Any = None
        self._snapshots = set(plan.snapshot_updates)

    def snapshot_at(self, updates: int) -> None:
        """Requests the learner's part of a snapshot that is not planned."""
        self._snapshots.add(updates)

    def connect(self, server: ServerIncarnation) -> None:
        self._sampler.connect(server)

    def disconnect(self) -> int | None:
        """Returns the number of windows taken from replay; None while it is not known yet."""
        return self._sampler.disconnect()

    def work(self) -> None:
        experiment, plan = self._experiment, self._plan
        spec = make_envs(experiment).training.spec
        states = RestartStates(self._run_dir / STATE / self._name, self._background, self._disk)
        learner = Learner(experiment, plan, spec, self._name, self._run_dir / "reports")
        like = jax.eval_shape(lambda: learner.state)
        held = states.newest(like, self._last_reported)
        if held is not None:
            learner.resume(held)
        sampler = self._sampler
        sampler.open(spec.row_floats, learner.updates * plan.windows_per_update)
        try:
            learner.run(
                sample=sampler.sample,
                windows_inserted=sampler.windows_inserted,
                publish=self._publish if self._name == ACTIVE else None,
                submit=self._submit,
                save=lambda: self._save(learner, states),
                reporter=self._reporter,
                should_stop=self._stop.is_set,
            )
        finally:
            sampler.close()
            self._background.wait()
        if learner.updates == plan.updates:
            self._wait_for_room()
            states.save(learner.updates, learner.state)
            checkpoint.save(self._run_dir / "checkpoints" / self._name, learner.state)

    def _save(self, learner: Learner, states: RestartStates) -> None:
        """Writes the learner's part of a snapshot where one is due, else offers a restart state."""
        part = snapshots.Part(self._run_dir, learner.updates, learner_role(self._name))
        if learner.updates not in self._snapshots or part.sealed:
            states.offer(learner.updates, learner.state)
            return
        # A restart state may be skipped, but a snapshot without one learner's part would never be whole.
        self._wait_for_room()
        began = time.monotonic()
        state = on_host(learner.state)
        self._background.write(snapshots.write_learner, part, state, time.monotonic() - began)

    def republish(self) -> None:
        """Publishes the newest weights again, after the parameter store died with its reference to them."""
        if self._newest is not None:
            self._store.publish.remote(self._newest)

    def resubmit(self, evaluator: Any) -> None:
        """Submits the newest evaluation request to a restarted evaluator."""
        self._evaluator, self._submitted = evaluator, None
        if self._request is not None:
            self._submitted = evaluator.submit.remote(self._request)

    def _publish(self, policy: Policy) -> None:
        if self._published is not None:  # one policy on its way at a time
            ray.wait([self._published], timeout=REMOTE_TIMEOUT_S)
        # In a list, or Ray would send the weights themselves.
        self._newest = Policy(policy.version, [ray.put(policy.params)])
        self._published = self._store.publish.remote(self._newest)

    def _submit(self, policy: Policy) -> None:
        if self._submitted is not None:  # one request on its way at a time
            ray.wait([self._submitted], timeout=REMOTE_TIMEOUT_S)
        self._request = EvaluationRequest(self._name, policy, last=policy.version == self._plan.updates)
        self._submitted = self._evaluator.submit.remote(self._request)
