"""The evaluator: measures every learner's policy on fresh episodes, with the same keys for all."""

import math
import threading
from collections import deque
from collections.abc import Callable, Collection, Mapping
from functools import lru_cache
from typing import NamedTuple

import jax
import jax.numpy as jnp

from collector.behaviour import Episodes, Trajectories, as_lists, measure_episodes, summarise
from collector.breaks import Break, explain, find_first
from collector.rollout import make_start_at, make_unroll
from shared.config import Experiment
from shared.envs.base import GoalEnv
from shared.errors import EnvironmentBroken
from shared.metrics import Reporter
from shared.params import Policy
from shared.plan import Plan
from shared.policy import PolicyFunction
from shared.programs import keep_program
from shared.types import Array, Metrics, Params

EPISODES = "episodes"
_KEY_DOMAIN = 2  # separates the evaluator's keys from those of collectors and learners


class EvaluationRequest(NamedTuple):
    """A learner's policy to evaluate; `last` marks the final policy of the learner."""

    learner: str
    policy: Policy
    last: bool


class EvaluationQueue:
    """Queue of requests, bounded in bytes. A full queue drops its oldest requests that are not a learner's last.

    The newest request and last ones are never dropped, so the queue may exceed its bound by one policy of each learner.
    """

    def __init__(self, max_bytes: float = math.inf) -> None:
        """`max_bytes` bounds the policies that wait: each of them takes that much memory in the object store."""
        self._max_bytes = max_bytes
        self._changed = threading.Condition()
        self._waiting: deque[EvaluationRequest] = deque()
        self.dropped = 0

    def __len__(self) -> int:
        return len(self._waiting)

    def put(self, request: EvaluationRequest) -> None:
        with self._changed:
            held = sum(map(_num_bytes, self._waiting)) + _num_bytes(request)
            for waiting in list(self._waiting):
                if held > self._max_bytes and not waiting.last:
                    self._waiting.remove(waiting)
                    held -= _num_bytes(waiting)
                    self.dropped += 1
            self._waiting.append(request)
            self._changed.notify_all()

    def get(self, timeout_s: float) -> EvaluationRequest | None:
        """Returns the oldest request, or None if no request comes within `timeout_s` seconds."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting, timeout_s)
            request = self._waiting.popleft() if self._waiting else None
            self._changed.notify_all()
            return request

    def wait_taken(self, learner: str, timeout_s: float) -> bool:
        """Waits until no request of `learner` waits; False if one still waits after `timeout_s` seconds."""
        with self._changed:
            return self._changed.wait_for(
                lambda: all(waiting.learner != learner for waiting in self._waiting), timeout_s
            )


def _num_bytes(request: EvaluationRequest) -> int:
    return sum(leaf.nbytes for leaf in jax.tree.leaves(request.policy.params))


class Evaluator:
    """Evaluates policies of any depth; each network is compiled once."""

    def __init__(
        self, experiment: Experiment, plan: Plan, envs: Mapping[str, GoalEnv], policies: Mapping[str, PolicyFunction]
    ) -> None:
        """Evaluates nothing yet.

        Args:
            envs: the environments of the evaluation, by name.
            policies: the policy to act with, given its parameters, for each learner that is evaluated; it decides as
                many actions at once as the learner's `chunk` says.
        """
        self._experiment, self._policies = experiment, policies
        self._plan = plan
        self._envs = envs
        self._episodes = experiment.evaluation.episodes

    def evaluate(self, learner: str, policy: Policy) -> Metrics:
        """Returns one row: learner, updates, environment steps, the metrics of `summarise`, and `episodes`.

        Starts and goals depend on the number of updates, not on the learner. `episodes`: columns of `measure_episodes`.
        Metrics and episodes of the second environment and later ones have names that begin with `within(environment)`.
        """
        return {
            "learner": learner,
            "updates": policy.version,
            "env_steps": self._plan.env_steps_at(policy.version),
            **self.measure_everywhere(learner, policy.params, policy.version),
        }

    def measure_everywhere(self, learner: str, params: Params, draw: int) -> Metrics:
        """Returns the metrics and episodes of `evaluate` in every environment, by name; see `measure`."""
        row: Metrics = {}
        for index, (name, env) in enumerate(self._envs.items()):
            episodes = self.measure(learner, params, draw, name)
            prefix = within(name) if index else ""
            found = summarise(env.spec, episodes) | {EPISODES: as_lists(episodes)}
            row |= {prefix + metric: value for metric, value in found.items()}
        return row

    def measure(self, learner: str, params: Params, draw: int, env_id: str | None = None) -> Episodes:
        """Returns fresh episodes of the evaluation; `draw` chooses their starts, goals and samples.

        `env_id`: the environment, one of the evaluation's; none: the first one. Raises EnvironmentBroken if every
        episode breaks: then no metric means what its name says.
        """
        name = env_id or next(iter(self._envs))
        env = self._envs[name]
        policy, chunk = self._policies[learner], self._experiment.algorithm_of(learner).chunk
        evaluate = _jitted_evaluate(env, policy, self._episodes, chunk)  # type: ignore[arg-type]
        trajectories, first_break = jax.device_get(evaluate(params, _key(self._experiment.seed, draw)))
        episodes = measure_episodes(env, trajectories)
        if episodes["broken"].all():
            where = f"{'evaluation.envs' if self._experiment.evaluation.envs else 'env'}: {name}"
            consequence = f"all {self._episodes} episodes of an evaluation broke"
            raise EnvironmentBroken(explain(where, env.spec, first_break, "the evaluator", consequence))
        return episodes

    def run(
        self,
        queue: EvaluationQueue,
        reporter: Reporter,
        should_stop: Callable[[], bool],
        finished: Collection[str] = (),
        evaluate: Callable[[str, Policy], Metrics] | None = None,
    ) -> None:
        """Evaluates requests until the last one of every learner is done or `should_stop()`.

        Args:
            queue: holds the requests.
            reporter: gets one row per request.
            should_stop: asked before each request, and twice a second while there is none.
            finished: names of learners whose last policy was evaluated before.
            evaluate: returns the row of a learner's policy; none: `self.evaluate`.
        """
        evaluate = evaluate or self.evaluate
        unfinished = set(self._experiment.all_learners) - set(finished)
        while unfinished and not should_stop():
            with reporter.waiting("policies"):
                request = queue.get(timeout_s=0.5)
            if request is None:
                continue
            row = evaluate(request.learner, request.policy) | {"dropped": queue.dropped}
            reporter.row(row, index=request.policy.version)
            if request.last:
                unfinished.discard(request.learner)


def holds_episodes(metric: str) -> bool:
    """True for the name of a table of episodes, of any environment."""
    return metric.rpartition("/")[2] == EPISODES


def within(env_id: str) -> str:
    """Returns how names of metrics begin that are of the environment `env_id`, which is not the evaluation's first."""
    return f"in/{env_id}/"


def start_keys(seed: int, draw: int, episodes: int) -> jax.Array:
    """Returns the keys `[episodes]` from which an evaluation draws its starts and goals; see `Evaluator.measure`."""
    return _split(_key(seed, draw), episodes)[0]


def _key(seed: int, draw: int) -> jax.Array:
    return jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), _KEY_DOMAIN), draw)


def _split(key: Array, episodes: int) -> tuple[jax.Array, jax.Array]:
    """Returns the keys `[episodes]` of the starts, and a key for the steps. `key` is consumed."""
    start_key, unroll_key = jax.random.split(key)
    return jax.random.split(start_key, episodes), unroll_key


@lru_cache
def _jitted_evaluate(
    env: GoalEnv, policy: PolicyFunction, episodes: int, chunk: int
) -> Callable[[Params, Array], tuple[Trajectories, Break]]:
    return jax.jit(keep_program(make_evaluate(env, policy, episodes, chunk), env, policy, episodes, chunk))


def make_evaluate(
    env: GoalEnv, policy: PolicyFunction, episodes: int, chunk: int = 1
) -> Callable[[Params, Array], tuple[Trajectories, Break]]:
    """Returns `evaluate(params, key) -> (trajectories, first break)` of one episode of each of `episodes` environments.

    `policy` decides `chunk` actions at once. An episode that breaks ends at that step, outside of the goal.
    """
    spec = env.spec
    start_at = make_start_at(env)
    unroll = make_unroll(env, policy, spec.episode_length, measure=True)

    def evaluate(params: Params, key: Array) -> tuple[Trajectories, Break]:
        starts, unroll_key = _split(key, episodes)
        _, made = unroll(params, jnp.zeros((), jnp.int32), start_at(starts, chunk), unroll_key)
        ended = jnp.cumsum(made.done, axis=0) - made.done  # episodes ended before this step
        first = ended == 0
        before = jnp.asarray(made.rows.state)[..., jnp.array(spec.goal_indices)]
        after = jnp.concatenate([before[1:], before[-1:]])
        after = jnp.where(made.done[..., None], jnp.where(made.broken[..., None], before, made.rows.final), after)
        points = jnp.concatenate([before[:1], after])
        trajectories = Trajectories(points, made.goal[0], made.distance, first, made.broken, made.measures)
        return trajectories, find_first(made, first & made.broken)

    return evaluate
