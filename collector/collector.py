"""The collector: unroll after unroll with the newest policy, into replay."""

import time
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from collector.rollout import RolloutState, make_start, make_unroll
from shared.config import Experiment
from shared.envs.base import GoalEnv
from shared.metrics import Reporter
from shared.networks import make_networks
from shared.params import Policy
from shared.plan import Plan
from shared.policy import PolicyFunction, stochastic_policy
from shared.replay.codec import Columns, pack
from shared.types import Array, Metrics, Params


class Collected(NamedTuple):
    """`columns` `[N, T, ...]` on the host, ready to insert."""

    columns: Columns
    metrics: Metrics


class Collector:
    """Steps `environments` environments. Knows neither Ray nor Reverb; `index` tells collectors apart."""

    def __init__(self, experiment: Experiment, plan: Plan, env: GoalEnv, index: int) -> None:
        config = experiment.collector
        self._plan = plan
        self._environments = config.environments
        key = jax.random.fold_in(jax.random.key(experiment.seed), index)
        start_key, self._key = jax.random.split(jax.random.fold_in(key, 1))
        self._state = jax.jit(make_start(env, config.environments))(start_key)
        policy = stochastic_policy(make_networks(config, env.spec).actor)
        self._collect = jax.jit(make_collect(env, policy, plan.unroll_length, experiment.env_options.fixed_goals))
        self.unrolls = 0
        self.visits = np.zeros(env.spec.num_cells, np.int64)
        """Steps spent in each cell of goal space so far."""

    def collect(self, policy: Policy) -> Collected:
        """One unroll with `policy`."""
        self._key, key = jax.random.split(self._key)
        self._state, columns, visits, metrics = self._collect(policy.params, policy.version, self._state, key)
        columns = Columns(*jax.device_get(columns))
        self.visits += np.asarray(visits)
        self.unrolls += 1
        return Collected(columns, {name: float(value) for name, value in metrics.items()} | self._counts())

    def run(
        self,
        pull: Callable[[int], Policy | None],
        insert: Callable[[Columns], object],
        reporter: Reporter,
        should_stop: Callable[[], bool],
    ) -> None:
        """Collects until the budget is spent or `should_stop()`.

        `pull(version)` gives the newest policy if it is newer than `version`; `insert` blocks while replay
        is full.
        """
        reporter.filling = True
        policy = self._first_policy(pull, reporter, should_stop)
        while policy is not None and self.unrolls < self._plan.unrolls and not should_stop():
            collected = self.collect(policy)
            with reporter.waiting("replay full"):
                insert(collected.columns)
            with reporter.waiting("weights"):
                newest = pull(policy.version)
            lag = newest.version - policy.version if newest else 0
            reporter.filling = self.unrolls < self._plan.chunks_per_window
            reporter.row(collected.metrics | {"policy_lag": lag, "policy_version": policy.version})
            policy = newest or policy

    @staticmethod
    def _first_policy(
        pull: Callable[[int], Policy | None], reporter: Reporter, should_stop: Callable[[], bool]
    ) -> Policy | None:
        with reporter.waiting("weights"):
            while (policy := pull(-1)) is None and not should_stop():
                time.sleep(0.05)
        return policy

    def _counts(self) -> Metrics:
        return progress(self.unrolls, self._environments * self._plan.unroll_length, self.visits)


def progress(unrolls: int, steps: int, visits: np.ndarray) -> Metrics:
    """What is reported of `unrolls` unrolls with `steps` environment steps each."""
    return {"unrolls": unrolls, "env_steps": unrolls * steps, "visits": visits.tolist(), **coverage(visits)}


def make_count(env: GoalEnv) -> Callable[[Array], jax.Array]:
    """`count(floats [..., S + A]) -> [num_cells]`: the steps in each cell of goal space."""
    spec = env.spec

    def count(floats: Array) -> jax.Array:
        cells = env.cell(floats[..., jnp.array(spec.goal_indices)])
        return jnp.bincount(cells.ravel(), length=spec.num_cells)

    return count


def make_collect(
    env: GoalEnv, policy: PolicyFunction, length: int, fixed_goals: bool = False
) -> Callable[[Params, Array, RolloutState, Array], tuple[RolloutState, Columns, jax.Array, Metrics]]:
    """`collect(params, version, state, key) -> (state, columns [N, T, ...], visits [num_cells], metrics)`."""
    unroll = make_unroll(env, policy, length, fixed_goals)
    count = make_count(env)
    spec = env.spec

    def collect(
        params: Params, version: Array, state: RolloutState, key: Array
    ) -> tuple[RolloutState, Columns, jax.Array, Metrics]:
        state, seen = unroll(params, version, state, key)
        columns = jax.tree.map(lambda x: jnp.swapaxes(x, 0, 1), pack(seen.rows))
        metrics = {
            "collector/at_goal": jnp.mean(seen.distance < spec.goal_radius),
            "collector/distance": jnp.mean(seen.distance),
            "collector/episodes_ended": jnp.sum(seen.done),
        }
        return state, columns, count(columns.floats), metrics

    return collect


def coverage(visits: np.ndarray) -> Metrics:
    """Share of goal space's cells visited, and the visits' entropy as a share of its maximum."""
    share = visits / max(visits.sum(), 1)
    seen = share[share > 0]
    entropy = -np.sum(seen * np.log(seen)) / np.log(max(len(visits), 2))
    return {"coverage": float(np.mean(visits > 0)), "coverage_entropy": float(entropy)}
