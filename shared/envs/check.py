"""Check that a user's environment does what `GoalEnv` asks for. The check traces functions and compiles nothing."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from shared.envs.base import EnvSpec, EnvState, GoalEnv, step_measures

BATCH = (2, 3)  # leading axes of the batches that `cell` and `distance` get


def check_env(env_id: str, env: Any) -> None:
    """Raises ValueError with one line that names what is missing or has the wrong shape."""
    if not isinstance(env, GoalEnv):
        missing = [name for name in ("spec", "reset", "step", "cell", "distance") if not hasattr(env, name)]
        raise ValueError(f"{env_id}: not a GoalEnv, it has no {', '.join(missing)}; see docs/own_environment.md")
    spec = env.spec
    if not isinstance(spec, EnvSpec):
        raise ValueError(f"{env_id}.spec: must be an EnvSpec, not {type(spec).__name__}")
    if len(spec.goal_indices) != spec.goal_size or not all(0 <= i < spec.state_size for i in spec.goal_indices):
        raise ValueError(f"{env_id}.spec.goal_indices: must be goal_size ({spec.goal_size}) indices into the state")
    fresh = jax.eval_shape(env.reset, jax.random.key(0))
    _check_state(f"{env_id}.reset", fresh, spec)
    action = jax.ShapeDtypeStruct((spec.action_size,), jnp.float32)
    after = jax.eval_shape(env.step, fresh, action)
    _check_state(f"{env_id}.step", after, spec)
    if jax.tree.map(_shape, after) != jax.tree.map(_shape, fresh):
        raise ValueError(f"{env_id}.step: its EnvState differs in structure, shapes or types from that of reset")
    measures = jax.eval_shape(partial(step_measures, env), fresh)
    if not isinstance(measures, dict):
        raise ValueError(f"{env_id}.measures: must return a dict of measures by name, not {type(measures).__name__}")
    for name, value in measures.items():
        shape, got = _shape(value)
        if shape or got not in ("bool", "float32"):
            raise ValueError(f"{env_id}.measures: {name} must be a bool[] or float32[], not {got}{list(shape)}")
    state, goal = (_batch_of(array) for array in (fresh.state, fresh.goal))
    for name, made, dtype in (
        ("cell", jax.eval_shape(env.cell, goal), "int32"),
        ("distance", jax.eval_shape(env.distance, state, goal), "float32"),
    ):
        shape, got = _shape(made)
        if (shape, got) != (BATCH, dtype):
            raise ValueError(
                f"{env_id}.{name}: must return {dtype}{list(BATCH)} for a batch of goals {list(goal.shape)}, not "
                f"{got}{list(shape)}; index the last axis, as in goal[..., 0]"
            )


def _batch_of(array: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct((*BATCH, *array.shape), array.dtype)


def _check_state(where: str, env_state: Any, spec: EnvSpec) -> None:
    if not isinstance(env_state, EnvState):
        raise ValueError(f"{where}: must return an EnvState, not {type(env_state).__name__}")
    expected = {
        "state": ((spec.state_size,), "float32"),
        "goal": ((spec.goal_size,), "float32"),
        "terminated": ((), "bool"),
    }
    for name, (shape, dtype) in expected.items():
        got_shape, got_dtype = _shape(getattr(env_state, name))
        if (got_shape, got_dtype) != (shape, dtype):
            raise ValueError(f"{where}: {name} is {got_dtype}{list(got_shape)}, spec says {dtype}{list(shape)}")


def _shape(array: Any) -> tuple[tuple[int, ...], str]:
    return tuple(array.shape), str(array.dtype)
