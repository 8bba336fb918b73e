"""Environments of the collector's tests: one counts its steps, the other also breaks at a step or at a reset."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import pytest

from shared.envs.base import EnvSpec, EnvState, GoalEnv
from shared.types import Array


@dataclass(frozen=True)
class Counting(GoalEnv):
    """Environment that counts its steps. State `[steps in the episode, start tag, goal tag]`, goal `[goal, goal tag]`.

    Each reset draws two random tags, and one of the pairs of `goals` and `limits`. The episode terminates after `limit`
    steps. The distance is the difference between the number of steps and the goal.
    """

    goals: tuple[float, ...] = (2.0, 5.0)
    limits: tuple[int, ...] = (3, 100)
    episode_length: int = 7
    goal_radius: float = 0.5
    easy_radius: float | None = None
    hard_radius: float | None = None

    @property
    def spec(self) -> EnvSpec:
        return EnvSpec(
            state_size=3,
            goal_size=2,
            action_size=2,
            goal_indices=(0, 2),
            episode_length=self.episode_length,
            goal_radius=self.goal_radius,
            easy_radius=self.easy_radius,
            hard_radius=self.hard_radius,
            num_cells=5,
        )

    def reset(self, key: Array) -> EnvState:
        start, goal, pair = jax.random.uniform(key, (3,))
        pair = (pair * len(self.goals)).astype(jnp.int32)
        physics = {"limit": jnp.array(self.limits)[pair]}
        commanded = jnp.stack([jnp.array(self.goals)[pair], goal])
        return EnvState(physics, jnp.stack([jnp.zeros(()), start, goal]), commanded, jnp.array(False))

    def step(self, env_state: EnvState, action: Array) -> EnvState:
        state = env_state.state + jnp.array([1.0, 0.0, 0.0])
        return env_state._replace(state=state, terminated=state[0] >= env_state.physics["limit"])

    def cell(self, goal: Array) -> Array:
        """Returns the number of steps in the episode, at most 4."""
        return jnp.minimum(jnp.round(goal[..., 0]), 4).astype(jnp.int32)


@dataclass(frozen=True)
class Breaking(Counting):
    """Environment that breaks at step number `breaks_at` of episodes with a start tag below `share`.

    A break sets the state's `coordinates` to `value`, with `goal_breaks` the goal's tag to NaN, and with
    `distance_breaks` the distance to NaN. Episodes with a start tag below `nan_share` start at NaN. Episodes with a
    start tag below `nan_goal_share` have a goal whose tag is NaN.
    """

    limits: tuple[int, ...] = (100, 100)
    breaks_at: int = 4
    share: float = 0.5
    value: float = float("nan")
    coordinates: tuple[bool, ...] = (True, True, True)
    nan_share: float = 0.0
    nan_goal_share: float = 0.0
    goal_breaks: bool = False
    distance_breaks: bool = False

    def reset(self, key: Array) -> EnvState:
        env_state = super().reset(key)
        start, tag_only = env_state.state, jnp.array([False, True])
        return env_state._replace(
            state=jnp.where(start[1] < self.nan_share, jnp.nan, start),
            goal=jnp.where((start[1] < self.nan_goal_share) & tag_only, jnp.nan, env_state.goal),
        )

    def step(self, env_state: EnvState, action: Array) -> EnvState:
        after = super().step(env_state, action)
        breaks, tag_only = self._breaks(after.state), jnp.array([False, True])
        return after._replace(
            state=jnp.where(breaks & jnp.array(self.coordinates), self.value, after.state),
            goal=jnp.where(breaks & jnp.array(self.goal_breaks) & tag_only, jnp.nan, after.goal),
        )

    def distance(self, state: Array, goal: Array) -> Array:
        breaks = self._breaks(state) & jnp.array(self.distance_breaks)
        return jnp.where(breaks, jnp.nan, super().distance(state, goal))

    def _breaks(self, state: Array) -> Array:
        return (state[..., 0] == self.breaks_at) & (state[..., 1] < self.share)


@pytest.fixture(scope="session")
def counting() -> type[Counting]:
    return Counting


@pytest.fixture(scope="session")
def breaking() -> type[Breaking]:
    return Breaking


class TracedBreaking(Breaking):
    """`Breaking` with settings that are traced, so that they have no hash."""

    __hash__ = object.__hash__


@pytest.fixture(scope="session")
def traced_breaking() -> type[Breaking]:
    return TracedBreaking
