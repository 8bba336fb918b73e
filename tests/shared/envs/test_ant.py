import warnings
from functools import cache
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import mujoco
import numpy as np
import pytest

from shared.config import EnvOptions
from shared.envs.ant import Ant, build
from shared.envs.base import EnvState
from shared.envs.brax_env import Physics, compile_model
from shared.envs.space import Maze
from shared.types import Array

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from brax.envs.ant import Ant as BraxAnt

OPTIONS = EnvOptions()
QUICK = {  # XLA options for short compilation
    "xla_backend_optimization_level": 0,
    "xla_llvm_disable_expensive_passes": True,
    "xla_cpu_use_fusion_emitters": False,
}

pytestmark = pytest.mark.filterwarnings("ignore:Brax System")


class PhysicsState(NamedTuple):
    """Fields of a pipeline's state that an ant's observation needs."""

    q: Array
    qd: Array


def model_of(env_id: str, options: EnvOptions = OPTIONS) -> mujoco.MjModel:
    return compile_model(build(env_id, options).model_spec())


DRAWN = ("ant", "ant_u5_maze", "ant_big_maze_eval", "ant_u2_maze_gen_1f3f", "ant_ball", "ant_push")


@cache
def all_drawn() -> dict[str, tuple[np.ndarray, ...]]:
    """Returns `drawn` for each of `DRAWN`, compiled at once."""
    envs = {env_id: build(env_id, OPTIONS) for env_id in DRAWN}
    draw = jax.jit(lambda keys: {env_id: jax.vmap(env.start)(keys) for env_id, env in envs.items()})
    return jax.device_get(draw(jax.random.split(jax.random.key(0), 500)))


def drawn(env_id: str) -> tuple[np.ndarray, ...]:
    """Returns positions, velocities and goals of 500 starts."""
    return all_drawn()[env_id]


def observe(env: Ant, q: Any, qd: Any, goal: Any) -> np.ndarray:
    q, qd = np.asarray(q, np.float32), np.asarray(qd, np.float32)
    return np.asarray(jax.jit(lambda q, qd: env.observe(PhysicsState(q, qd), jnp.zeros(8), goal))(q, qd))


def geom(model: mujoco.MjModel, name: str) -> int:
    return mujoco.mj_name2id(model, mujoco.mjtObj.mjOBJ_GEOM, name)


@pytest.mark.parametrize("backend", ["spring", "generalized", "mjx"])
def test_body_equals_brax(backend: Any) -> None:
    ours, theirs = build("ant", EnvOptions(backend=backend)).physics, BraxAnt(backend=backend)
    assert ours.seconds_per_step == pytest.approx(float(theirs.dt))
    scales = ("ang_damping", "vel_damping", "joint_scale_pos", "joint_scale_ang")
    for name in ("link", "dof", "actuator", "gravity", *scales):
        jax.tree.map(np.testing.assert_array_equal, getattr(ours.system, name), getattr(theirs.sys, name))
    for name in ("geom_friction", "geom_contype", "geom_conaffinity", "geom_size", "geom_pos", "geom_bodyid"):
        np.testing.assert_array_equal(getattr(ours.system, name), getattr(theirs.sys, name))
    for name in ("timestep", "solver", "iterations", "ls_iterations", "disableflags"):
        if backend == "mjx" or name == "timestep":
            assert getattr(ours.system.opt, name) == getattr(theirs.sys.opt, name)


def test_torso_hips_and_feet_touch_walls_in_a_maze() -> None:
    model = model_of("ant_u4_maze")
    touching = {model.geom(i).name for i in range(model.ngeom) if model.geom_bodyid[i] and model.geom_conaffinity[i]}
    assert len(touching) == 9
    assert {"torso_geom", "aux_1_geom", "left_foot_geom"} < touching
    assert model_of("ant_u4_maze", EnvOptions(separate_walls=True)).ngeom > model.ngeom
    plain = model_of("ant")
    np.testing.assert_array_equal(model.body_mass, plain.body_mass)
    assert not plain.geom_conaffinity[plain.geom_bodyid > 0].any()


def test_ball_slides_and_its_position_is_compared_with_the_goal() -> None:
    env, model = build("ant_ball", OPTIONS), model_of("ant_ball")
    assert model.body("ball").mass[0] == pytest.approx(0.576, abs=1e-3)
    assert (model.dof_damping[-2:] == 0).all()
    q, _, goal = drawn("ant_ball")
    ball = q[:, 15:]
    aside = ball - 0.2 * goal
    np.testing.assert_allclose(np.linalg.norm(goal, axis=1), 5, rtol=1e-5)
    assert abs(aside).max() <= 1.0001
    np.testing.assert_allclose(aside[:, 1], goal[:, 1] / 5, atol=1e-5)  # the sine of the goal's angle
    state = observe(env, np.arange(17), np.zeros(16), np.zeros(2))
    np.testing.assert_array_equal(state[list(env.spec.goal_indices)], [15, 16])


def test_pushing_ant_is_heavy_and_its_walls_equal_the_reference() -> None:
    env, model = build("ant_push", OPTIONS), model_of("ant_push")
    assert model.body("torso").mass[0] == pytest.approx(3.87, abs=0.01)
    assert model.body("block").mass[0] == pytest.approx(2e-4)
    boxes = [
        (-4, 20, 8, 8),
        (8, 24, 4, 4),
        (20, 20, 8, 8),
        (-8, 4, 4, 8),
        (24, 8, 4, 4),
        (20, -4, 8, 8),
        (0, -8, 12, 4),
    ]
    points = np.stack(np.meshgrid(np.arange(-12, 28) + 0.5, np.arange(-12, 28) + 0.5), axis=-1).reshape(-1, 2)
    centres, halves = np.array(boxes)[:, :2], np.array(boxes)[:, 2:]
    blocked = (abs(points[:, None] - centres) < halves).all(axis=-1).any(axis=-1)
    walls = [i for i in range(model.ngeom) if model.geom(i).name.startswith("wall")]
    ours = (abs(points[:, None] - model.geom_pos[walls, :2]) < model.geom_size[walls, :2]).all(axis=-1).any(axis=-1)
    np.testing.assert_array_equal(ours, blocked)
    q, _, goal = drawn("ant_push")
    assert {tuple(cell) for cell in (8 * np.floor(goal / 8)).tolist()} == {(8, 16), (16, 8)}
    assert (goal % 8).max() <= 2
    assert abs(q[:, 2] - 0.75).max() <= 0.1
    state = observe(env, [*np.zeros(15), 1.0, -2.0, 0], np.zeros(17), goal[0])
    np.testing.assert_array_equal(state[29:], [9, 6])


@pytest.mark.parametrize("env_id", DRAWN[:4])
def test_starts_are_noisy_and_goals_lie_in_cells(env_id: str) -> None:
    q, qd, goal = drawn(env_id)
    space = build(env_id, OPTIONS).space
    rest = [0.55, 1, 0, 0, 0, 0, 1, 0, -1, 0, -1, 0, 1]
    assert abs(q[:, 2:] - rest).max() <= 0.1 + 1e-6
    assert abs(q[:, 2:] - rest).max() > 0.09
    assert qd.std() == pytest.approx(0.1, rel=0.1)
    assert len(np.unique(q[:, 7])) > 490
    if not isinstance(space, Maze):
        np.testing.assert_allclose(np.linalg.norm(goal, axis=1), 10, rtol=1e-5)
        assert abs(q[:, :2]).max() <= 0.1
        return
    assert not space.walls[tuple(np.round(goal / 4).astype(int).T)].any()
    off = abs(q[:, :2] - 4 * np.round(q[:, :2] / 4)).max()
    if space.hops:  # starts are exact, in every cell that a hop starts from
        assert off == 0
        assert len(np.unique(q[:, :2], axis=0)) == 8
    else:
        assert 0.09 < off <= 0.1
        assert len(np.unique(np.round(q[:, :2] / 4), axis=0)) == 1
        assert len(np.unique(goal, axis=0)) == len(space.goals)


def test_health_and_distance_of_given_states() -> None:
    env = build("ant", OPTIONS)

    @jax.jit
    def compute(heights: Array, goals: Array) -> tuple[Array, Array]:
        fell = jax.vmap(lambda z: env.fell(PhysicsState(jnp.zeros(15).at[2].set(z), jnp.zeros(14))))(heights)
        state = jnp.zeros(29).at[:3].set(jnp.array([3.0, 4.0, 0.6]))
        return fell, env.distance(state, goals)

    heights = np.array([0.19, 0.21, 0.99, 1.01, np.nan], np.float32)
    fell, distances = compute(heights, np.array([[3.0, 4.0], [0.0, 0.0]], np.float32))
    assert fell.tolist() == [True, False, False, True, True]
    assert distances.tolist() == [0, 5]  # without the height
    assert (env.spec.goal_radius, env.spec.easy_radius, env.spec.hard_radius) == (0.5, 2.0, None)


def test_options_change_the_physics_or_are_refused() -> None:
    assert build("ant", EnvOptions(physics_dt=0.002)).physics.seconds_per_step == pytest.approx(0.02)
    assert build("ant", EnvOptions(episode_length=50)).spec.episode_length == 50
    for env_id, options, named in (
        ("ant", EnvOptions(separate_walls=True), "separate_walls"),
        ("ant_u_maze", EnvOptions(reference_state=True), "reference_state"),
        ("ant_push", EnvOptions(backend="spring"), "backend: this environment has no 'spring'; it has mjx"),
    ):
        with pytest.raises(ValueError, match=f"env_options.{named}"):
            build(env_id, options)


@pytest.fixture(scope="module")
def thrown() -> tuple[Ant, EnvState, list[EnvState], int]:
    """Simulates two ants in the U-maze for a second, thrown at the wall below x = 2 and along the corridor."""
    env = build("ant_u_maze", OPTIONS)
    traces = 0

    def step(env_state: EnvState, action: Array) -> EnvState:
        nonlocal traces
        traces += 1
        return jax.vmap(env.step)(env_state, action)

    q = np.tile(np.array([4.0, 4.0, 0.55, 1, 0, 0, 0, 0, 1, 0, -1, 0, -1, 0, 1], np.float32), (2, 1))
    qd = np.zeros((2, 14), np.float32)
    qd[0, 0], qd[1, 1] = -8.0, 8.0

    def begin(key: Array, q: Array, qd: Array) -> tuple[EnvState, EnvState]:
        """Returns a reset, and the same reset with the ant at `q` and `qd`."""
        fresh = env.reset(key)
        return fresh, fresh._replace(physics=env.physics.init(q, qd))

    fresh, state = jax.jit(jax.vmap(begin), compiler_options=QUICK)(jax.random.split(jax.random.key(0), 2), q, qd)
    stepped, states = jax.jit(step, compiler_options=QUICK), []
    for _ in range(20):
        state = stepped(state, np.zeros((2, 8), np.float32))
        states.append(state)
    return env, fresh, states, traces


@pytest.mark.slow
def test_steps_are_finite_and_compiled_once(thrown: tuple[Ant, EnvState, list[EnvState], int]) -> None:
    env, fresh, states, traces = thrown
    assert traces == 1
    assert fresh.state.shape == (2, 29)
    assert not np.array_equal(fresh.state[0], fresh.state[1])
    for goal in np.asarray(fresh.goal):  # the state must not hold the goal
        assert not any(np.array_equal(pair, goal) for pair in zip(fresh.state[0][:-1], fresh.state[0][1:], strict=True))
    assert all(np.isfinite(state.state).all() for state in states)
    np.testing.assert_array_equal(states[-1].goal, fresh.goal)
    cells = np.asarray(jax.jit(env.cell)(fresh.goal))
    assert ((cells >= 0) & (cells < env.spec.num_cells)).all()


@pytest.mark.slow
def test_walls_stop_an_ant(thrown: tuple[Ant, EnvState, list[EnvState], int]) -> None:
    _, _, states, _ = thrown
    path = np.stack([np.asarray(state.state[:, :2]) for state in states])
    assert path[:, 0, 0].min() > 2.0 + 0.2  # its torso's radius is 0.25 m
    assert path[:, 0, 0].min() < 3.5
    assert path[-1, 1, 1] > 6.0


def test_a_diverged_step_ends_the_episode_with_the_last_finite_state() -> None:
    class Diverging(Physics):
        def __init__(self) -> None:
            self.system = self

        def act_size(self) -> int:
            return 8

        def init(self, q: Array, qd: Array) -> Any:
            return PhysicsState(q, qd)

        def step(self, state: Any, control: Array) -> Any:
            return PhysicsState(state.q.at[9].set(jnp.nan), state.qd)

    env = build("ant", OPTIONS)
    env.__dict__["physics"] = Diverging()

    @jax.jit
    def compute(key: Array) -> tuple[EnvState, EnvState]:
        before = env.reset(key)
        return before, env.step(before, jnp.zeros(8))

    before, after = compute(jax.random.key(0))
    assert bool(after.terminated)
    assert np.isfinite(before.state).all()
    np.testing.assert_array_equal(after.state, before.state)
