"""An environment that is learned within seconds."""

import jax
import jax.numpy as jnp

from shared.config import EnvOptions
from shared.envs.base import EnvSpec, EnvState, GoalEnv

HALF = 2.0
STEP = 0.5


class Field(GoalEnv):
    """A point in a square without walls. State and goal `[x, y]`; an action moves the point by up to `STEP`."""

    def __init__(self, options: EnvOptions) -> None:
        self.spec = EnvSpec(
            state_size=2,
            goal_size=2,
            action_size=2,
            goal_indices=(0, 1),
            episode_length=20,
            goal_radius=0.5,
            num_cells=16,
        )

    def reset(self, key: jax.Array) -> EnvState:
        start, goal = jax.random.uniform(key, (2, 2), minval=-HALF, maxval=HALF)
        return EnvState((), start, goal, jnp.array(False))

    def step(self, env_state: EnvState, action: jax.Array) -> EnvState:
        return env_state._replace(state=jnp.clip(env_state.state + STEP * jnp.clip(action, -1, 1), -HALF, HALF))

    def cell(self, goal: jax.Array) -> jax.Array:
        column, row = jnp.moveaxis(jnp.clip(goal + HALF, 0, 2 * HALF - 1e-3).astype(jnp.int32), -1, 0)
        return 4 * row + column
