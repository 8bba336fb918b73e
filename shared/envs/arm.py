"""A Franka Panda at a table: it reaches, grasps a cube, and moves it along the table or from bin to bin.

The tasks are those of JaxGCRL and of the paper's code. The arm's kinematic and inertial numbers come from
MuJoCo Menagerie's model of the Franka Emika Panda (Apache-2.0), see `shared/envs/panda.py`. Lengths are in
metres and angles in radians.
"""

import itertools
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import mujoco

from shared.config import EnvOptions
from shared.envs.base import EnvSpec
from shared.envs.brax_env import BraxEnv, Timing
from shared.envs.panda import CLOSED, FINGER_START, FINGERS, HAND, JOINTS, OPEN, START, TABLE, TIP, add_panda, add_table
from shared.envs.space import Histogram
from shared.types import Array

_TIMINGS = {"mjx": Timing(0.002, 25, iterations=6, line_search_iterations=12, euler_damping=True)}

# The policy turns four of the seven joints; an action says where to, not how far.
_TURNED, _FIXED = (0, 1, 3, 5), (0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 1.4487)
_LOWEST, _HIGHEST = (0.3491, 0.0, -3.0718, 2.3562), (2.7925, 1.48353, -0.0698, 3.7525)
_FREE_Q, _FREE_QD = 7, 6  # the cube's positions and velocities, which come first
_CUBE = 0.03  # half its side
_DROP = 0.07  # the height that it starts from
_GRIP = 0.0375  # how far from the cube's centre a fingertip ought to be
_CUBE_COLOUR, _START_COLOUR, _GOAL_COLOUR = (0.95, 0.6, 0.2), (0.55, 0.7, 0.88), (0.9, 0.58, 0.55)
# Grasping succeeds where two errors are small at once; a midpoint so far off is as bad as an opening so far off.
_MIDPOINT_ERROR, _OPENING_ERROR = (0.0, 0.02, 0.05, 0.15), (0.0, 0.005, 0.02, 0.05)


class Region(NamedTuple):
    """A box: its centre, and how far it goes to each side of that."""

    centre: tuple[float, float, float]
    reach: tuple[float, float, float]

    def draw(self, key: Array) -> Array:
        """A point `[3]`. `key` is consumed."""
        return jnp.array(self.centre) + jnp.array(self.reach) * jax.random.uniform(key, (3,), minval=-1)


class Bins(NamedTuple):
    """Two bins, one to either side of the arm."""

    x: float  # of their centres, in the one negative
    half: float  # from a centre to a wall's inner face
    y: float = 0.6


class Task(NamedTuple):
    """Where things start and ought to go. `cube`: where it starts; `goal`: none, if it is tied to the cube."""

    goal: Region | None
    cube: Region | None
    cells: Histogram
    bins: Bins | None = None


def _moved(cube: tuple[float, float], goal: tuple[float, float], reach: float, bins: Bins | None = None) -> Task:
    """The cube starts up to `reach` from `cube` along x and y, and ought to come as near to `goal`."""
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
    """What the tasks share. The arm always starts in the same pose; an episode never ends by itself."""

    timings: Mapping[str, Timing] = _TIMINGS
    state_size: int
    action_size: int
    goal_indices: tuple[int, ...]
    radius, easy_radius, hard_radius = 0.1, 0.3, 0.03

    def __init__(self, options: EnvOptions, task: Task) -> None:
        super().__init__(options)
        self.task = task
        self.spec = EnvSpec(
            state_size=self.state_size,
            goal_size=len(self.goal_indices),
            action_size=self.action_size,
            goal_indices=self.goal_indices,
            episode_length=self.options.episode_length or 1000,
            goal_radius=self.radius,
            easy_radius=self.easy_radius,
            hard_radius=self.hard_radius,
            num_cells=self.task.cells.num_cells,
            backend=self.backend,
        )

    def model_spec(self) -> mujoco.MjSpec:
        spec = mujoco.MjSpec()
        spec.compiler.degree = False
        spec.option.integrator = mujoco.mjtIntegrator.mjINT_IMPLICITFAST
        spec.option.cone = mujoco.mjtCone.mjCONE_PYRAMIDAL
        spec.option.impratio = 10 if self.task.bins else 1
        spec.default.geom.contype = spec.default.geom.conaffinity = 0  # the pairs below are all that touch
        add_table(spec)
        for region, colour in ((self.task.cube, _START_COLOUR), (self.task.goal, _GOAL_COLOUR)):
            if region and region.reach[2] == 0:
                _add_patch(spec, region, (*colour, 0.5))
        if self.task.cube:  # before the arm: its positions come first
            _add_cube(spec)
        add_panda(spec, fingers=self.task.cube is not None)
        walls = _add_bins(spec, self.task.bins) if self.task.bins else []
        for one, other in self.touching(walls):
            spec.add_pair(geomname1=one, geomname2=other)
        return spec

    def touching(self, walls: list[str]) -> list[tuple[str, str]]:
        """The pairs of geoms that can touch; of the arm's own, only the fingers can."""
        if not self.task.cube:
            return [(TABLE, HAND)]
        movers = ("cube", HAND, *FINGERS)
        pairs = [pair for pair in itertools.combinations((TABLE, *movers), 2) if pair[0] != HAND]  # and its fingers
        return pairs + list(itertools.product(movers, walls))

    def control(self, physics: Any, action: Array) -> Array:
        """Angles of the four joints that turn, the three others fixed; a last action above 0 closes the fingers."""
        low, high = jnp.array(_LOWEST), jnp.array(_HIGHEST)
        angles = low + (action[: len(_TURNED)] + 1) / 2 * (high - low)
        angles = jnp.array(_FIXED).at[jnp.array(_TURNED)].set(angles)
        if not self.task.cube:
            return angles
        return jnp.append(angles, jnp.where(action[-1] > 0, CLOSED, OPEN) * jnp.ones(2))

    def cell(self, goal: Array) -> Array:
        return self.task.cells.cell(jnp.asarray(goal)[..., : len(self.task.cells.bins)])

    def goal_points(self, goal: Array) -> Array:
        return goal[None]

    def arm_state(self, physics: Any) -> Array:
        """`[13]`: the joints' angles, then position and velocity of the last link's frame, the end effector."""
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
        """A goal `[G]` for a `cube` at `[3]`. `key` is consumed."""
        assert self.task.goal is not None
        return self.task.goal.draw(key)

    def observe(self, physics: Any, control: Array, goal: Array) -> Array:
        left, right = physics.x.pos[-2:]
        apart = jnp.linalg.norm(left - right)
        return jnp.concatenate([physics.q[:3], self.arm_state(physics), apart[None]])


class ArmGrasp(ArmMove):
    """State: as `ArmMove`, but for the fingers: left tip (3), right tip (3), the tips' distance. Goal: these seven.

    The goal is beside the cube, wherever that is.
    """

    state_size = 23
    goal_indices = tuple(range(16, 23))
    radius, easy_radius, hard_radius = 0.05, 0.15, 0.02

    def goal(self, key: Array, cube: Array) -> Array:
        return _beside(cube)

    def follow(self, physics: Any, goal: Array) -> Array:
        return _beside(physics.q[:3])

    def observe(self, physics: Any, control: Array, goal: Array) -> Array:
        tips = physics.x.pos[-2:] + physics.xmat[-2:] @ jnp.array(TIP)
        apart = jnp.linalg.norm(tips[0] - tips[1])
        return jnp.concatenate([physics.q[:3], self.arm_state(physics), tips.ravel(), apart[None]])

    def distance(self, state: Array, goal: Array) -> Array:
        """The worse `[...]` of two errors of `state` `[..., S]` against `goal` `[..., G]`, in metres.

        One is how far the middle between the tips is off; the other how wrong their distance is, stretched so
        that both are judged by the same radii.
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
    """The arm's environment named `env_id`. Raises ValueError for options that it does not have."""
    options.refuse("reference_state", "separate_walls")
    kind = {"arm_reach": ArmReach, "arm_grasp": ArmGrasp}.get(env_id, ArmMove)
    return kind(options, TASKS[env_id])


def _beside(cube: Array) -> Array:
    """The goal `[7]` of grasping a cube at `[3]`: the left tip on its one side along x, the right on its other."""
    aside = jnp.array([_GRIP, 0.0, 0.0])
    return jnp.concatenate([cube + aside, cube - aside, jnp.array([2 * _GRIP])])


def _midpoint(tips: Array) -> Array:
    """Between the tips `[..., 3]` of `tips` `[..., 7]`."""
    return (tips[..., :3] + tips[..., 3:6]) / 2


def _add_patch(spec: mujoco.MjSpec, region: Region, rgba: tuple[float, ...]) -> None:
    """Shows where on the table the cube starts, or ought to go; touches nothing."""
    pos, half = (*region.centre[:2], 5e-4), (*region.reach[:2], 5e-4)
    spec.worldbody.add_geom(type=mujoco.mjtGeom.mjGEOM_BOX, pos=pos, size=half, rgba=rgba, group=1)


def _add_cube(spec: mujoco.MjSpec) -> None:
    cube = spec.worldbody.add_body(name="cube", pos=(0, 0.6, _DROP))
    cube.add_freejoint(name="cube")
    cube.add_geom(name="cube", type=mujoco.mjtGeom.mjGEOM_BOX, size=[_CUBE] * 3, rgba=(*_CUBE_COLOUR, 1), density=1000)


def _add_bins(spec: mujoco.MjSpec, bins: Bins) -> list[str]:
    """Four walls for each bin; their names."""
    names: list[str] = []
    thin, tall = 0.005, 0.033  # halves
    middle, outer = bins.half + thin, bins.half + 2 * thin
    for (colour, x), side in itertools.product(((_START_COLOUR, -bins.x), (_GOAL_COLOUR, bins.x)), (-1, 1)):
        for dx, dy, half in ((0, side * middle, (outer, thin, tall)), (side * middle, 0, (thin, bins.half, tall))):
            names.append(f"wall_{len(names)}")
            spec.worldbody.add_geom(
                name=names[-1],
                type=mujoco.mjtGeom.mjGEOM_BOX,
                pos=(x + dx, bins.y + dy, tall),
                size=half,
                rgba=(*colour, 1),
            )
    return names
