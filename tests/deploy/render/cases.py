"""A small scene, its pictures, and the hues of goals, bodies and walls in them."""

from pathlib import Path
from typing import Any

import jax.numpy as jnp
import mujoco
import numpy as np

from deploy.render.draw import Picture, render
from shared.envs.base import EnvSpec, GoalEnv
from shared.envs.brax_env import BraxEnv, Timing
from shared.policy import random_policy
from shared.types import Array

LENGTH = 12
TIMINGS = {"spring": Timing(physics_dt=0.005, frames=2)}
GOAL, BODY, WALL = "goal", "body", "wall"


class Slider(BraxEnv):
    """A ball that slides along x in front of a wall. The goal is x; it starts at 1 and moves by 0.1 each step."""

    timings = TIMINGS

    @property
    def spec(self) -> EnvSpec:
        return EnvSpec(1, 1, 1, goal_indices=(0,), episode_length=LENGTH, goal_radius=0.4, num_cells=1)

    def model_spec(self) -> mujoco.MjSpec:
        spec = mujoco.MjSpec()
        spec.worldbody.add_geom(type=mujoco.mjtGeom.mjGEOM_PLANE, size=(1, 1, 1), contype=0, conaffinity=0)
        wall = {"type": mujoco.mjtGeom.mjGEOM_BOX, "pos": (1, 1, 0.5), "size": (1, 0.1, 0.5)}
        spec.worldbody.add_geom(**wall, rgba=(0.55, 0.6, 0.68, 1), contype=0, conaffinity=0)
        ball = spec.worldbody.add_body(name="ball", pos=(0, 0, 0.3))
        ball.add_joint(name="x", type=mujoco.mjtJoint.mjJNT_SLIDE, axis=(1, 0, 0))
        ball.add_geom(type=mujoco.mjtGeom.mjGEOM_SPHERE, size=(0.3, 0, 0), contype=0, conaffinity=0)
        spec.add_actuator(target="x", trntype=mujoco.mjtTrn.mjTRN_JOINT)
        return spec

    def start(self, key: Array) -> tuple[Array, Array, Array]:
        return jnp.zeros(1), jnp.zeros(1), jnp.ones(1)

    def observe(self, physics: Any, control: Array, goal: Array) -> Array:
        return physics.q

    def follow(self, physics: Any, goal: Array) -> Array:
        return goal + 0.1

    def goal_points(self, goal: Array) -> Array:
        return jnp.concatenate([goal, jnp.array([0.0, 0.4])])[None]

    def cell(self, goal: Array) -> Array:
        return jnp.zeros(goal.shape[:-1], jnp.int32)


def draw(env: GoalEnv, out: Path, picture: Picture, steps: int | None = None) -> list[str]:
    messages: list[str] = []
    render(env, random_policy(env.spec.action_size), {}, out, picture, 0, messages.append, "a title", steps)
    return messages


def find(pixels: np.ndarray) -> dict[str, np.ndarray]:
    """Returns where `pixels` `[..., 3]`, in 0..1, show a goal, a body and a wall, as `[...]` bool."""
    r, g, b = np.moveaxis(pixels[..., :3], -1, 0)
    return {GOAL: (g > r + 0.15) & (g > b + 0.1), BODY: (r > g + 0.1) & (g > b + 0.2), WALL: (b > r + 0.05) & (b > g)}


def count(pixels: np.ndarray) -> dict[str, int]:
    """Returns how many of `pixels` `[..., 3]` show a goal, a body and a wall."""
    return {kind: int(found.sum()) for kind, found in find(pixels).items()}
