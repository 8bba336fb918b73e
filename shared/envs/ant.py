"""Brax's ant on an open plane and in mazes, with a ball, and with a block to push aside."""

from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import mujoco
import numpy as np

from shared.config import EnvOptions
from shared.envs.base import EnvState
from shared.envs.brax_env import BraxEnv, Timing, brax_model, outside, torso_measures
from shared.envs.space import GRIDS, HOPS, Maze, Ring
from shared.envs.walls import add_walls
from shared.types import Array

CELL = 4.0  # metres, side of a maze's cell
_Q, _QD = 15, 14  # the ant's own positions (free joint and 8 hinges) and velocities
_NOISE = 0.1  # of the start: bound of the positions' uniform noise, standard deviation of the velocities
_HEALTHY = (0.2, 1.0)  # height of the torso in metres
_TIMINGS = {"spring": Timing(0.005, 10), "generalized": Timing(0.01, 5), "mjx": Timing(0.01, 5)}
_PUSH_TIMINGS = {"mjx": Timing(0.01, 5, iterations=4, line_search_iterations=8)}
_HIPS = ("aux_1_geom", "aux_2_geom", "aux_3_geom", "aux_4_geom")
_FEET = ("left_foot_geom", "right_foot_geom", "third_foot_geom", "fourth_foot_geom")
_BALL_DISTANCE = 5.0
_BLOCK = (8.0, 8.0, 2.0)
_COLOUR = (0.8, 0.3, 0.2, 1)  # of bodies that an ant can move


@cache
def _rest() -> np.ndarray:
    """Returns the ant's generalised positions at rest, `[15]`; a copy, for MuJoCo's array is gone with its model."""
    spec = brax_model("ant")
    return np.array(spec.numeric("init_qpos").data)


class Ant(BraxEnv):
    """Brax's ant. Goal: torso x, y in metres.

    State: torso position (3) and quaternion (4), 8 joint angles, velocities (14).
    """

    timings = _TIMINGS
    state_size, action_size = _Q + _QD, 8
    goal_indices: tuple[int, ...] = (0, 1)
    goal_radius, easy_radius = 0.5, 2.0
    space: Ring | Maze
    touching: tuple[str, ...] = ("torso_geom", *_HIPS, *_FEET)
    """Geoms of the ant that touch walls and balls; all others touch the floor at most."""

    def __init__(self, options: EnvOptions, space: Ring | Maze) -> None:
        super().__init__(options)
        self.space = space

    def model_spec(self) -> mujoco.MjSpec:
        spec = brax_model("ant")
        if isinstance(self.space, Maze):
            add_walls(spec, self.space, self.options.separate_walls)
            self.let_touch(spec)
        return spec

    def let_touch(self, spec: mujoco.MjSpec) -> None:
        for name in self.touching:
            spec.geom(name).conaffinity = 1

    def start(self, key: Array) -> tuple[Array, Array, Array]:
        space_key, q_key, qd_key = jax.random.split(key, 3)
        place, goal = self.space.draw(space_key)
        rest = jnp.array(_rest(), jnp.float32).at[:2].set(place)
        q = rest + jax.random.uniform(q_key, (_Q,), minval=-_NOISE, maxval=_NOISE)
        if isinstance(self.space, Maze) and self.space.hops:  # short hops start exactly at a cell's centre
            q = q.at[:2].set(place)
        return q, _NOISE * jax.random.normal(qd_key, (_QD,)), goal

    def observe(self, physics: Any, control: Array, goal: Array) -> Array:
        return jnp.concatenate([physics.q[:_Q], physics.qd[:_QD]])

    def measures(self, env_state: EnvState) -> dict[str, Array]:
        return super().measures(env_state) | torso_measures(env_state.physics, self.maze)

    def fell(self, physics: Any) -> Array:
        return outside(physics.q[2], *_HEALTHY)

    def goal_points(self, goal: Array) -> Array:
        return jnp.append(goal, 0.5)[None]


class AntBall(Ant):
    """Ant with a ball that slides. The ball's x, y end the state and are the goal's space."""

    state_size = _Q + _QD + 2
    goal_indices = (_Q + _QD, _Q + _QD + 1)
    touching = ("torso_geom", *_FEET)

    def model_spec(self) -> mujoco.MjSpec:
        spec = super().model_spec()
        self.let_touch(spec)
        ball = spec.worldbody.add_body(name="ball", pos=(0, 0, 0.5))
        _add_slides(ball, "xy", limited=1, range=(-10.3, 10.3))
        # Two spheres in one place, as in the reference: together they weigh 0.576 kg.
        sphere = {"type": mujoco.mjtGeom.mjGEOM_SPHERE, "size": (0.5, 0, 0), "rgba": _COLOUR}
        ball.add_geom(name="ball_ghost", density=1, **sphere)
        ball.add_geom(name="ball", density=0.1, contype=1, **sphere)
        return spec

    def start(self, key: Array) -> tuple[Array, Array, Array]:
        """Places the ball near the ant: a fifth of the way to the goal and up to a metre aside."""
        ball_key, key = jax.random.split(key)
        q, qd, goal = super().start(key)
        angle = 2 * jnp.pi * jax.random.uniform(ball_key)
        # The reference takes the cosine of this angle and the sine of the goal's.
        aside = jnp.stack([jnp.cos(angle), goal[1] / _BALL_DISTANCE])
        return jnp.concatenate([q, 0.2 * goal + aside]), jnp.concatenate([qd, jnp.zeros(2)]), goal

    def observe(self, physics: Any, control: Array, goal: Array) -> Array:
        return jnp.concatenate([super().observe(physics, control, goal), physics.q[_Q:]])


class AntPush(Ant):
    """Heavy ant that must push a block out of its way. The block's x, y end the state."""

    timings = _PUSH_TIMINGS
    state_size = _Q + _QD + 2
    touching = ()

    def model_spec(self) -> mujoco.MjSpec:
        spec = super().model_spec()
        for geom in spec.geoms:
            geom.density = 40
            geom.solimp[:3] = (0.995, 0.995, 0.01)
        spec.geom("torso_geom").contype = 1
        block = spec.worldbody.add_body(name="block", pos=_BLOCK)
        _add_slides(block, "xyz", limited=0)
        block.add_geom(
            name="block",
            type=mujoco.mjtGeom.mjGEOM_BOX,
            size=(3.6, 3.6, 1.8),
            mass=2e-4,
            contype=1,
            conaffinity=1,
            solimp=(0.995, 0.995, 0.01, 0.5, 2),
            rgba=_COLOUR,
        )
        return spec

    def start(self, key: Array) -> tuple[Array, Array, Array]:
        """Draws the goal in one of two cells, up to two metres from its centre on each axis."""
        goal_key, key = jax.random.split(key)
        q, qd, goal = super().start(key)
        q = q + 0.2 * (jnp.arange(_Q) == 2)  # the heavy ant starts higher: at 0.75 m
        goal = goal + jax.random.uniform(goal_key, (2,), maxval=2.0)
        return jnp.concatenate([q, jnp.zeros(3)]), jnp.concatenate([qd, jnp.zeros(3)]), goal

    def observe(self, physics: Any, control: Array, goal: Array) -> Array:
        block = jnp.asarray(_BLOCK[:2]) + physics.q[_Q : _Q + 2]
        return jnp.concatenate([super().observe(physics, control, goal), block])


def build(env_id: str, options: EnvOptions) -> Ant:
    """Returns the ant's environment named `env_id`. Raises ValueError for options that it does not have."""
    options.refuse("reference_state", "bodies")
    if env_id == "ant":
        return Ant(options.refuse("separate_walls"), Ring(10.0, 10.0))
    if env_id == "ant_ball":
        return AntBall(options.refuse("separate_walls"), Ring(_BALL_DISTANCE, _BALL_DISTANCE))
    if env_id == "ant_push":
        return AntPush(options, Maze(GRIDS["push"], scale=8.0, origin=(-8.0, -8.0)))
    if hops := HOPS.fullmatch(env_id):
        steps = tuple(int(step) for step in hops[2].split("f") if step)
        return Ant(options, Maze(GRIDS[f"{hops[1]}_maze"], CELL, hops=steps))
    return Ant(options, Maze(GRIDS[env_id.removeprefix("ant_")], CELL))


def _add_slides(body: Any, axes: str, **limits: Any) -> None:
    """Adds a frictionless slide along each of `axes`."""
    for axis in axes:
        along = tuple(int(axis == other) for other in "xyz")
        slide = mujoco.mjtJoint.mjJNT_SLIDE
        body.add_joint(name=f"{body.name}_{axis}", type=slide, axis=along, damping=0, **limits)
