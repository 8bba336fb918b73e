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


@pytest.fixture(scope="session")
def counting() -> type[Counting]:
    return Counting
