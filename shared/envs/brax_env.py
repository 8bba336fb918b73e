"""Environments whose physics is one of brax's pipelines over a MuJoCo model."""

import contextlib
import io
import warnings
from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import mujoco
import numpy as np

from shared.config import EnvOptions
from shared.envs.base import EnvSpec, EnvState, GoalEnv
from shared.envs.space import Histogram, Maze
from shared.envs.walls import WALL
from shared.types import Array

with contextlib.redirect_stdout(io.StringIO()):  # MJX prints that it has no Warp
    import brax
    from brax import contact
    from brax.generalized import pipeline as generalized
    from brax.io import mjcf
    from brax.mjx import pipeline as mjx
    from brax.spring import pipeline as spring

    from shared.envs.mjx_cpu import install_barriers

install_barriers()
UPRIGHT = 0.5  # cosine of the largest tilt
_TOUCH = 1e-3  # metres: largest gap that counts as contact
_PIPELINES = {"spring": spring, "generalized": generalized, "mjx": mjx}


@dataclass(frozen=True)
class Timing:
    """Simulation settings of an environment with one backend."""

    physics_dt: float  # seconds
    frames: int  # physics steps in one environment step
    gear: tuple[float, ...] | float | None = None  # gear of the actuators; None: the model's own
    iterations: int = 1  # settings of MJX's solver; the defaults are brax's for ants and humanoids
    line_search_iterations: int = 4
    euler_damping: bool = False


class Physics:
    """Pipeline of brax and the model that it steps."""

    def __init__(self, model: mujoco.MjModel, backend: str, timing: Timing) -> None:
        model.opt.timestep = timing.physics_dt
        if timing.gear is not None:
            model.actuator_gear[:, 0] = timing.gear
        if backend == "mjx":
            model.opt.solver = mujoco.mjtSolver.mjSOL_NEWTON
            model.opt.iterations = timing.iterations
            model.opt.ls_iterations = timing.line_search_iterations
            if not timing.euler_damping:
                model.opt.disableflags |= int(mujoco.mjtDisableBit.mjDSBL_EULERDAMP)
        with warnings.catch_warnings():
            # Brax warns that its pipelines are no longer maintained, which is why `GoalEnv` hides them.
            warnings.filterwarnings("ignore", "Brax System", UserWarning)
            self.system = mjcf.load_model(model)
        self._pipeline = _PIPELINES[backend]
        self._frames = timing.frames
        self._is_wall = np.array([model.geom(index).name.startswith(WALL) for index in range(model.ngeom)])
        self.seconds_per_step = timing.physics_dt * timing.frames

    def init(self, q: Array, qd: Array) -> Any:
        """Returns the state with positions `q` `[Q]` and velocities `qd` `[QD]`."""
        return self._pipeline.init(self.system, q, qd)

    def step(self, state: Any, control: Array) -> Any:
        """Runs one environment step of `frames` physics steps with constant `control` `[actuators]`."""

        def frame(state: Any, _: None) -> tuple[Any, None]:
            return self._pipeline.step(self.system, state, control), None

        return jax.lax.scan(frame, state, None, self._frames)[0]

    def contacts(self, state: Any) -> tuple[Array, Array]:
        """Returns for each possible contact point `[]` whether it touches, and whether it does so with a wall."""
        # The spring pipeline has no contacts in its state.
        held = state.contact if state.contact is not None else contact.get(self.system, state.x)
        if held is None:  # nothing can touch
            return (np.zeros(0, bool),) * 2
        on_wall = jnp.asarray(self._is_wall)
        return held.dist < _TOUCH, on_wall[held.geom1] | on_wall[held.geom2]


class BraxEnv(GoalEnv):
    """Base of all environments on brax. Subclasses define the body, the start and the observation.

    A subclass that overrides `spec` needs no sizes, indices and radii. If it overrides `cell`, too,
    it needs no `space`.
    """

    timings: Mapping[str, Timing]
    """Settings by backend; the first backend is the default."""
    state_size: int
    action_size: int
    goal_indices: tuple[int, ...]
    goal_radius: float
    easy_radius: float | None = None
    hard_radius: float | None = None
    space: Histogram | Maze
    """Part of goal space whose cells state coverage counts."""

    def __init__(self, options: EnvOptions) -> None:
        """Raises ValueError if `options` name a backend that `timings` lack."""
        if options.backend is not None and options.backend not in self.timings:
            has = " and ".join(self.timings)
            raise ValueError(f"env_options.backend: this environment has no {options.backend!r}; it has {has}")
        self.options = options
        self.backend: str = options.backend or next(iter(self.timings))

    @cached_property
    def spec(self) -> EnvSpec:  # type: ignore[override]
        return EnvSpec(
            state_size=self.state_size,
            goal_size=len(self.goal_indices),
            action_size=self.action_size,
            goal_indices=self.goal_indices,
            episode_length=self.options.episode_length or 1000,
            goal_radius=self.goal_radius,
            easy_radius=self.easy_radius,
            hard_radius=self.hard_radius,
            num_cells=self.space.num_cells,
            backend=self.backend,
        )

    @abstractmethod
    def model_spec(self) -> mujoco.MjSpec:
        """Returns a new model of the body and its surroundings, without the goal."""

    @abstractmethod
    def start(self, key: Array) -> tuple[Array, Array, Array]:
        """Returns positions `[Q]`, velocities `[QD]` and a goal `[G]`. `key` is consumed."""

    @abstractmethod
    def observe(self, physics: Any, control: Array, goal: Array) -> Array:
        """Returns the policy's view `[S]`, which depends on `goal` only with the option `reference_state`."""

    def measures(self, env_state: EnvState) -> dict[str, Array]:
        """Returns the contacts, and further measures of subclasses; see `step_measures`."""
        touching, on_wall = self.physics.contacts(env_state.physics)
        contacts: dict[str, Array] = {"contacts": jnp.sum(touching).astype(jnp.float32)}
        return contacts | ({"wall_contact": jnp.any(touching & on_wall)} if self.maze else {})

    @property
    def maze(self) -> Maze | None:
        """The maze in which the body is; none on a plane."""
        space = getattr(self, "space", None)
        return space if isinstance(space, Maze) else None

    def goal_points(self, goal: Array) -> Array:
        """Returns points `[k, 3]` in metres that mark `goal` `[G]` in pictures; by default the goal itself."""
        return goal[None]

    def control(self, physics: Any, action: Array) -> Array:
        """Returns the actuators' controls `[actuators]` for an `action` `[A]` in [-1, 1]."""
        return action

    def fell(self, physics: Any) -> Array:
        """Returns `[]` bool: the episode ends here."""
        return jnp.zeros((), bool)

    def follow(self, physics: Any, goal: Array) -> Array:
        """Returns the goal `[G]` after a step: the same, unless it is tied to something that moves."""
        return goal

    def cell(self, goal: Array) -> Array:
        return self.space.cell(goal)

    @cached_property
    def physics(self) -> Physics:
        timing = self.timings[self.backend]
        if self.options.physics_dt is not None:
            timing = replace(timing, physics_dt=self.options.physics_dt)
        with jax.ensure_compile_time_eval():  # the first use may be inside a trace, which this value outlives
            return Physics(compile_model(self.model_spec()), self.backend, timing)

    def reset(self, key: Array) -> EnvState:
        q, qd, goal = self.start(key)
        physics = self.physics.init(q, qd)
        rest = jnp.zeros(self.physics.system.act_size())
        return EnvState(physics, self.observe(physics, rest, goal), goal, jnp.zeros((), bool))

    def step(self, env_state: EnvState, action: Array) -> EnvState:
        """Applies `action` `[A]` in [-1, 1]. If the physics diverges, the episode ends with the last finite state."""
        control = self.control(env_state.physics, action)
        physics = self.physics.step(env_state.physics, control)
        goal = self.follow(physics, env_state.goal)
        state = self.observe(physics, control, goal)
        finite = jnp.isfinite(state).all()
        terminated = self.fell(physics) | ~finite
        state, goal = (jnp.where(finite, new, old) for new, old in ((state, env_state.state), (goal, env_state.goal)))
        return EnvState(physics, state, goal, terminated)


def brax_model(name: str) -> mujoco.MjSpec:
    """Returns a model that comes with brax, for editing."""
    return mujoco.MjSpec.from_file(str(Path(brax.__file__).parent / "envs" / "assets" / f"{name}.xml"))


def compile_model(spec: mujoco.MjSpec) -> mujoco.MjModel:
    """Compiles `spec` as brax needs it: bodies that cannot move against each other become one."""
    spec.compiler.fusestatic = True
    start = spec.numeric("init_qpos")
    if start is not None:  # its length no longer fits an edited model, and brax would refuse that
        spec.delete(start)
    return spec.compile()


def torso_measures(physics: Any, maze: Maze | None) -> dict[str, Array]:
    """Returns the measures of a body whose first joint is its torso's free joint; see `step_measures`."""
    place, (_, x, y, _) = physics.q[:3], physics.q[3:7]
    up = 1 - 2 * (x**2 + y**2)  # height of the torso's upward unit vector
    measured = {"upright": up > UPRIGHT, "height": place[2], "speed": jnp.linalg.norm(physics.qd[:2])}
    if maze is None:
        return measured
    row, column = jnp.round(maze.in_cells(place)).astype(jnp.int32)
    return measured | {"over_walls": jnp.asarray(maze.walls)[row, column]}


def outside(height: Array, lowest: float, highest: float) -> Array:
    """Returns `[]` bool: true unless `lowest` <= `height` <= `highest`, so also true for NaN."""
    return ~((height >= lowest) & (height <= highest))
