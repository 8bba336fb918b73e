"""Brax's humanoid on an open plane and in mazes."""

from typing import Any

import jax
import jax.numpy as jnp
import mujoco

from shared.config import EnvOptions
from shared.envs.base import EnvState
from shared.envs.brax_env import BraxEnv, Timing, brax_model, outside, torso_measures
from shared.envs.space import GRIDS, Maze, Ring
from shared.envs.walls import add_walls
from shared.types import Array

CELL = 2.0  # metres, side of a maze's cell
_JOINTS, _LINKS = 17, 11
_Q, _QD = 7 + _JOINTS, 6 + _JOINTS
_STATE = _Q + 2 * _QD + 16 * _LINKS
_REFERENCE_STATE = _STATE + 3 * 2 + 16  # two slides and one link more
_START_HEIGHT = 1.4  # heights are the torso's, in metres
_GOAL_HEIGHT = 1.25
_HEALTHY = (1.0, 2.0)
_GEAR = (350.0,) * 11 + (100.0,) * 6  # under spring; the last six are the arms'
# The paper's code asks for 0.0015 s on the plane, too, in a way that its version of brax ignores.
_TIMINGS = {"spring": Timing(0.003, 10, _GEAR), "generalized": Timing(0.003, 5), "mjx": Timing(0.003, 5)}
_MAZE_TIMINGS = {**_TIMINGS, "spring": Timing(0.0015, 10, _GEAR)}


class Humanoid(BraxEnv):
    """Brax's humanoid. Goal: torso x, y, z in metres. State, in this order:

    torso position (3) and quaternion (4), 17 joint angles; velocities of the same (23); for each of 11 links its
    inertia about the common centre of mass (9) and its mass; for each link its share of that centre's velocity (3)
    and its angular velocity (3); the motors' force or torque on each velocity (23).
    """

    action_size = _JOINTS
    goal_indices = (0, 1, 2)
    goal_radius, easy_radius = 0.5, 2.0
    space: Ring | Maze

    def __init__(self, options: EnvOptions, space: Ring | Maze) -> None:
        self.timings = _MAZE_TIMINGS if isinstance(space, Maze) else _TIMINGS
        super().__init__(options)
        self.space = space
        self.state_size = _REFERENCE_STATE if options.reference_state else _STATE

    def model_spec(self) -> mujoco.MjSpec:
        spec = brax_model("humanoid")
        for geom in spec.geoms:
            geom.contype = 1  # the whole body touches floor and walls; in brax's own model only the feet do
        if isinstance(self.space, Maze):
            add_walls(spec, self.space, self.options.separate_walls)
        return spec

    def start(self, key: Array) -> tuple[Array, Array, Array]:
        """Places the humanoid upright and at rest, without noise."""
        place, goal = self.space.draw(key)
        upright = jnp.array([_START_HEIGHT, 1, 0, 0, 0])
        q = jnp.concatenate([place, upright, jnp.zeros(_JOINTS)])
        return q, jnp.zeros(_QD), jnp.append(goal, _GOAL_HEIGHT)

    def control(self, physics: Any, action: Array) -> Array:
        low, high = self.physics.system.actuator.ctrl_range.T
        return low + (action + 1) / 2 * (high - low)

    def observe(self, physics: Any, control: Array, goal: Array) -> Array:
        system = self.physics.system
        torque = jnp.zeros(_QD).at[system.actuator.qd_id].add(system.actuator.gear * control)
        numbers, links = (physics.q, physics.qd, torque), (physics.x, physics.xd, system.link.inertia)
        if self.options.reference_state:
            numbers, links = _with_target(numbers, links, goal)
        q, qd, torque = numbers
        pose, velocity, inertia = links
        if self.backend == "spring":
            inertia = _softened(inertia, system.spring_mass_scale, system.spring_inertia_scale)
        return jnp.concatenate([q, qd, _mass_terms(pose, velocity, inertia), torque])

    def measures(self, env_state: EnvState) -> dict[str, Array]:
        return super().measures(env_state) | torso_measures(env_state.physics, self.maze)

    def fell(self, physics: Any) -> Array:
        return outside(physics.q[2], *_HEALTHY)


def build(env_id: str, options: EnvOptions) -> Humanoid:
    """Returns the humanoid's environment named `env_id`. Raises ValueError for options that it does not have."""
    options.refuse("bodies")
    if env_id == "humanoid":
        return Humanoid(options.refuse("separate_walls"), Ring(1.0, 5.0))
    name = env_id.removeprefix("humanoid_")
    grid = "big_maze_eval_10" if name == "big_maze_eval" else name  # the ant's grid has one goal less
    return Humanoid(options, Maze(GRIDS[grid], CELL))


def _mass_terms(pose: Any, velocity: Any, inertia: Any) -> Array:
    """Returns the links' terms of the state `[16 * links]`, see `Humanoid`. Arguments are brax's, for each link."""
    centre = pose.vmap().do(inertia.transform)
    total = inertia.mass.sum()
    common = inertia.mass @ centre.pos / total
    about = centre.replace(pos=centre.pos - common).vmap().do(inertia)
    linear = velocity.vel - jnp.cross(centre.pos - pose.pos, velocity.ang)
    share = inertia.mass[:, None] / total * linear
    inertias = jnp.column_stack([about.i.reshape(-1, 9), inertia.mass])
    return jnp.concatenate([inertias.ravel(), jnp.column_stack([share, velocity.ang]).ravel()])


def _softened(inertia: Any, mass_scale: Array, inertia_scale: Array) -> Any:
    """Returns the inertia that spring computes with: nearer to 1, for stability."""
    diagonal = jnp.diagonal(inertia.i, axis1=1, axis2=2) ** (1 - inertia_scale)
    return inertia.replace(i=jax.vmap(jnp.diag)(diagonal), mass=inertia.mass ** (1 - mass_scale))


def _with_target(numbers: tuple[Array, ...], links: tuple[Any, ...], goal: Array) -> tuple[Any, Any]:
    """Adds the reference's goal to `numbers` (q, qd, torques) and `links` (pose, velocity, inertia).

    The reference's goal is a link of its own: a ball of 1 kg and 0.5 m radius at rest, on two slides.
    """
    q, qd, torque = numbers
    pose, velocity, inertia = links
    there = pose.slice(0, 1).replace(pos=goal[None], rot=jnp.array([[1.0, 0, 0, 0]]))
    centred = there.replace(pos=jnp.zeros((1, 3)))
    ball = inertia.slice(0, 1).replace(transform=centred, mass=jnp.ones(1), i=0.4 * 0.5**2 * jnp.eye(3)[None])
    at_rest = velocity.slice(0, 1) * 0.0
    numbers = (jnp.append(q, goal[:2]), jnp.append(qd, jnp.zeros(2)), jnp.append(torque, jnp.zeros(2)))
    return numbers, (pose.concatenate(there), velocity.concatenate(at_rest), inertia.concatenate(ball))
