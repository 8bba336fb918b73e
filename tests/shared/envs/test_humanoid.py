import warnings
from functools import cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import mujoco
import numpy as np
import pytest

from shared.config import EnvOptions
from shared.envs.base import EnvState
from shared.envs.brax_env import Physics, brax_model, compile_model
from shared.envs.humanoid import Humanoid, build
from shared.envs.space import Maze
from shared.types import Array

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from brax import kinematics
    from brax.envs.humanoid import Humanoid as BraxHumanoid

QUICK = {  # XLA options for short compilation
    "xla_backend_optimization_level": 0,
    "xla_llvm_disable_expensive_passes": True,
    "xla_cpu_use_fusion_emitters": False,
}
OPTIONS = EnvOptions()
REFERENCE = EnvOptions(reference_state=True)
MAZES = {"humanoid_u_maze": 6, "humanoid_u_maze_eval": 3, "humanoid_big_maze": 25}
MAZES |= {"humanoid_big_maze_eval": 10, "humanoid_hardest_maze": 45}
GOAL = np.array([3.0, -2.0, 1.25], np.float32)

pytestmark = pytest.mark.filterwarnings("ignore:Brax System")


class PhysicsState(NamedTuple):
    """Fields of a pipeline's state that a humanoid's observation needs."""

    q: Array
    qd: Array
    x: Any = None
    xd: Any = None


class Pose(NamedTuple):
    """The humanoid's physics, without and with the target of the reference."""

    own: PhysicsState
    with_target: PhysicsState


def brax_humanoid(with_target: bool, backend: Any) -> BraxHumanoid:
    """Returns brax's own humanoid with contacts for its whole body, and with the reference's target on request."""
    spec = brax_model("humanoid")
    for geom in spec.geoms:
        geom.contype = 1
    if with_target:
        target = spec.worldbody.add_body(name="target", pos=(0, 0, 1.25))
        for axis in np.eye(3)[:2]:
            slide = mujoco.mjtJoint.mjJNT_SLIDE
            target.add_joint(type=slide, axis=axis, armature=0, damping=0, limited=1, range=(-20, 20))
        target.add_geom(type=mujoco.mjtGeom.mjGEOM_SPHERE, size=(0.5, 0, 0), mass=1, contype=0)
    env = BraxHumanoid(backend=backend, exclude_current_positions_from_observation=False)
    ours = build("humanoid", EnvOptions(backend=backend))
    env.sys = Physics(compile_model(spec), backend, ours.timings[backend]).system
    return env


@pytest.fixture(scope="module")
def pose() -> Pose:
    """Random pose and velocities, without and with a target that rests at `GOAL`."""
    rng = np.random.default_rng(0)
    rotation = rng.normal(size=4)
    q = np.concatenate([rng.uniform(-2, 2, 3), rotation / np.linalg.norm(rotation), rng.uniform(-0.5, 0.5, 17)])
    q, qd = np.append(q, GOAL[:2]), np.append(rng.normal(size=23), [0, 0])
    system = brax_humanoid(True, "generalized").sys
    x, xd = jax.jit(lambda *args: kinematics.forward(system, *args), compiler_options=QUICK)(q, qd)
    return Pose(PhysicsState(q[:24], qd[:23], x.slice(0, 11), xd.slice(0, 11)), PhysicsState(q, qd, x, xd))


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["spring", "generalized"])
def test_state_equals_brax_and_the_reference(backend: Any, pose: Pose) -> None:
    action = jnp.asarray(np.random.default_rng(1).uniform(-1, 1, 17))
    ours = [build("humanoid", EnvOptions(backend=backend, reference_state=reference)) for reference in (False, True)]
    theirs = [brax_humanoid(reference, backend) for reference in (False, True)]

    def both(own: Humanoid, brax: BraxHumanoid, physics: PhysicsState) -> tuple[Array, Array]:
        low, high = brax.sys.actuator.ctrl_range.T
        expected = brax._get_obs(physics, (action + 1) * (high - low) * 0.5 + low)
        return own.observe(pose.own, own.control(pose.own, action), GOAL), expected

    compute = jax.jit(lambda pose: list(map(both, ours, theirs, pose)), compiler_options=QUICK)
    for reference, (state, expected) in enumerate(compute(pose)):
        assert state.shape == expected.shape == ((246, 268)[reference],)
        np.testing.assert_allclose(state, expected, rtol=1e-5, atol=2e-5)


def test_only_the_reference_state_depends_on_the_goal(pose: Pose) -> None:
    envs = [build("humanoid", options) for options in (OPTIONS, REFERENCE)]
    observe = jax.jit(lambda goal: [env.observe(pose.own, np.ones(17), goal) for env in envs], compiler_options=QUICK)
    near, far = observe(GOAL), observe(GOAL + np.array([1, 1, 0], np.float32))
    plain, changed = (np.flatnonzero(np.asarray(a) != np.asarray(b)) for a, b in zip(near, far, strict=True))
    assert not len(plain)
    assert {24, 25} < set(changed)
    assert set(changed[changed > 25]) <= set(range(51, 171))  # inertia about a centre of mass that the target shifts
    assert len(changed) > 50


@pytest.mark.parametrize("backend", ["spring", "generalized", "mjx"])
def test_body_equals_brax(backend: Any) -> None:
    ours, theirs = build("humanoid", EnvOptions(backend=backend)).physics, BraxHumanoid(backend=backend)
    for name in ("link", "dof", "actuator", "gravity", "ang_damping", "spring_mass_scale", "spring_inertia_scale"):
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6),
            getattr(ours.system, name),
            getattr(theirs.sys, name),
        )
    for name in ("geom_friction", "geom_conaffinity", "geom_size", "geom_pos", "geom_bodyid"):
        np.testing.assert_allclose(getattr(ours.system, name), getattr(theirs.sys, name), atol=1e-6)
    assert (ours.system.geom_contype == 1).all()
    assert not ours.system.geom_conaffinity[1:].any()  # no part of the body touches another
    seconds = 0.03 if backend == "spring" else 0.015
    assert ours.seconds_per_step == pytest.approx(seconds)
    if backend == "mjx":
        for name in ("timestep", "solver", "iterations", "ls_iterations", "disableflags"):
            assert getattr(ours.system.opt, name) == getattr(theirs.sys.opt, name)


def test_mazes_have_walls_and_shorter_steps() -> None:
    env, plain = build("humanoid_u_maze", OPTIONS), build("humanoid", OPTIONS)
    assert env.physics.seconds_per_step == pytest.approx(0.015)
    np.testing.assert_array_equal(env.physics.system.body_mass, plain.physics.system.body_mass)
    model = compile_model(env.model_spec())
    walls = [i for i in range(model.ngeom) if model.geom(i).name.startswith("wall")]
    assert (model.geom_size[walls, 2] == 0.5).all()
    assert (model.geom_size[walls, :2] >= 1).all()
    separate = compile_model(build("humanoid_u_maze", EnvOptions(separate_walls=True)).model_spec())
    assert separate.ngeom > model.ngeom


def test_sizes() -> None:
    for env_id in ("humanoid", *MAZES):  # test_registry.py checks the shapes that a reset returns
        spec = build(env_id, OPTIONS).spec
        assert (spec.state_size, spec.goal_size) == (246, 3)
        assert (spec.action_size, spec.episode_length, spec.goal_indices) == (17, 1000, (0, 1, 2))
    env = build("humanoid", REFERENCE)
    state = jax.eval_shape(env.reset, jax.random.key(0))
    assert state.state.shape == (env.spec.state_size,) == (268,)
    assert state.goal.shape == (env.spec.goal_size,) == (3,)
    assert (env.spec.action_size, env.spec.episode_length, env.spec.goal_indices) == (17, 1000, (0, 1, 2))


@cache
def all_drawn() -> dict[str, tuple[Any, ...]]:
    """Returns 1000 starts of each environment and the cells of the goals, compiled at once."""
    envs = {env_id: build(env_id, OPTIONS) for env_id in ("humanoid", *MAZES)}

    def draw(env: Humanoid, key: Array) -> tuple[Array, ...]:
        q, qd, goal = env.start(key)
        return q, qd, goal, env.cell(goal)

    every = jax.jit(lambda keys: {name: jax.vmap(partial(draw, env))(keys) for name, env in envs.items()})
    return jax.device_get(every(jax.random.split(jax.random.key(0), 1000)))


@pytest.mark.parametrize("env_id", ["humanoid", *MAZES])
def test_starts_are_upright_and_goals_lie_in_cells(env_id: str) -> None:
    env = build(env_id, OPTIONS)
    q, qd, goal, cells = all_drawn()[env_id]
    assert q.dtype == qd.dtype == goal.dtype == np.float32
    assert (q[:, 2:] == np.array([1.4, 1, *np.zeros(20)], np.float32)).all()
    assert not qd.any()
    assert (goal[:, 2] == 1.25).all()
    assert ((cells >= 0) & (cells < env.spec.num_cells)).all()
    if not isinstance(env.space, Maze):
        distance = np.linalg.norm(goal[:, :2], axis=1)
        np.testing.assert_allclose([distance.min(), distance.max(), distance.mean()], [1, 5, 3], atol=0.1)
        assert not q[:, :2].any()
        return
    assert (q[:, :2] == 2).all()
    assert len(np.unique(goal, axis=0)) == len(np.unique(cells)) == MAZES[env_id]
    assert not env.space.walls[tuple((goal[:, :2] / 2).astype(int).T)].any()


def test_health_and_distance_of_given_states() -> None:
    env = build("humanoid", OPTIONS)

    @jax.jit
    def compute(heights: Array, goal: Array) -> tuple[Array, Array]:
        fell = jax.vmap(lambda z: env.fell(PhysicsState(jnp.zeros(24).at[2].set(z), jnp.zeros(23))))(heights)
        return fell, env.distance(jnp.zeros(246).at[:3].set(jnp.array([3.0, 4.0, 1.05])), goal)

    heights = np.array([0.99, 1.01, 1.99, 2.01, np.nan], np.float32)
    fell, distance = compute(heights, np.array([3.0, 4.0, 1.25], np.float32))
    assert fell.tolist() == [True, False, False, True, True]
    assert float(distance) == pytest.approx(0.2)  # with the height
    assert (env.spec.goal_radius, env.spec.easy_radius, env.spec.hard_radius) == (0.5, 2.0, None)
    np.testing.assert_array_equal(env.goal_points(GOAL), GOAL[None])


def test_actions_span_the_control_range() -> None:
    env = build("humanoid", OPTIONS)
    actions = np.repeat(np.array([[-1], [0], [0.5], [1]], np.float32), 17, axis=1)
    np.testing.assert_allclose(jax.jit(lambda x: env.control(None, x))(actions), 0.4 * actions, atol=1e-7)


def test_options_are_accepted_or_refused() -> None:
    assert build("humanoid", EnvOptions(physics_dt=0.002)).physics.seconds_per_step == pytest.approx(0.02)
    assert build("humanoid_u_maze", EnvOptions(episode_length=50)).spec.episode_length == 50
    with pytest.raises(ValueError, match="separate_walls"):
        build("humanoid", EnvOptions(separate_walls=True))


@pytest.mark.slow
def test_steps_are_finite_and_compiled_once() -> None:
    env = build("humanoid_u_maze", OPTIONS)
    assert isinstance(env.space, Maze)
    traces = 0

    def step(env_state: EnvState, action: Array) -> EnvState:
        nonlocal traces
        traces += 1
        return jax.vmap(env.step)(env_state, action)

    state = fresh = jax.jit(jax.vmap(env.reset), compiler_options=QUICK)(jax.random.split(jax.random.key(0), 2))
    stepped = jax.jit(step, compiler_options=QUICK)
    for _ in range(3):
        state = stepped(state, np.ones((2, 17), np.float32))
    assert traces == 1
    assert np.isfinite(state.state).all()
    assert not state.terminated.any()
    assert np.abs(np.asarray(state.state) - np.asarray(fresh.state)).max() > 0.01
    np.testing.assert_array_equal(state.goal, fresh.goal)
    assert not np.array_equal(fresh.goal[0], fresh.goal[1])
    torque = np.asarray(state.state)[0, -23:]
    assert not torque[:6].any()
    np.testing.assert_allclose(torque[6:], [*[140.0] * 11, *[40.0] * 6], rtol=1e-6)
