"""Brax's ant on an open plane and in mazes, with a ball, and with a block to push aside."""

import re
from collections.abc import Mapping
from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp
import mujoco
import numpy as np

from shared.config import EnvOptions
from shared.envs.base import EnvSpec
from shared.envs.brax_env import BraxEnv, Timing, brax_model, initial_positions, outside
from shared.envs.space import GRIDS, Maze, Ring, Space, make_maze
from shared.envs.walls import add_walls
from shared.types import Array

CELL = 4.0  # metres, of a maze
_Q, _QD = 15, 14  # the ant's own positions (free joint and 8 hinges) and velocities
_NOISE = 0.1  # of the start: positions uniform, velocities normal
_HEALTHY = (0.2, 1.0)  # height of the torso in metres
_TIMINGS = {"spring": Timing(0.005, 10), "generalized": Timing(0.01, 5), "mjx": Timing(0.01, 5)}
_PUSH_TIMINGS = {"mjx": Timing(0.01, 5, iterations=4, line_search_iterations=8)}
_HIPS = ("aux_1_geom", "aux_2_geom", "aux_3_geom", "aux_4_geom")
_FEET = ("left_foot_geom", "right_foot_geom", "third_foot_geom", "fourth_foot_geom")
_BALL_DISTANCE = 5.0
_BLOCK = (8.0, 8.0, 2.0)
_COLOUR = (0.8, 0.3, 0.2, 1)  # of what an ant can move
_HOPS = re.compile(r"ant_(u|u2|u3|u4|u5)_maze_gen_((?:[1-9][0-9]?f)+)")


class Ant(BraxEnv):
    """State: torso position (3) and quaternion (4), 8 joint angles, velocities (14). Goal: torso x, y in metres."""

    timings: Mapping[str, Timing] = _TIMINGS
    extra_size = 0  # what a task adds to positions and to velocities
    goal_indices: tuple[int, ...] = (0, 1)
    touching: tuple[str, ...] = ("torso_geom", *_HIPS, *_FEET)  # what touches more than the floor, if there is more

    def __init__(self, options: EnvOptions, space: Space) -> None:
        super().__init__(options)
        self.space = space
        self.spec = EnvSpec(
            state_size=_Q + _QD + self.extra_size,
            goal_size=2,
            action_size=8,
            goal_indices=self.goal_indices,
            episode_length=options.episode_length or 1000,
            goal_radius=0.5,
            easy_radius=2.0,
            num_cells=space.num_cells,
            backend=self.backend,
        )

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
        rest = jnp.asarray(self._rest, jnp.float32).at[:2].set(place)
        q = rest + jax.random.uniform(q_key, (_Q,), minval=-_NOISE, maxval=_NOISE)
        if isinstance(self.space, Maze) and self.space.hops:  # whose starts are exact
            q = q.at[:2].set(place)
        return q, _NOISE * jax.random.normal(qd_key, (_QD,)), goal

    @cached_property
    def _rest(self) -> np.ndarray:
        return initial_positions(brax_model("ant"))

    def observe(self, physics: Any, control: Array, goal: Array) -> Array:
        return jnp.concatenate([physics.q[:_Q], physics.qd[:_QD]])

    def fell(self, physics: Any) -> Array:
        return outside(physics.q[2], *_HEALTHY)

    def cell(self, goal: Array) -> Array:
        return self.space.cell(goal)

    def goal_points(self, goal: Array) -> Array:
        return jnp.concatenate([goal, jnp.full(1, 0.5)])[None]


class AntBall(Ant):
    """The ant and a ball that slides: the ball's x, y end the state and are the goal's space."""

    extra_size = 2
    goal_indices = (_Q + _QD, _Q + _QD + 1)
    touching = ("torso_geom", *_FEET)

    def model_spec(self) -> mujoco.MjSpec:
        spec = super().model_spec()
        self.let_touch(spec)
        ball = spec.worldbody.add_body(name="ball", pos=(0, 0, 0.5))
        for name, axis in (("ball_x", (1, 0, 0)), ("ball_y", (0, 1, 0))):
            _add_slide(ball, name, axis, limit=10.3)
        # Two in one place, as in the reference: together they weigh 0.576 kg.
        sphere = {"type": mujoco.mjtGeom.mjGEOM_SPHERE, "size": (0.5, 0, 0), "rgba": _COLOUR}
        ball.add_geom(name="ball_ghost", density=1, **sphere)
        ball.add_geom(name="ball", density=0.1, contype=1, **sphere)
        return spec

    def start(self, key: Array) -> tuple[Array, Array, Array]:
        """The ball lies near the ant, a fifth of the way to the goal and up to a metre aside."""
        ball_key, key = jax.random.split(key)
        q, qd, goal = super().start(key)
        angle = 2 * jnp.pi * jax.random.uniform(ball_key)
        # The reference takes the cosine of this angle and the sine of the goal's.
        aside = jnp.stack([jnp.cos(angle), goal[1] / _BALL_DISTANCE])
        return jnp.concatenate([q, 0.2 * goal + aside]), jnp.concatenate([qd, jnp.zeros(2)]), goal

    def observe(self, physics: Any, control: Array, goal: Array) -> Array:
        return jnp.concatenate([super().observe(physics, control, goal), physics.q[_Q:]])


class AntPush(Ant):
    """A heavy ant that must push a block out of its way; the block's x, y end the state."""

    timings = _PUSH_TIMINGS
    extra_size = 2
    touching = ()

    def model_spec(self) -> mujoco.MjSpec:
        spec = super().model_spec()
        for geom in spec.geoms:
            geom.density = 40
            geom.solimp[:3] = (0.995, 0.995, 0.01)
        spec.geom("torso_geom").contype = 1
        block = spec.worldbody.add_body(name="block", pos=_BLOCK)
        for name, axis in (("block_x", (1, 0, 0)), ("block_y", (0, 1, 0)), ("block_z", (0, 0, 1))):
            _add_slide(block, name, axis, limit=None)
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
        """The goal is in one of two cells, up to two metres from its centre on each axis."""
        goal_key, key = jax.random.split(key)
        q, qd, goal = super().start(key)
        q = q + 0.2 * (jnp.arange(_Q) == 2)  # it starts higher: 0.75 m
        goal = goal + jax.random.uniform(goal_key, (2,), maxval=2.0)
        return jnp.concatenate([q, jnp.zeros(3)]), jnp.concatenate([qd, jnp.zeros(3)]), goal

    def observe(self, physics: Any, control: Array, goal: Array) -> Array:
        block = jnp.asarray(_BLOCK[:2]) + physics.q[_Q : _Q + 2]
        return jnp.concatenate([super().observe(physics, control, goal), block])


def build(env_id: str, options: EnvOptions) -> Ant:
    """The ant's environment named `env_id`. Raises ValueError for options that it does not have."""
    options.refuse("reference_state")
    if env_id == "ant":
        return Ant(options.refuse("separate_walls"), Ring(10.0, 10.0))
    if env_id == "ant_ball":
        return AntBall(options.refuse("separate_walls"), Ring(_BALL_DISTANCE, _BALL_DISTANCE))
    if env_id == "ant_push":
        return AntPush(options, make_maze("push", scale=8.0, origin=(-8.0, -8.0)))
    hops = _HOPS.fullmatch(env_id)
    if hops:
        steps = tuple(int(step) for step in hops[2].split("f") if step)
        return Ant(options, make_maze(f"{hops[1]}_maze", CELL, hops=steps))
    name = env_id.removeprefix("ant_")
    if name not in GRIDS:
        raise ValueError(f"no grid for {env_id!r}")
    return Ant(options, make_maze(name, CELL))


def _add_slide(body: Any, name: str, axis: tuple[int, int, int], limit: float | None) -> None:
    """A frictionless slide, free or up to `limit` metres either way."""
    body.add_joint(
        name=name,
        type=mujoco.mjtJoint.mjJNT_SLIDE,
        axis=axis,
        damping=0,
        limited=int(limit is not None),
        range=(-limit, limit) if limit else (0, 0),
    )
