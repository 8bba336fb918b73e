"""The learner's actor."""

import time
from typing import Any

import jax
import ray

from collector.evaluator import EvaluationRequest
from deploy.layout import STATE
from deploy.recovery import snapshots
from deploy.recovery.restart_states import RestartStates, on_host
from deploy.run.actors.role import WritingActor
from learner.devices import share_out
from learner.learner import Learner
from shared import checkpoint
from shared.config import ACTIVE, Experiment
from shared.envs.registry import make_envs
from shared.params import Policy
from shared.plan import Plan
from shared.replay.reconnecting import ReconnectingSampler, ServerIncarnation
from shared.roles import learner_role

REMOTE_TIMEOUT_S = 60.0  # for weights and snapshots on their way; they are there or their owner is gone


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
        """`last_reported`: updates of this learner that the driver has recorded, over all incarnations."""
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
        self._snapshot: EvaluationRequest | None = None
        self._submitted: Any = None

    def connect(self, life: ServerIncarnation) -> None:
        self._sampler.connect(life)

    def disconnect(self) -> int | None:
        """Windows taken from replay; none while it is not known yet."""
        return self._sampler.disconnect()

    def work(self) -> None:
        experiment, plan = self._experiment, self._plan
        spec = make_envs(experiment).training.spec
        background = self._background
        states = RestartStates(self._run_dir / STATE / self._name, background, self._disk)
        learner = Learner(experiment, plan, spec, self._name, self._run_dir / "reports")
        like = jax.eval_shape(lambda: Learner.initial_state(experiment, spec, self._name))
        held = states.newest(like, self._last_reported)
        if held is not None:
            learner.resume(held)
        sampler = self._sampler
        sampler.open(spec.state_size + spec.action_size, learner.updates * plan.windows_per_update)

        def keep() -> None:
            part = snapshots.Part(self._run_dir, learner.updates, learner_role(self._name))
            if learner.updates not in plan.snapshot_updates or part.sealed:
                states.offer(learner.updates, learner.state)
                return
            # Waited for, unlike its own state: a snapshot without one learner's part would never be whole.
            self._wait_for_room()
            began = time.monotonic()
            state = on_host(learner.state)
            background.write(snapshots.write_learner, part, state, time.monotonic() - began)

        try:
            learner.run(
                sample=sampler.sample,
                windows_inserted=sampler.windows_inserted,
                publish=self._publish if self._name == ACTIVE else lambda policy: None,
                snapshot=self._submit,
                keep=keep,
                reporter=self._reporter,
                should_stop=self._stop.is_set,
            )
        finally:
            sampler.close()
            background.wait()
        if learner.updates == plan.updates:
            self._wait_for_room()
            states.keep(learner.updates, learner.state)
            checkpoint.save(self._run_dir / "checkpoints" / self._name, learner.state)

    def republish(self) -> None:
        """The store was lost, and with it the reference to the newest weights, which are here."""
        if self._newest is not None:
            self._store.publish.remote(self._newest)

    def resubmit(self, evaluator: Any) -> None:
        """The evaluator was lost, and perhaps the last snapshot with it."""
        self._evaluator, self._submitted = evaluator, None
        if self._snapshot is not None:
            self._submitted = evaluator.submit.remote(self._snapshot)

    def _publish(self, policy: Policy) -> None:
        if self._published is not None:  # one on its way at a time; where the store hangs, the newest is enough
            ray.wait([self._published], timeout=REMOTE_TIMEOUT_S)
        # In a list, or Ray would send the weights themselves.
        self._newest = Policy(policy.version, [ray.put(policy.params)])
        self._published = self._store.publish.remote(self._newest)

    def _submit(self, policy: Policy) -> None:
        if self._submitted is not None:  # one on its way at a time
            ray.wait([self._submitted], timeout=REMOTE_TIMEOUT_S)
        self._snapshot = EvaluationRequest(self._name, policy, last=policy.version == self._plan.updates)
        self._submitted = self._evaluator.submit.remote(self._snapshot)
