"""The one interface of every environment, and the distance that most of them share."""

from typing import Any, NamedTuple, Protocol, runtime_checkable

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
    goal_radius: float  # in the units of `GoalEnv.distance`, as are the other two
    num_cells: int  # cells of goal space that a policy can reach: state coverage counts these
    easy_radius: float | None = None  # wider, for tasks whose authors report it too
    hard_radius: float | None = None  # narrower
    backend: str = "jax"  # the physics: plain JAX, or one of brax's pipelines


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


@runtime_checkable
class GoalEnv(Protocol):
    """A goal-conditioned environment as pure functions of one environment; callers `vmap` them."""

    spec: EnvSpec

    def reset(self, key: Array) -> EnvState:
        """A new start and a new goal, both drawn from `key`."""
        ...

    def step(self, env_state: EnvState, action: Array) -> EnvState:
        """`action` `[A]` in [-1, 1]. The goal stays, unless it is tied to something that moves."""
        ...

    def cell(self, goal: Array) -> Array:
        """The cell `[...]` int32 in 0..num_cells-1 of points of goal space `[..., G]`."""
        ...

    def distance(self, state: Array, goal: Array) -> Array:
        """How far `[...]` `state` `[..., S]` is from `goal` `[..., G]`; success is less than a radius of the spec."""
        return goal_distance(self.spec, state, goal)


def goal_distance(spec: EnvSpec, state: Array, goal: Array) -> Array:
    """Euclidean distance `[...]` between `state` `[..., S]` and `goal` `[..., G]`, in the goal's units."""
    return jnp.linalg.norm(jnp.asarray(state)[..., jnp.array(spec.goal_indices)] - goal, axis=-1)
