"""Environments with one mistake each, of the kind that only steps reveal."""

import jax
import jax.numpy as jnp
from field import Field

from shared.envs.base import EnvState


class BrokenStep(Field):
    """The second entry of the state is not finite after any step."""

    def step(self, env_state: EnvState, action: jax.Array) -> EnvState:
        after = super().step(env_state, action)
        return after._replace(state=after.state.at[1].divide(0.0))


class Impatient(Field):
    """Every step ends the episode."""

    def step(self, env_state: EnvState, action: jax.Array) -> EnvState:
        return super().step(env_state, action)._replace(terminated=jnp.array(True))
