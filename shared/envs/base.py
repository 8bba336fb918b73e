"""The one interface of every environment, and the success that all of them share."""

from typing import Any, NamedTuple, Protocol

import jax.numpy as jnp
from pydantic.dataclasses import dataclass

from shared.types import Array


@dataclass(frozen=True)
class EnvSpec:
    """Facts that travel with an environment; sizes are numbers of floats, lengths environment steps."""

    state_size: int
    goal_size: int
    action_size: int
    goal_indices: tuple[int, ...]  # where the state holds what a goal names
    episode_length: int
    goal_radius: float  # in the units of the goal
    num_cells: int  # cells of goal space that a policy can reach: state coverage counts these


class EnvState(NamedTuple):
    """One environment between two steps. Batches carry a leading `[N]`.

    `physics`: whatever the environment needs to go on. `state` `[S]`: what the policy sees; never holds the
    commanded goal. `goal` `[G]`. `terminated` `[]` bool: the episode ended by itself (truncation at
    `episode_length` is the rollout's business).
    """

    physics: Any
    state: Array
    goal: Array
    terminated: Array


class GoalEnv(Protocol):
    """A goal-conditioned environment as pure functions of one environment; callers `vmap` them."""

    @property
    def spec(self) -> EnvSpec: ...

    def reset(self, key: Array) -> EnvState:
        """A new start and a new goal, both drawn from `key`."""
        ...

    def step(self, env_state: EnvState, action: Array) -> EnvState:
        """`action` `[A]` in [-1, 1]. The goal stays."""
        ...

    def cell(self, goal: Array) -> Array:
        """The cell `[...]` int32 in 0..num_cells-1 of points of goal space `[..., G]`."""
        ...


def goal_distance(spec: EnvSpec, state: Array, goal: Array) -> Array:
    """Euclidean distance `[...]` between `state` `[..., S]` and `goal` `[..., G]`, in the goal's units."""
    return jnp.linalg.norm(jnp.asarray(state)[..., jnp.array(spec.goal_indices)] - goal, axis=-1)
