"""Breaks of an environment: the step and the number that was not finite, and how many breaks a run bears."""

from collections import deque
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from collector.rollout import Unroll, first_not_finite
from shared.envs.base import EnvSpec
from shared.errors import EnvironmentBroken
from shared.plan import Plan
from shared.position import Position
from shared.types import Array

SPARE_PART = 10  # breaks may cost a run the windows of a tenth of its unrolls, which it makes up for
MIN_JUDGED_UNROLLS = 10  # fewer say little about a few environments


class Break(NamedTuple):
    """The first broken step of an unroll, three int32 `[]`. It means nothing if no step broke.

    `environment`: number of the environment. `step`: number of the step in its episode, from 1. `entry`: index of the
    first number that is not finite among state `[S]` and goal `[G]` before the step, action `[A]`, state `[S]` after
    the step, and distance.
    """

    environment: Array
    step: Array
    entry: Array


def find_first(unroll: Unroll, broken: Array) -> Break:
    """Returns the first of the `broken` `[T, N]` steps of an unroll."""
    first = jnp.argmax(jnp.ravel(broken))

    def at_first(column: Array) -> Array:
        return column.reshape(-1, *column.shape[2:])[first]

    before = jnp.concatenate([at_first(unroll.rows.state), at_first(unroll.goal)])
    start = first_not_finite(before)
    entry = jnp.where(start < len(before), start, len(before) + at_first(unroll.entry))
    return Break(first % broken.shape[1], at_first(unroll.episode_step) + 1, entry)


class _Part(NamedTuple):
    """Numbers of a step, in the order of `Break.entry`; a message says when they were made, and the remedy."""

    name: str
    size: int
    when: str
    remedy: str


def _parts(spec: EnvSpec) -> list[_Part]:
    finite = "return finite numbers; with simulated physics, try a smaller env_options.physics_dt"
    policy = "the policy diverges: lower algorithm.actor_learning_rate or set algorithm.max_gradient_norm"
    before, at, after = "after a reset", "at step {} of an episode", "after step {} of an episode"
    # A broken step ends its episode, so numbers before a step are not finite only if a reset returned them.
    return [
        _Part("state", spec.state_size, before, f"make its reset {finite}"),
        _Part("goal", spec.goal_size, before, f"make its reset {finite}"),
        _Part("action", spec.action_size, at, policy),
        _Part("state", spec.state_size, after, f"make its step {finite}"),
        _Part("distance", 1, after, "make its distance return a finite number, and its step a finite goal"),
    ]


def explain(env: str, spec: EnvSpec, found: Break, role: str, consequence: str) -> str:
    """Returns one line: the environment, the step and the entry that broke, the consequence, the remedy.

    Args:
        env: the environment's key in the experiment and its id.
        spec: the environment's facts.
        found: the broken step to name.
        role: the role that stepped the environment.
        consequence: the harm to the run.
    """
    entry = int(found.entry)
    for part in _parts(spec):
        if entry < part.size:
            break
        entry -= part.size
    name = part.name if part.name == "distance" else f"{part.name}[{entry}]"
    where = f"{part.when.format(int(found.step))} (environment {int(found.environment)} of {role})"
    return f"{env}: {name} is not finite {where}; {consequence}; {part.remedy}"


class BreakWatch:
    """Judges the environment of one collector after each unroll."""

    def __init__(self, env_id: str, spec: EnvSpec, plan: Plan, environments: int, role: str) -> None:
        """`environments`: number of environments of the collector; `role`: its name."""
        self._env, self._spec, self._plan = f"env: {env_id}", spec, plan
        self._environments, self._role = environments, role
        self._spare = max(plan.unrolls // SPARE_PART, plan.chunks_per_window) * environments
        judged = min(max(plan.chunks_per_window, MIN_JUDGED_UNROLLS), plan.unrolls)
        self._void: deque[int] = deque(maxlen=judged)  # void chunks of each of the newest unrolls
        self._ended: deque[int] = deque(maxlen=judged)  # episodes that ended in each of them
        self._newest: Break | None = None

    def check(self, void: int, ended: int, first: Break | None, position: Position) -> None:
        """Takes one more unroll into account.

        Args:
            void: number of its void chunks.
            ended: number of the episodes that ended in it.
            first: its first broken step; none if no step broke.
            position: the collector's position after it.

        Raises:
            EnvironmentBroken: Most chunks of the newest unrolls are void. Or void chunks have cost the run more windows
                than it makes up for. Or every episode of the newest unrolls ended with its first step.
        """
        self._void.append(void)
        self._ended.append(ended)
        self._newest = first or self._newest
        unrolls = len(self._void)
        enough, chunks = unrolls == self._void.maxlen, unrolls * self._environments
        if enough and sum(self._void) > chunks / 2:
            self._end(f"{sum(self._void):,} of the newest {chunks:,} chunks hold such a step and are left out")
        lost = lost_windows(position, self._environments, self._plan.chunks_per_window)
        if lost > self._spare:
            self._end(f"such steps have cost {lost:,} windows, and the run makes up for {self._spare:,} at most")
        if enough and sum(self._ended) == chunks * self._plan.unroll_length:
            raise EnvironmentBroken(
                f"{self._env}: all {sum(self._ended):,} episodes of the newest {unrolls} unrolls of {self._role} ended "
                "with their first step, so no row has a later one as its goal; set terminated only where an episode "
                "ends by itself"
            )

    def check_cells(self, steps: int, visits: Array) -> None:
        """Raises EnvironmentBroken unless `visits` `[num_cells]` counts each of the `steps` of an unroll."""
        if outside := steps - int(np.asarray(visits).sum()):
            raise EnvironmentBroken(
                f"{self._env}: its cell returned a number outside of 0 to {self._spec.num_cells - 1} for {outside:,} "
                f"of {steps:,} steps of an unroll of {self._role}; correct cell, or num_cells in its spec"
            )

    def _end(self, consequence: str) -> None:
        """Raises EnvironmentBroken. A restarted collector, which has seen no break, leaves it to the next break."""
        if self._newest is not None:
            raise EnvironmentBroken(explain(self._env, self._spec, self._newest, self._role, consequence))


def lost_windows(position: Position, environments: int, chunks_per_window: int) -> int:
    """Returns the windows that void chunks have cost a collector so far; windows lost to its restarts do not count."""
    incarnations = max(position.windows.number + 2 - position.unrolls, 1)  # each but the first skips a number
    ends = position.unrolls - incarnations * (chunks_per_window - 1)  # unrolls that would end a window
    return max(ends * environments - position.windows.made, 0)
