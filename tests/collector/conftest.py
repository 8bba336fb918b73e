from dataclasses import dataclass

import jax
import jax.numpy as jnp
import pytest

from shared.envs.base import EnvSpec, EnvState, GoalEnv
from shared.types import Array


@dataclass(frozen=True)
class Counting(GoalEnv):
    """Counts its steps. State `[steps into the episode, start tag, goal tag]`, goal `[goal, goal tag]`.

    Each reset draws both tags, and which of the pairs of `goals` and `limits` holds: the episode terminates
    after `limit` steps, and the distance is between the steps made and the goal.
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
        start, goal, which = jax.random.uniform(key, (3,))
        which = (which * len(self.goals)).astype(jnp.int32)
        physics = {"limit": jnp.array(self.limits)[which]}
        commanded = jnp.stack([jnp.array(self.goals)[which], goal])
        return EnvState(physics, jnp.stack([jnp.zeros(()), start, goal]), commanded, jnp.array(False))

    def step(self, env_state: EnvState, action: Array) -> EnvState:
        state = env_state.state + jnp.array([1.0, 0.0, 0.0])
        return env_state._replace(state=state, terminated=state[0] >= env_state.physics["limit"])

    def cell(self, goal: Array) -> Array:
        """Steps into the episode, 4 and more alike."""
        return jnp.minimum(jnp.round(goal[..., 0]), 4).astype(jnp.int32)


@dataclass(frozen=True)
class Breaking(Counting):
    """Breaks with its step number `breaks_after`, in episodes whose start tag is below `share`.

    The coordinates that are `struck` are then `value`. Starts with a tag below `unfit` are not finite at all.
    """

    limits: tuple[int, ...] = (100, 100)
    breaks_after: int = 4
    share: float = 0.5
    value: float = float("nan")
    struck: tuple[bool, ...] = (True, True, True)
    unfit: float = 0.0

    def reset(self, key: Array) -> EnvState:
        env_state = super().reset(key)
        return env_state._replace(state=jnp.where(env_state.state[1] < self.unfit, jnp.nan, env_state.state))

    def step(self, env_state: EnvState, action: Array) -> EnvState:
        after = super().step(env_state, action)
        breaks = (after.state[0] == self.breaks_after) & (after.state[1] < self.share)
        return after._replace(state=jnp.where(breaks & jnp.array(self.struck), self.value, after.state))


@pytest.fixture(scope="session")
def counting() -> type[Counting]:
    return Counting


@pytest.fixture(scope="session")
def breaking() -> type[Breaking]:
    return Breaking
