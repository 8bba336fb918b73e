"""The evaluator: measures every learner's deterministic policy on fresh episodes, with the same keys for all."""

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

_KEY_DOMAIN = 2  # separates the evaluator's keys from those of collectors and learners
QUEUE_LENGTH = 64  # requests; a deep policy takes some hundred megabytes


class EvaluationRequest(NamedTuple):
    """A learner's policy to evaluate; `last` marks the final policy of the learner."""

    learner: str
    policy: Policy
    last: bool


class EvaluationQueue:
    """Bounded queue of requests. A full queue drops its oldest request that is not a learner's last.

    Last requests are never dropped, so the queue may exceed its length by one for each learner.
    """

    def __init__(self, length: int = QUEUE_LENGTH) -> None:
        self._length = length
        self._changed = threading.Condition()
        self._waiting: deque[EvaluationRequest] = deque()
        self.dropped = 0

    def __len__(self) -> int:
        return len(self._waiting)

    def put(self, request: EvaluationRequest) -> None:
        with self._changed:
            self._waiting.append(request)
            if len(self._waiting) > self._length:
                oldest = next((waiting for waiting in self._waiting if not waiting.last), None)
                if oldest is not None:
                    self._waiting.remove(oldest)
                    self.dropped += 1
            self._changed.notify()

    def get(self, timeout_s: float) -> EvaluationRequest | None:
        """Returns the oldest request, or None if no request comes within `timeout_s` seconds."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting, timeout_s)
            return self._waiting.popleft() if self._waiting else None


class Evaluator:
    """Evaluates policies of any depth; each network is compiled once."""

    def __init__(self, experiment: Experiment, plan: Plan, env: GoalEnv) -> None:
        self._experiment = experiment
        self._plan = plan
        self._env = env
        self._episodes = experiment.evaluation.episodes
        self._key = jax.random.fold_in(jax.random.key(experiment.seed), _KEY_DOMAIN)

    def evaluate(self, learner: str, policy: Policy) -> Metrics:
        """Returns one row: learner, updates, environment steps, and the metrics of `make_evaluate`.

        Starts and goals depend on the number of updates, not on the learner.
        """
        return {
            "learner": learner,
            "updates": policy.version,
            "env_steps": self._plan.env_steps_at(policy.version),
            **self.measure(self._experiment.learner(learner), policy.params, policy.version),
        }

    def measure(self, network: NetworkConfig, params: Params, draw: int) -> Metrics:
        """Returns metrics over fresh episodes of the evaluation; `draw` chooses their starts and goals."""
        actor = make_networks(network, self._env.spec).actor
        evaluate = _jitted_evaluate(self._env, actor, self._episodes)  # type: ignore[arg-type]
        metrics = evaluate(params, jax.random.fold_in(self._key, draw))
        return {name: float(value) for name, value in metrics.items()}

    def run(
        self,
        queue: EvaluationQueue,
        reporter: Reporter,
        should_stop: Callable[[], bool],
        finished: Collection[str] = (),
    ) -> None:
        """Evaluates requests until the last one of every learner is done or `should_stop()`.

        `finished` names learners whose last policy was evaluated before.
        """
        unfinished = set(self._experiment.all_learners) - set(finished)
        while unfinished and not should_stop():
            with reporter.waiting("policies"):
                request = queue.get(timeout_s=0.5)
            if request is None:
                continue
            row = self.evaluate(request.learner, request.policy) | {"dropped": queue.dropped}
            reporter.row(row, index=request.policy.version)
            if request.last:
                unfinished.discard(request.learner)


@lru_cache
def _jitted_evaluate(env: GoalEnv, actor: Actor, episodes: int) -> Callable[[Params, Array], Metrics]:
    return jax.jit(make_evaluate(env, actor, episodes))


def make_evaluate(env: GoalEnv, actor: Actor, episodes: int) -> Callable[[Params, Array], Metrics]:
    """Returns `evaluate(params, key) -> metrics`, means over one episode of each of `episodes` environments.

    time_at_goal: environment steps of an episode within the goal radius. success_rate: share of episodes with at
    least one such step. final_distance: distance after the last step, in the goal's units. The first two exist for the
    easy and the hard radius, too, if the environment has them: time_at_goal_easy and so on.

    An episode that breaks ends at that step, outside of the goal; its final distance is its last finite one. An episode
    without any finite distance is left out of the mean.
    """
    spec = env.spec
    named = {"": spec.goal_radius, "_easy": spec.easy_radius, "_hard": spec.hard_radius}
    radii = {suffix: radius for suffix, radius in named.items() if radius is not None}
    start = make_start(env, episodes)
    unroll = make_unroll(env, deterministic_policy(actor), spec.episode_length)

    def evaluate(params: Params, key: Array) -> Metrics:
        start_key, unroll_key = jax.random.split(key)
        _, made = unroll(params, jnp.zeros((), jnp.int32), start(start_key), unroll_key)
        ended = jnp.cumsum(made.done, axis=0) - made.done  # episodes ended before this step
        first = ended == 0
        metrics: Metrics = {}
        for suffix, radius in radii.items():
            at_goal = first & ~made.broken & (made.distance < radius)
            metrics[f"time_at_goal{suffix}"] = jnp.mean(jnp.sum(at_goal, axis=0))
            metrics[f"success_rate{suffix}"] = jnp.mean(jnp.any(at_goal, axis=0))
        last = first & made.done & jnp.isfinite(made.distance)
        return metrics | {
            "final_distance": jnp.mean(made.distance, where=last),
            "episode_length": jnp.mean(jnp.sum(first, axis=0)),
        }

    return evaluate
