"""Interface of every environment, and the distance that most environments share."""

from typing import Annotated, Any, NamedTuple, Protocol, runtime_checkable

import jax.numpy as jnp
from pydantic import Field
from pydantic.dataclasses import dataclass

from shared.types import Array

Count = Annotated[int, Field(ge=1)]
Radius = Annotated[float, Field(gt=0, allow_inf_nan=False)]


@dataclass(frozen=True)
class EnvSpec:
    """Facts that travel with an environment. Sizes count floats, lengths count environment steps."""

    state_size: Count
    goal_size: Count
    action_size: Count
    goal_indices: tuple[int, ...]  # entries of the state that a goal names
    episode_length: Annotated[int, Field(ge=2)]  # a step alone has no later one as its goal
    goal_radius: Radius  # all radii are in the units of `GoalEnv.distance`
    num_cells: Count  # cells of goal space that a policy can reach, counted by state coverage
    easy_radius: Radius | None = None  # wider radius, for tasks whose authors report it too
    hard_radius: Radius | None = None  # narrower radius, likewise
    backend: str = "jax"  # the physics: plain JAX, or one of brax's pipelines

    @property
    def row_floats(self) -> int:
        """Floats of a row in replay: state, action and final point."""
        return self.state_size + self.action_size + self.goal_size


class EnvState(NamedTuple):
    """State of one environment between two steps. Batches carry a leading `[N]`.

    `physics`: any pytree that the next step needs. `state` `[S]`: the policy's view; it never holds the commanded
    goal. `goal` `[G]`. `terminated` `[]` bool: the episode ended by itself; the rollout truncates episodes at
    `episode_length`.
    """

    physics: Any
    state: Array
    goal: Array
    terminated: Array


@runtime_checkable
class GoalEnv(Protocol):
    """Goal-conditioned environment: pure functions of one environment, which callers `vmap`."""

    spec: EnvSpec

    def reset(self, key: Array) -> EnvState:
        """Draws a new start and a new goal from `key`."""
        ...

    def step(self, env_state: EnvState, action: Array) -> EnvState:
        """Applies `action` `[A]` in [-1, 1]. The goal stays, unless it is tied to something that moves."""
        ...

    def cell(self, goal: Array) -> Array:
        """Returns the cells `[...]` int32 in 0..num_cells-1 of points of goal space `[..., G]`."""
        ...

    def distance(self, state: Array, goal: Array) -> Array:
        """Returns the distance `[...]` of `state` `[..., S]` to `goal` `[..., G]`; below a radius counts as success."""
        return goal_distance(self.spec, state, goal)


def step_measures(env: GoalEnv, env_state: EnvState) -> dict[str, Array]:
    """Returns the measures of behaviour `[]` that `env` has of a moment, by name; most environments of users have none.

    A bool is counted over the steps of an episode, a float is averaged. `wall_contact` is true while the body touches a
    wall.
    """
    return env.measures(env_state) if hasattr(env, "measures") else {}


def goal_distance(spec: EnvSpec, state: Array, goal: Array) -> Array:
    """Returns the Euclidean distance `[...]` of `state` `[..., S]` to `goal` `[..., G]`, in the goal's units."""
    return jnp.linalg.norm(jnp.asarray(state)[..., jnp.array(spec.goal_indices)] - goal, axis=-1)
