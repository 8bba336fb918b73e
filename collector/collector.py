"""The collector: steps environments with the newest policy and inserts one unroll after the other into replay."""

import math
import time
from collections.abc import Callable
from functools import lru_cache
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from collector.breaks import Break, BreakWatch, find_first
from collector.rollout import RolloutState, make_start, make_unroll
from shared.config import ACTIVE, Experiment
from shared.envs.base import GoalEnv
from shared.metrics import Reporter
from shared.params import Policy
from shared.plan import Plan
from shared.policy import PolicyFunction
from shared.position import Position, start_position
from shared.programs import keep_program
from shared.replay.codec import Columns, pack
from shared.replay.windows import VOID_EPISODE, is_void
from shared.roles import Kind, Role
from shared.types import Array, Metrics, Params


class Collected(NamedTuple):
    """Unroll `number`: `columns` `[N, T, ...]` on the host, ready to insert, its metrics and its first broken step."""

    number: int
    columns: Columns
    metrics: Metrics
    first_break: Break | None = None


class Made(NamedTuple):
    """An unroll on the device: `columns` `[N, T, ...]`, `visits` `[num_cells]`, metrics, first broken step."""

    columns: Columns
    visits: jax.Array
    metrics: Metrics
    first_break: Break


CollectFunction = Callable[[Params, Any, RolloutState, Array], tuple[RolloutState, Made]]


class CollectorState(NamedTuple):
    """The state of a collector in a snapshot, besides its position. `key` is split by every unroll."""

    rollout: RolloutState
    key: Array


class _Pending(NamedTuple):
    """An unroll in progress on the device, with the policy of `version`; `state` is the collector's after it."""

    version: int
    state: CollectorState
    made: Made


@lru_cache  # by the environment's identity, which its type says nothing of
def _jitted_collect(
    env: GoalEnv, policy: PolicyFunction, length: int, fixed_goals: bool
) -> Callable[[Params, Any, CollectorState], tuple[CollectorState, Made]]:
    """Collectors of one process share the compiled function."""
    collect = make_collect(env, policy, length, fixed_goals)

    def advance(params: Params, version: Array, state: CollectorState) -> tuple[CollectorState, Made]:
        key, unroll_key = jax.random.split(state.key)
        rollout, made = collect(params, version, state.rollout, unroll_key)
        return CollectorState(rollout, key), made

    return jax.jit(keep_program(advance, env, policy, length, fixed_goals))


@lru_cache
def _jitted_start(env: GoalEnv, environments: int, chunk: int) -> Callable[[Array], RolloutState]:
    return jax.jit(keep_program(make_start(env, environments, chunk), env, environments, chunk))


class Collector:
    """Steps the environments of one collector; `index` tells collectors apart. It imports neither Ray nor Reverb."""

    def __init__(
        self,
        experiment: Experiment,
        plan: Plan,
        env: GoalEnv,
        index: int,
        policy: PolicyFunction,
        position: Position | None = None,
    ) -> None:
        """Starts fresh environments.

        Args:
            env: the training environment.
            index: 0, 1, ... among the run's collectors.
            policy: the policy to act with, given its newest parameters; it decides as many actions at once as the
                collector learner's `algorithm.chunk` says.
            position: the position at which an earlier incarnation ended; this one skips a number of unrolls, so that no
                window spans the environments of two incarnations.
        """
        config = experiment.collector
        self._plan = plan
        self._steps = config.environments * plan.unroll_length
        self._target = plan.windows_after(plan.unrolls) // plan.environments * config.environments
        self.position = position or start_position(config.environments, env.spec.num_cells)
        self.next_number = 0 if position is None else position.windows.number + 2
        fixed_goals = experiment.env_options.fixed_goals
        self._collect = _jitted_collect(env, policy, plan.unroll_length, fixed_goals)  # type: ignore[arg-type]
        key = jax.random.fold_in(jax.random.fold_in(jax.random.key(experiment.seed), index), 1)
        key = jax.random.fold_in(key, self.next_number) if self.next_number else key
        start_key, key = jax.random.split(key)
        chunk = experiment.algorithm_of(ACTIVE).chunk
        rollout = _jitted_start(env, config.environments, chunk)(start_key)  # type: ignore[arg-type]
        # Steps count on from the windows made so far: sample ages are measured against them.
        steps_before = self.position.windows.made // config.environments * plan.unroll_length
        self.state = _commit(CollectorState(rollout._replace(step=rollout.step + steps_before), key))
        self._pending: _Pending | None = None
        role = str(Role(Kind.COLLECTOR, str(index)))
        self._breaks = BreakWatch(experiment.env, env.spec, plan, config.environments, role)

    @property
    def done(self) -> bool:
        """True once every window of the plan is made."""
        return self.position.windows.made >= self._target

    def resume(self, state: CollectorState, position: Position) -> None:
        """Continues from a snapshot, with the same environments and without skipping a number."""
        self.state = _commit(state)
        self.position, self.next_number = position, position.windows.number + 1

    def begin(self, policy: Policy) -> None:
        """Starts an unroll with `policy` and returns while the device computes it."""
        state, made = self._collect(policy.params, np.int32(policy.version), self.state)
        for column in made.columns:
            column.copy_to_host_async()  # type: ignore[union-attr]
        self._pending = _Pending(policy.version, state, made)

    def finish(self) -> Collected:
        """Waits for the unroll that was begun. Raises EnvironmentBroken if a state lies in no cell of goal space."""
        assert self._pending is not None, "finish follows begin"
        (version, self.state, made), self._pending = self._pending, None
        number, columns = self.next_number, Columns(*jax.device_get(made.columns))
        self._breaks.check_cells(self._steps - columns.ints.shape[1] * _num_void(columns), made.visits)
        self.position = self.position.after(number, columns.ints, made.visits, self._plan.chunks_per_window)
        self.next_number = number + 1
        metrics = {name: float(value) for name, value in made.metrics.items()}
        if metrics["collector/broken"] == self._steps:  # there is nothing to average over
            metrics = {name: value for name, value in metrics.items() if not math.isnan(value)}
        first_break = made.first_break if metrics["collector/broken"] else None
        metrics |= progress_metrics(self.position, self._steps) | {"policy_version": version}
        return Collected(number, columns, metrics, first_break)

    def collect(self, policy: Policy) -> Collected:
        """Makes one unroll with `policy`."""
        self.begin(policy)
        return self.finish()

    def run(
        self,
        pull: Callable[[int], Policy | None],
        insert: Callable[[int, Columns], object],
        room: Callable[[], bool],
        reporter: Reporter,
        should_stop: Callable[[], bool],
    ) -> None:
        """Collects until every window of the plan is made or `should_stop()`.

        Args:
            pull: returns the newest policy if it is newer than the version given, else None.
            insert: inserts an unroll by its number; blocks while replay is full.
            room: True if `insert` would not block. The device then computes the next unroll meanwhile; otherwise the
                next unroll waits for the policy that is the newest by then.
            reporter: gets one row per unroll.
            should_stop: asked before each unroll.

        Raises:
            EnvironmentBroken: the environment yields too little; see `BreakWatch`.
        """
        reporter.filling = True
        policy = None if self.done else _on_device(self._first_policy(pull, reporter, should_stop))
        if policy is not None:
            self.begin(policy)
        while policy is not None and self._pending is not None and not should_stop():
            collected = self.finish()
            if not self.done and room():
                self.begin(policy)
            with reporter.waiting("replay full"):
                insert(collected.number, collected.columns)
            with reporter.waiting("weights"):
                policy = _on_device(pull(policy.version)) or policy
            if not self.done and self._pending is None:
                self.begin(policy)
            reporter.filling = not self.position.windows.made
            lag = {"policy_lag": policy.version - collected.metrics["policy_version"]}
            reporter.row(collected.metrics | lag, index=collected.number, position=self.position)
            if not self.done:
                self._check(collected)

    def _check(self, collected: Collected) -> None:
        ended = int(collected.metrics["collector/episodes_ended"])
        self._breaks.check(_num_void(collected.columns), ended, collected.first_break, self.position)

    @staticmethod
    def _first_policy(
        pull: Callable[[int], Policy | None], reporter: Reporter, should_stop: Callable[[], bool]
    ) -> Policy | None:
        with reporter.waiting("weights"):
            while (policy := pull(-1)) is None and not should_stop():
                time.sleep(0.05)
        return policy


def _commit(state: CollectorState) -> CollectorState:
    """Binds a state to its device, as that after an unroll is; else the first unroll would be compiled apart."""
    return jax.device_put(state, jax.local_devices()[0])


def _num_void(columns: Columns) -> int:
    return int(np.sum(is_void(columns.ints)))


def _on_device(policy: Policy | None) -> Policy | None:
    """Copies a policy to the device once; host arrays would be copied at every unroll."""
    return policy and Policy(policy.version, jax.device_put(policy.params))


def progress_metrics(position: Position, unroll_steps: int) -> Metrics:
    """Returns the metrics of a source's progress; an unroll has `unroll_steps` environment steps in all."""
    return {
        "windows": position.windows.made,
        "unrolls": position.unrolls,
        "env_steps": position.unrolls * unroll_steps,
        "visits": position.visits.tolist(),
        **coverage(position.visits),
    }


def make_count(env: GoalEnv) -> Callable[[Array, Array], jax.Array]:
    """Returns `count(floats [..., S + A + G], ints [..., 4]) -> [num_cells]`, the steps in each cell of goal space.

    Steps of void chunks are not counted, nor steps in a cell that does not exist.
    """
    spec = env.spec

    def count(floats: Array, ints: Array) -> jax.Array:
        cells = env.cell(floats[..., jnp.array(spec.goal_indices)])
        ignored = (ints[..., 0] == VOID_EPISODE) | (cells < 0)  # bincount takes a negative one for the first
        cells = jnp.where(ignored, spec.num_cells, cells)  # past the last: not counted
        return jnp.bincount(cells.ravel(), length=spec.num_cells)

    return count


def make_collect(env: GoalEnv, policy: PolicyFunction, length: int, fixed_goals: bool = False) -> CollectFunction:
    """Returns `collect(params, version, state, key) -> (state, Made)`; the caller applies jit.

    An environment that breaks in an unroll makes its whole chunk void, so that replay gets nothing of it. Metrics are
    means over the steps that did not break, NaN if there is none.
    """
    unroll = make_unroll(env, policy, length, fixed_goals)
    count = make_count(env)
    spec = env.spec

    def collect(params: Params, version: Array, state: RolloutState, key: Array) -> tuple[RolloutState, Made]:
        state, made = unroll(params, version, state, key)
        columns = jax.tree.map(lambda x: jnp.swapaxes(x, 0, 1), pack(made.rows))
        columns = _void(columns, jnp.any(made.broken, axis=0))
        metrics = {
            "collector/at_goal": jnp.mean(made.distance < spec.goal_radius, where=~made.broken),
            "collector/distance": jnp.mean(made.distance, where=~made.broken),
            "collector/episodes_ended": jnp.sum(made.done),
            "collector/broken": jnp.sum(made.broken),
        }
        first_break = find_first(made, made.broken)
        return state, Made(columns, count(*columns), metrics, first_break)

    return collect


def _void(columns: Columns, broken: Array) -> Columns:
    """Empties the chunks of `broken` `[N]` environments in `columns` `[N, T, ...]`; steps and versions stay."""
    floats = jnp.where(broken[:, None, None], 0, columns.floats)
    episode = jnp.where(broken[:, None], VOID_EPISODE, columns.ints[..., 0])
    return Columns(floats, jnp.asarray(columns.ints).at[..., 0].set(episode))


def coverage(visits: np.ndarray) -> Metrics:
    """Returns the share of goal space's cells visited, and the entropy of visits as a share of its maximum."""
    share = visits / max(visits.sum(), 1)
    visited = share[share > 0]
    entropy = -np.sum(visited * np.log(visited)) / np.log(max(len(visits), 2))
    return {"coverage": float(np.mean(visits > 0)), "coverage_entropy": float(entropy)}
