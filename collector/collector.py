"""The collector: unroll after unroll with the newest policy, into replay."""

import time
from collections.abc import Callable
from functools import lru_cache
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from collector.rollout import RolloutState, make_start, make_unroll
from shared.config import Experiment
from shared.envs.base import GoalEnv
from shared.metrics import Reporter
from shared.networks import Actor, make_networks
from shared.params import Policy
from shared.plan import Plan
from shared.policy import PolicyFunction, stochastic_policy
from shared.position import Position, start_position
from shared.replay.codec import Columns, pack
from shared.replay.windows import VOID_EPISODE
from shared.types import Array, Metrics, Params

CollectFunction = Callable[[Params, Any, RolloutState, Array], tuple[RolloutState, Columns, jax.Array, Metrics]]


class Collected(NamedTuple):
    """Unroll `number`: `columns` `[N, T, ...]`, ready to insert."""

    number: int
    columns: Columns
    metrics: Metrics


def progress_metrics(position: Position, unroll_steps: int) -> Metrics:
    """Metrics of a source's progress. `unroll_steps`: environment steps of one unroll of all environments."""
    return {
        "windows": position.windows.made,
        "unrolls": position.unrolls,
        "env_steps": position.unrolls * unroll_steps,
        "visits": position.visits.tolist(),
        **coverage(position.visits),
    }


class CollectorState(NamedTuple):
    """What a snapshot keeps of a collector, besides its position. `key` is split by every unroll."""

    rollout: RolloutState
    key: Array


class _Begun(NamedTuple):
    """An unroll that the device works at, by the policy of `version`; `state`: the collector's after it."""

    version: int
    state: CollectorState
    columns: Columns
    visits: jax.Array
    metrics: Metrics


@lru_cache  # by the environment's identity, which its type says nothing of
def _jitted_collect(
    env: GoalEnv, actor: Actor, length: int, fixed_goals: bool
) -> Callable[[Params, Any, CollectorState], tuple[CollectorState, Columns, jax.Array, Metrics]]:
    """Collectors of one process are compiled once."""
    collect = make_collect(env, stochastic_policy(actor), length, fixed_goals)

    def advance(
        params: Params, version: Array, state: CollectorState
    ) -> tuple[CollectorState, Columns, jax.Array, Metrics]:
        key, unroll_key = jax.random.split(state.key)
        rollout, columns, visits, metrics = collect(params, version, state.rollout, unroll_key)
        return CollectorState(rollout, key), columns, visits, metrics

    return jax.jit(advance)


@lru_cache
def _jitted_start(env: GoalEnv, environments: int) -> Callable[[Array], RolloutState]:
    return jax.jit(make_start(env, environments))


class Collector:
    """Steps `environments` environments. Knows neither Ray nor Reverb; `index` tells collectors apart."""

    def __init__(
        self, experiment: Experiment, plan: Plan, env: GoalEnv, index: int, position: Position | None = None
    ) -> None:
        """`position`: where an earlier life ended; this one has fresh environments and leaves out a number."""
        config = experiment.collector
        self._plan = plan
        self._steps = config.environments * plan.unroll_length
        self._target = plan.windows_after(plan.unrolls) // plan.environments * config.environments
        self.position = position or start_position(config.environments, env.spec.num_cells)
        self.next_number = 0 if position is None else position.windows.number + 2
        actor = make_networks(config, env.spec).actor
        fixed_goals = experiment.env_options.fixed_goals
        self._collect = _jitted_collect(env, actor, plan.unroll_length, fixed_goals)  # type: ignore[arg-type]
        key = jax.random.fold_in(jax.random.fold_in(jax.random.key(experiment.seed), index), 1)
        key = jax.random.fold_in(key, self.next_number) if self.next_number else key
        start_key, key = jax.random.split(key)
        rollout = _jitted_start(env, config.environments)(start_key)  # type: ignore[arg-type]
        # As many steps as windows tell of: sample ages count from there.
        begun = self.position.windows.made // config.environments * plan.unroll_length
        self.state = CollectorState(rollout._replace(step=rollout.step + begun), key)
        self._begun: _Begun | None = None

    @property
    def done(self) -> bool:
        """Every window that the plan asks for is made."""
        return self.position.windows.made >= self._target

    def resume(self, state: CollectorState, position: Position) -> None:
        """From a snapshot: the same environments, in the same life."""
        # Put where a fresh one lies, or the first unroll would be compiled apart from those that follow it.
        self.state = jax.device_put(state)
        self.position, self.next_number = position, position.windows.number + 1

    def begin(self, policy: Policy) -> None:
        """Starts an unroll with `policy`, and returns while the device works at it."""
        state, columns, visits, metrics = self._collect(policy.params, policy.version, self.state)
        for column in columns:
            column.copy_to_host_async()  # type: ignore[union-attr]
        self._begun = _Begun(policy.version, state, columns, visits, metrics)

    def finish_on_device(self) -> Collected:
        """The unroll that was begun; its columns stay where they were made."""
        assert self._begun is not None, "finish follows begin"
        begun, self._begun = self._begun, None
        number, self.state = self.next_number, begun.state
        self.position = self.position.after(
            number, np.asarray(begun.columns.ints), begun.visits, self._plan.chunks_per_window
        )
        self.next_number = number + 1
        metrics = {name: float(value) for name, value in begun.metrics.items()} | progress_metrics(
            self.position, self._steps
        )
        return Collected(number, begun.columns, metrics | {"policy_version": begun.version})

    def finish(self) -> Collected:
        """The unroll that was begun, on the host."""
        collected = self.finish_on_device()
        return collected._replace(columns=Columns(*jax.device_get(collected.columns)))

    def collect(self, policy: Policy) -> Collected:
        """One unroll with `policy`, on the host."""
        self.begin(policy)
        return self.finish()

    def collect_on_device(self, policy: Policy) -> Collected:
        """One unroll with `policy`; its columns stay where they were made."""
        self.begin(policy)
        return self.finish_on_device()

    def run(
        self,
        pull: Callable[[int], Policy | None],
        insert: Callable[[int, Columns], object],
        room: Callable[[], bool],
        reporter: Reporter,
        should_stop: Callable[[], bool],
    ) -> None:
        """Collects until every window is made or `should_stop()`.

        `pull(version)` gives the newest policy if it is newer than `version`; `insert(number, columns)` blocks
        while replay is full. While `room()` says that it will not, the device works at the next unroll meanwhile;
        else that one waits for the policy that will be the newest by then.
        """
        reporter.filling = True
        policy = None if self.done else _on_device(self._first_policy(pull, reporter, should_stop))
        if policy is not None:
            self.begin(policy)
        while policy is not None and self._begun is not None and not should_stop():
            collected = self.finish()
            if not self.done and room():
                self.begin(policy)
            with reporter.waiting("replay full"):
                insert(collected.number, collected.columns)
            with reporter.waiting("weights"):
                policy = _on_device(pull(policy.version)) or policy
            if not self.done and self._begun is None:
                self.begin(policy)
            reporter.filling = not self.position.windows.made
            lag = {"policy_lag": policy.version - collected.metrics["policy_version"]}
            reporter.row(collected.metrics | lag, index=collected.number, position=self.position)

    @staticmethod
    def _first_policy(
        pull: Callable[[int], Policy | None], reporter: Reporter, should_stop: Callable[[], bool]
    ) -> Policy | None:
        with reporter.waiting("weights"):
            while (policy := pull(-1)) is None and not should_stop():
                time.sleep(0.05)
        return policy


def _on_device(policy: Policy | None) -> Policy | None:
    """Once for each version: every unroll would bring host arrays there again."""
    return policy and Policy(policy.version, jax.device_put(policy.params))


def make_count(env: GoalEnv) -> Callable[[Array, Array], jax.Array]:
    """`count(floats [..., S + A], ints [..., 3]) -> [num_cells]`: the steps in each cell of goal space.

    Those of void chunks are in none.
    """
    spec = env.spec

    def count(floats: Array, ints: Array) -> jax.Array:
        cells = env.cell(floats[..., jnp.array(spec.goal_indices)])
        cells = jnp.where(ints[..., 0] == VOID_EPISODE, spec.num_cells, cells)  # past the last: not counted
        return jnp.bincount(cells.ravel(), length=spec.num_cells)

    return count


def make_collect(env: GoalEnv, policy: PolicyFunction, length: int, fixed_goals: bool = False) -> CollectFunction:
    """`collect(params, version, state, key) -> (state, columns [N, T, ...], visits [num_cells], metrics)`.

    The whole chunk of an environment that broke in this unroll is void, so that nothing of it reaches replay;
    metrics are over the steps that did not break, and NaN where there is none.
    """
    unroll = make_unroll(env, policy, length, fixed_goals)
    count = make_count(env)
    spec = env.spec

    def collect(
        params: Params, version: Array, state: RolloutState, key: Array
    ) -> tuple[RolloutState, Columns, jax.Array, Metrics]:
        state, seen = unroll(params, version, state, key)
        columns = jax.tree.map(lambda x: jnp.swapaxes(x, 0, 1), pack(seen.rows))
        columns = _void(columns, jnp.any(seen.broken, axis=0))
        metrics = {
            "collector/at_goal": jnp.mean(seen.distance < spec.goal_radius, where=~seen.broken),
            "collector/distance": jnp.mean(seen.distance, where=~seen.broken),
            "collector/episodes_ended": jnp.sum(seen.done),
            "collector/broken": jnp.sum(seen.broken),
        }
        return state, columns, count(*columns), metrics

    return collect


def _void(columns: Columns, broken: Array) -> Columns:
    """`columns` `[N, T, ...]` with nothing in the chunks of `broken` `[N]` environments but steps and versions."""
    floats = jnp.where(broken[:, None, None], 0, columns.floats)
    episode = jnp.where(broken[:, None], VOID_EPISODE, columns.ints[..., 0])
    return Columns(floats, jnp.asarray(columns.ints).at[..., 0].set(episode))


def coverage(visits: np.ndarray) -> Metrics:
    """Share of goal space's cells visited, and the visits' entropy as a share of its maximum."""
    share = visits / max(visits.sum(), 1)
    seen = share[share > 0]
    entropy = -np.sum(seen * np.log(seen)) / np.log(max(len(visits), 2))
    return {"coverage": float(np.mean(visits > 0)), "coverage_entropy": float(entropy)}
