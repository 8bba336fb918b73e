"""Franka Panda at a table: it reaches, grasps a cube, and moves it along the table or from bin to bin.

The tasks are those of JaxGCRL and of the paper's code. The arm's kinematic and inertial numbers come from MuJoCo
Menagerie's model of the Franka Emika Panda (Apache-2.0), see `shared/envs/panda.py`. Lengths are in metres and angles
in radians. The arm always starts in the same pose, and no episode ends by itself.
"""

import itertools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import mujoco

from shared.config import EnvOptions
from shared.envs.base import EnvState
from shared.envs.brax_env import BraxEnv, Timing
from shared.envs.panda import CLOSED, FINGER_START, FINGERS, HAND, JOINTS, OPEN, START, TABLE, TIP, add_panda, add_table
from shared.envs.space import Histogram
from shared.types import Array

_TIMINGS = {"mjx": Timing(0.002, 25, iterations=6, line_search_iterations=12, euler_damping=True)}

# The policy turns four of the seven joints. Its actions are target angles, not changes of angles.
_TURNED, _FIXED = (0, 1, 3, 5), (0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 1.4487)
_LOWEST, _HIGHEST = (0.3491, 0.0, -3.0718, 2.3562), (2.7925, 1.48353, -0.0698, 3.7525)
_FREE_Q, _FREE_QD = 7, 6  # the cube's positions and velocities, which come first
_CUBE = 0.03  # half its side
_DROP = 0.07  # the cube's height at the start
_LIFTED = 0.05  # above the table; higher than the start
_GRIP = 0.0375  # distance of a fingertip from the cube's centre in a good grasp
_CUBE_COLOUR, _START_COLOUR, _GOAL_COLOUR = (0.95, 0.6, 0.2), (0.55, 0.7, 0.88), (0.9, 0.58, 0.55)
# A grasp succeeds if two errors are small at once. Each midpoint error counts like the opening error at its index.
_MIDPOINT_ERROR, _OPENING_ERROR = (0.0, 0.02, 0.05, 0.15), (0.0, 0.005, 0.02, 0.05)


class Region(NamedTuple):
    """Box that reaches `reach` to each side of its centre."""

    centre: tuple[float, float, float]
    reach: tuple[float, float, float]

    def draw(self, key: Array) -> Array:
        """Returns a point `[3]`. `key` is consumed."""
        return jnp.array(self.centre) + jnp.array(self.reach) * jax.random.uniform(key, (3,), minval=-1)


class Bins(NamedTuple):
    """Two bins, one to either side of the arm, centred on -`x` and `x`."""

    x: float
    half: float  # from a centre to a wall's inner face
    y: float = 0.6


class Task(NamedTuple):
    """Regions of starts and goals. `goal`: None if the goal is tied to the cube. `cube`: None without a cube."""

    goal: Region | None
    cube: Region | None
    space: Histogram
    bins: Bins | None = None


def _moved(cube: tuple[float, float], goal: tuple[float, float], reach: float, bins: Bins | None = None) -> Task:
    """Returns the task of moving a cube: start and goal lie up to `reach` from `cube` and `goal` along x and y."""
    around = (reach, reach, 0.0)
    low = (min(cube[0], goal[0]) - reach, min(cube[1], goal[1]) - reach)
    high = (max(cube[0], goal[0]) + reach, max(cube[1], goal[1]) + reach)
    return Task(Region((*goal, _CUBE), around), Region((*cube, _DROP), around), Histogram(low, high, (16, 16)), bins)


TASKS = {
    "arm_reach": Task(
        Region((0.0, 0.5, 0.3), (0.2, 0.2, 0.2)), None, Histogram((-0.25, 0.25, 0.05), (0.25, 0.75, 0.55), (8, 8, 8))
    ),
    "arm_grasp": Task(
        None, Region((0.0, 0.6, _DROP), (0.3, 0.3, 0.0)), Histogram((-0.35, 0.25, 0.0), (0.35, 0.95, 0.4), (8, 8, 8))
    ),
    "arm_push_easy": _moved((-0.1, 0.6), (0.1, 0.6), 0.1),
    "arm_push_hard": _moved((-0.25, 0.65), (0.25, 0.65), 0.25),
    "arm_binpick_easy": _moved((-0.15, 0.6), (0.17, 0.6), 0.09, Bins(0.17, 0.135)),
    "arm_binpick_hard": _moved((-0.3, 0.6), (0.3, 0.6), 0.15, Bins(0.3, 0.185)),
}


class Arm(BraxEnv):
    """Base of the arm's environments."""

    timings = _TIMINGS
    goal_radius, easy_radius, hard_radius = 0.1, 0.3, 0.03

    def __init__(self, options: EnvOptions, task: Task) -> None:
        super().__init__(options)
        self.task, self.space = task, task.space

    def model_spec(self) -> mujoco.MjSpec:
        spec = mujoco.MjSpec()
        spec.compiler.degree = False
        spec.option.integrator = mujoco.mjtIntegrator.mjINT_IMPLICITFAST
        spec.option.cone = mujoco.mjtCone.mjCONE_PYRAMIDAL
        spec.option.impratio = 10 if self.task.bins else 1
        spec.default.geom.contype = spec.default.geom.conaffinity = 0  # only the pairs below touch
        add_table(spec)
        box = mujoco.mjtGeom.mjGEOM_BOX
        for region, colour in ((self.task.cube, _START_COLOUR), (self.task.goal, _GOAL_COLOUR)):
            if region and region.reach[2] == 0:  # a patch on the table shows the region and touches nothing
                pos, half = (*region.centre[:2], 5e-4), (*region.reach[:2], 5e-4)
                spec.worldbody.add_geom(type=box, pos=pos, size=half, rgba=(*colour, 0.5), group=1)
        if self.task.cube:  # before the arm, so that the cube's positions come first
            cube = spec.worldbody.add_body(name="cube", pos=(0, 0.6, _DROP))
            cube.add_freejoint(name="cube")
            cube.add_geom(name="cube", type=box, size=[_CUBE] * 3, rgba=(*_CUBE_COLOUR, 1), density=1000)
        add_panda(spec, fingers=self.task.cube is not None)
        walls = _add_bins(spec, self.task.bins) if self.task.bins else []
        for one, other in self.touching(walls):
            spec.add_pair(geomname1=one, geomname2=other)
        return spec

    def touching(self, walls: list[str]) -> list[tuple[str, str]]:
        """Returns the pairs of geoms that can touch. Of the arm's own geoms only hand and fingers can."""
        if not self.task.cube:
            return [(TABLE, HAND)]
        movers = ("cube", HAND, *FINGERS)
        # The hand comes before its fingers, which it cannot touch.
        pairs = [pair for pair in itertools.combinations((TABLE, *movers), 2) if pair[0] != HAND]
        return pairs + list(itertools.product(movers, walls))

    def control(self, physics: Any, action: Array) -> Array:
        """Returns the seven joints' target angles. With a cube, a last action above 0 closes the fingers."""
        low, high = jnp.array(_LOWEST), jnp.array(_HIGHEST)
        angles = low + (action[: len(_TURNED)] + 1) / 2 * (high - low)
        angles = jnp.array(_FIXED).at[jnp.array(_TURNED)].set(angles)
        if not self.task.cube:
            return angles
        return jnp.append(angles, jnp.where(action[-1] > 0, CLOSED, OPEN) * jnp.ones(2))

    def arm_state(self, physics: Any) -> Array:
        """Returns `[13]`: the joints' angles, then position and velocity of the last link's frame, the end effector."""
        q, link = (_FREE_Q, 1) if self.task.cube else (0, 0)  # the arm's first
        last = link + JOINTS - 1
        return jnp.concatenate([physics.q[q : q + JOINTS], physics.x.pos[last], physics.xd.vel[last]])


class ArmReach(Arm):
    """State: joint angles (7), end effector's position (3) and velocity (3). Goal: end effector's position."""

    state_size, action_size = 13, 4
    goal_indices = (7, 8, 9)

    def start(self, key: Array) -> tuple[Array, Array, Array]:
        assert self.task.goal is not None
        return jnp.array(START), jnp.zeros(JOINTS), self.task.goal.draw(key)

    def observe(self, physics: Any, control: Array, goal: Array) -> Array:
        return self.arm_state(physics)


class ArmMove(Arm):
    """State: cube's position (3), then as `ArmReach`, then the fingers' distance. Goal: cube's position."""

    state_size, action_size = 17, 5
    goal_indices: tuple[int, ...] = (0, 1, 2)

    def start(self, key: Array) -> tuple[Array, Array, Array]:
        assert self.task.cube is not None
        cube_key, goal_key = jax.random.split(key)
        cube = self.task.cube.draw(cube_key)
        upright = jnp.array([1.0, 0.0, 0.0, 0.0])
        q = jnp.concatenate([cube, upright, jnp.array(START), jnp.full(len(FINGERS), FINGER_START)])
        return q, jnp.zeros(_FREE_QD + JOINTS + len(FINGERS)), self.goal(goal_key, cube)

    def goal(self, key: Array, cube: Array) -> Array:
        """Returns a goal `[G]` for a `cube` at `[3]`. `key` is consumed."""
        assert self.task.goal is not None
        return self.task.goal.draw(key)

    def measures(self, env_state: EnvState) -> dict[str, Array]:
        height = env_state.physics.q[2]  # of the cube's centre
        return super().measures(env_state) | {"object_height": height, "lifted": height > _CUBE + _LIFTED}

    def observe(self, physics: Any, control: Array, goal: Array) -> Array:
        left, right = physics.x.pos[-2:]
        apart = jnp.linalg.norm(left - right)
        return jnp.concatenate([physics.q[:3], self.arm_state(physics), apart[None]])


class ArmGrasp(ArmMove):
    """State: as `ArmMove`, with left tip (3), right tip (3) and the tips' distance in place of the fingers' distance.

    Goal: these seven numbers, beside the cube. The goal follows the cube.
    """

    state_size = 23
    goal_indices = tuple(range(16, 23))
    goal_radius, easy_radius, hard_radius = 0.05, 0.15, 0.02

    def goal(self, key: Array, cube: Array) -> Array:
        return _beside(cube)

    def follow(self, physics: Any, goal: Array) -> Array:
        return _beside(physics.q[:3])

    def observe(self, physics: Any, control: Array, goal: Array) -> Array:
        tips = physics.x.pos[-2:] + physics.xmat[-2:] @ jnp.array(TIP)
        apart = jnp.linalg.norm(tips[0] - tips[1])
        return jnp.concatenate([physics.q[:3], self.arm_state(physics), tips.ravel(), apart[None]])

    def distance(self, state: Array, goal: Array) -> Array:
        """Returns the larger `[...]` of two errors of `state` `[..., S]` against `goal` `[..., G]`, in metres.

        One error is the distance between the tips' midpoints. The other is the error of the tips' distance, stretched
        so that the same radii judge both.
        """
        held = jnp.asarray(state)[..., jnp.array(self.goal_indices)]
        off = jnp.linalg.norm(_midpoint(held) - _midpoint(goal), axis=-1)
        error = jnp.abs(held[..., 6] - goal[..., 6])
        as_far = jnp.interp(error, jnp.array(_OPENING_ERROR), jnp.array(_MIDPOINT_ERROR), right="extrapolate")
        return jnp.maximum(off, as_far)

    def cell(self, goal: Array) -> Array:
        return super().cell(_midpoint(goal))

    def goal_points(self, goal: Array) -> Array:
        return goal[:6].reshape(2, 3)


def build(env_id: str, options: EnvOptions) -> Arm:
    """Returns the arm's environment named `env_id`. Raises ValueError for options that it does not have."""
    options.refuse("reference_state", "separate_walls", "bodies")
    kind = {"arm_reach": ArmReach, "arm_grasp": ArmGrasp}.get(env_id, ArmMove)
    return kind(options, TASKS[env_id])


def _beside(cube: Array) -> Array:
    """Returns the goal `[7]` of grasping a cube at `[3]`: the tips on its two sides along x, the left tip first."""
    aside = jnp.array([_GRIP, 0.0, 0.0])
    return jnp.concatenate([cube + aside, cube - aside, jnp.array([2 * _GRIP])])


def _midpoint(tips: Array) -> Array:
    """Returns the points `[..., 3]` between the tips of `tips` `[..., 7]`."""
    return (tips[..., :3] + tips[..., 3:6]) / 2


def _add_bins(spec: mujoco.MjSpec, bins: Bins) -> list[str]:
    """Adds four walls for each bin and returns their names."""
    names: list[str] = []
    thin, tall = 0.005, 0.033  # halves
    middle, outer = bins.half + thin, bins.half + 2 * thin
    for (colour, x), side in itertools.product(((_START_COLOUR, -bins.x), (_GOAL_COLOUR, bins.x)), (-1, 1)):
        for dx, dy, half in ((0, side * middle, (outer, thin, tall)), (side * middle, 0, (thin, bins.half, tall))):
            names.append(f"wall_{len(names)}")
            pos, rgba = (x + dx, bins.y + dy, tall), (*colour, 1)
            spec.worldbody.add_geom(name=names[-1], type=mujoco.mjtGeom.mjGEOM_BOX, pos=pos, size=half, rgba=rgba)
    return names
