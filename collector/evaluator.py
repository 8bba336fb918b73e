"""The evaluator: any learner's policy, deterministic, on fresh episodes with the same keys for all."""

import threading
from collections import deque
from collections.abc import Callable, Collection
from functools import lru_cache
from typing import NamedTuple

import jax
import jax.numpy as jnp

from collector.rollout import make_start, make_unroll
from shared.config import Experiment, NetworkConfig
from shared.envs.base import GoalEnv
from shared.metrics import Reporter
from shared.networks import Actor, make_networks
from shared.params import Policy
from shared.plan import Plan
from shared.policy import deterministic_policy
from shared.types import Array, Metrics, Params

_KEY_DOMAIN = 2  # apart from the collectors' and learners' keys
QUEUE_LENGTH = 64  # snapshots; a deep policy is some hundred megabytes


class EvaluationRequest(NamedTuple):
    """A learner's policy to evaluate; `last`: no later one follows."""

    learner: str
    policy: Policy
    last: bool


class EvaluationQueue:
    """Snapshots waiting for the evaluator; when full, the oldest that is no learner's last one is dropped.

    Last ones are never dropped, so the queue may grow past its length by one for each learner.
    """

    def __init__(self, length: int = QUEUE_LENGTH) -> None:
        self._length = length
        self._changed = threading.Condition()
        self._waiting: deque[EvaluationRequest] = deque()
        self.dropped = 0

    def __len__(self) -> int:
        return len(self._waiting)

    def put(self, snapshot: EvaluationRequest) -> None:
        with self._changed:
            self._waiting.append(snapshot)
            if len(self._waiting) > self._length:
                oldest = next((waiting for waiting in self._waiting if not waiting.last), None)
                if oldest is not None:
                    self._waiting.remove(oldest)
                    self.dropped += 1
            self._changed.notify()

    def get(self, timeout_s: float) -> EvaluationRequest | None:
        """The oldest snapshot; none if none comes within `timeout_s` seconds."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting, timeout_s)
            return self._waiting.popleft() if self._waiting else None


class Evaluator:
    """Rolls out policies of any depth; each network is compiled once."""

    def __init__(self, experiment: Experiment, plan: Plan, env: GoalEnv) -> None:
        self._experiment = experiment
        self._plan = plan
        self._env = env
        self._episodes = experiment.evaluation.episodes
        self._key = jax.random.fold_in(jax.random.key(experiment.seed), _KEY_DOMAIN)

    def evaluate(self, learner: str, policy: Policy) -> Metrics:
        """One row: who was evaluated when, and `make_evaluate`'s metrics.

        Starts and goals depend on the number of updates, not on the learner.
        """
        return {
            "learner": learner,
            "updates": policy.version,
            "env_steps": self._plan.env_steps_at(policy.version),
            **self.measure(self._experiment.learner(learner), policy.params, policy.version),
        }

    def measure(self, network: NetworkConfig, params: Params, draw: int) -> Metrics:
        """Metrics over `episodes` fresh episodes; `draw` chooses their starts and goals."""
        actor = make_networks(network, self._env.spec).actor
        evaluate = _jitted_evaluate(self._env, actor, self._episodes)  # type: ignore[arg-type]
        metrics = evaluate(params, jax.random.fold_in(self._key, draw))
        return {name: float(value) for name, value in metrics.items()}

    def run(
        self,
        snapshots: EvaluationQueue,
        reporter: Reporter,
        should_stop: Callable[[], bool],
        finished: Collection[str] = (),
    ) -> None:
        """Evaluates what comes until the last snapshot of every learner but `finished` is done, or `should_stop()`."""
        unfinished = set(self._experiment.all_learners) - set(finished)
        while unfinished and not should_stop():
            with reporter.waiting("snapshots"):
                snapshot = snapshots.get(timeout_s=0.5)
            if snapshot is None:
                continue
            row = self.evaluate(snapshot.learner, snapshot.policy) | {"dropped": snapshots.dropped}
            reporter.row(row, index=snapshot.policy.version)
            if snapshot.last:
                unfinished.discard(snapshot.learner)


@lru_cache
def _jitted_evaluate(env: GoalEnv, actor: Actor, episodes: int) -> Callable[[Params, Array], Metrics]:
    return jax.jit(make_evaluate(env, actor, episodes))


def make_evaluate(env: GoalEnv, actor: Actor, episodes: int) -> Callable[[Params, Array], Metrics]:
    """`evaluate(params, key) -> metrics` over one episode of each of `episodes` environments.

    time_at_goal: environment steps of an episode within the goal radius; success_rate: share of episodes
    with at least one; final_distance: after the episode's last step, in the goal's units. The first two
    also for the easy and the hard radius, where the environment has them: time_at_goal_easy and so on.
    An episode that breaks ends there, not at the goal; its final distance is the last finite one, as where
    physics diverges. One that was not finite from its start has none, and is left out of that mean.
    """
    spec = env.spec
    named = {"": spec.goal_radius, "_easy": spec.easy_radius, "_hard": spec.hard_radius}
    radii = {suffix: radius for suffix, radius in named.items() if radius is not None}
    start = make_start(env, episodes)
    unroll = make_unroll(env, deterministic_policy(actor), spec.episode_length)

    def evaluate(params: Params, key: Array) -> Metrics:
        start_key, unroll_key = jax.random.split(key)
        _, seen = unroll(params, jnp.zeros((), jnp.int32), start(start_key), unroll_key)
        ended = jnp.cumsum(seen.done, axis=0) - seen.done  # episodes ended before this step
        first = ended == 0
        metrics: Metrics = {}
        for suffix, radius in radii.items():
            at_goal = first & ~seen.broken & (seen.distance < radius)
            metrics[f"time_at_goal{suffix}"] = jnp.mean(jnp.sum(at_goal, axis=0))
            metrics[f"success_rate{suffix}"] = jnp.mean(jnp.any(at_goal, axis=0))
        last = first & seen.done & jnp.isfinite(seen.distance)
        return metrics | {
            "final_distance": jnp.mean(seen.distance, where=last),
            "episode_length": jnp.mean(jnp.sum(first, axis=0)),
        }

    return evaluate
