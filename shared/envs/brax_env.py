"""Environments whose physics is one of brax's pipelines over a model of MuJoCo."""

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
from shared.envs.base import EnvState, GoalEnv
from shared.types import Array

with contextlib.redirect_stdout(io.StringIO()):  # MJX prints that it has no Warp
    import brax
    from brax.generalized import pipeline as generalized
    from brax.io import mjcf
    from brax.mjx import pipeline as mjx
    from brax.spring import pipeline as spring

    from shared.envs.mjx_cpu import keep_links_apart

keep_links_apart()
_PIPELINES = {"spring": spring, "generalized": generalized, "mjx": mjx}


@dataclass(frozen=True)
class Timing:
    """How an environment is simulated by one backend."""

    physics_dt: float  # seconds
    frames: int  # physics steps in one environment step
    gear: tuple[float, ...] | float | None = None  # of the actuators; none: the model's
    iterations: int = 1  # of MJX's solver, as brax sets it for ants and humanoids; so the next two
    line_search_iterations: int = 4
    euler_damping: bool = False


class Physics:
    """A pipeline of brax and the model that it steps."""

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
            warnings.filterwarnings("ignore", "Brax System", UserWarning)  # known, and why it stays behind GoalEnv
            self.system = mjcf.load_model(model)
        self._pipeline = _PIPELINES[backend]
        self._frames = timing.frames
        self.seconds_per_step = timing.physics_dt * timing.frames

    def init(self, q: Array, qd: Array) -> Any:
        """The state with positions `q` `[Q]` and velocities `qd` `[QD]`."""
        return self._pipeline.init(self.system, q, qd)

    def step(self, state: Any, control: Array) -> Any:
        """One environment step of `frames` physics steps with `control` `[actuators]` held."""

        def frame(state: Any, _: None) -> tuple[Any, None]:
            return self._pipeline.step(self.system, state, control), None

        return jax.lax.scan(frame, state, None, self._frames)[0]


class BraxEnv(GoalEnv):
    """What all environments on brax share. Subclasses say what the body is, where it starts, and what is seen."""

    timings: Mapping[str, Timing]
    """By backend; the first is the default."""

    def __init__(self, options: EnvOptions) -> None:
        if options.backend is not None and options.backend not in self.timings:
            has = " and ".join(self.timings)
            raise ValueError(f"env_options.backend: this environment has no {options.backend!r}; it has {has}")
        self.options = options
        self.backend: str = options.backend or next(iter(self.timings))

    @abstractmethod
    def model_spec(self) -> mujoco.MjSpec:
        """The body and all around it, without the goal; made anew at every call."""

    @abstractmethod
    def start(self, key: Array) -> tuple[Array, Array, Array]:
        """Positions `[Q]`, velocities `[QD]` and a goal `[G]`. `key` is consumed."""

    @abstractmethod
    def observe(self, physics: Any, control: Array, goal: Array) -> Array:
        """What the policy sees `[S]`; only a parity option lets it depend on `goal`."""

    @abstractmethod
    def goal_points(self, goal: Array) -> Array:
        """Where to draw `goal` `[G]`: points `[k, 3]` in metres."""

    def control(self, physics: Any, action: Array) -> Array:
        """What the actuators get `[actuators]` for an `action` `[A]` in [-1, 1]."""
        return action

    def fell(self, physics: Any) -> Array:
        """`[]` bool: the episode ends here."""
        return jnp.zeros((), bool)

    def follow(self, physics: Any, goal: Array) -> Array:
        """The goal `[G]` after a step; the same, unless it is tied to something that moves."""
        return goal

    @cached_property
    def physics(self) -> Physics:
        timing = self.timings[self.backend]
        if self.options.physics_dt is not None:
            timing = replace(timing, physics_dt=self.options.physics_dt)
        with jax.ensure_compile_time_eval():  # first used while something is traced, kept for longer
            return Physics(compile_model(self.model_spec()), self.backend, timing)

    def reset(self, key: Array) -> EnvState:
        q, qd, goal = self.start(key)
        physics = self.physics.init(q, qd)
        rest = jnp.zeros(self.physics.system.act_size())
        return EnvState(physics, self.observe(physics, rest, goal), goal, jnp.zeros((), bool))

    def step(self, env_state: EnvState, action: Array) -> EnvState:
        """`action` `[A]` in [-1, 1]. Where the physics diverges, the episode ends with the last finite state."""
        control = self.control(env_state.physics, action)
        physics = self.physics.step(env_state.physics, control)
        goal = self.follow(physics, env_state.goal)
        state = self.observe(physics, control, goal)
        finite = jnp.isfinite(state).all()
        terminated = self.fell(physics) | ~finite
        state, goal = (jnp.where(finite, new, old) for new, old in ((state, env_state.state), (goal, env_state.goal)))
        return EnvState(physics, state, goal, terminated)


def brax_model(name: str) -> mujoco.MjSpec:
    """One of the models that come with brax, to be edited."""
    return mujoco.MjSpec.from_file(str(Path(brax.__file__).parent / "envs" / "assets" / f"{name}.xml"))


def compile_model(spec: mujoco.MjSpec) -> mujoco.MjModel:
    """The model, with bodies that cannot move against each other made one, as brax needs it."""
    spec.compiler.fusestatic = True
    start = spec.numeric("init_qpos")
    if start is not None:  # starts are ours; brax would refuse the model for what was added to it
        spec.delete(start)
    return spec.compile()


def initial_positions(spec: mujoco.MjSpec) -> np.ndarray:
    """`[Q]`: where brax's own model starts."""
    return np.array(spec.numeric("init_qpos").data)


def outside(height: Array, lowest: float, highest: float) -> Array:
    """`[]` bool: `height` is not between the two; neither is what is not a number."""
    return ~((height >= lowest) & (height <= highest))
