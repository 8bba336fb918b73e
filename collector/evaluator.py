"""The evaluator: any learner's policy, deterministic, on fresh episodes with the same keys for all."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from collector.rollout import make_start, make_unroll
from shared.config import Experiment, NetworkConfig
from shared.envs.base import GoalEnv
from shared.networks import Actor, make_networks
from shared.policy import deterministic_policy
from shared.types import Array, Metrics, Params

_KEY_STREAM = 2  # apart from the collectors' and learners' keys


class Evaluator:
    """Rolls out policies of any depth; each network is compiled once."""

    def __init__(self, experiment: Experiment, env: GoalEnv) -> None:
        self._env = env
        self._episodes = experiment.evaluation.episodes
        self._key = jax.random.fold_in(jax.random.key(experiment.seed), _KEY_STREAM)
        self._compiled: dict[Actor, Callable[[Params, Array], Metrics]] = {}

    def evaluate(self, network: NetworkConfig, params: Params, updates: int) -> Metrics:
        """Metrics over `episodes` fresh episodes; starts and goals depend on `updates`, not on the learner."""
        actor = make_networks(network, self._env.spec).actor
        if actor not in self._compiled:
            self._compiled[actor] = jax.jit(make_evaluate(self._env, actor, self._episodes))
        metrics = self._compiled[actor](params, jax.random.fold_in(self._key, updates))
        return {name: float(value) for name, value in metrics.items()}


def make_evaluate(env: GoalEnv, actor: Actor, episodes: int) -> Callable[[Params, Array], Metrics]:
    """`evaluate(params, key) -> metrics` over one episode of each of `episodes` environments.

    time_at_goal: environment steps of an episode within the goal radius; success_rate: share of episodes
    with at least one; final_distance: after the episode's last step, in the goal's units.
    """
    spec = env.spec
    start = make_start(env, episodes)
    unroll = make_unroll(env, deterministic_policy(actor), spec.episode_length)

    def evaluate(params: Params, key: Array) -> Metrics:
        start_key, unroll_key = jax.random.split(key)
        _, seen = unroll(params, jnp.zeros((), jnp.int32), start(start_key), unroll_key)
        ended = jnp.cumsum(seen.done, axis=0) - seen.done  # episodes ended before this step
        first = ended == 0
        at_goal = first & (seen.distance < spec.goal_radius)
        last = first & seen.done
        return {
            "time_at_goal": jnp.mean(jnp.sum(at_goal, axis=0)),
            "success_rate": jnp.mean(jnp.any(at_goal, axis=0)),
            "final_distance": jnp.sum(jnp.where(last, seen.distance, 0)) / episodes,
            "episode_length": jnp.mean(jnp.sum(first, axis=0)),
        }

    return evaluate
