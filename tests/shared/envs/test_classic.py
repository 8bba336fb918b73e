import warnings
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from shared.config import EnvOptions
from shared.envs.base import EnvState
from shared.envs.brax_env import BraxEnv
from shared.envs.classic import build
from shared.types import Array

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from brax import kinematics
    from brax.base import Transform
    from brax.envs.half_cheetah import Halfcheetah as BraxCheetah
    from brax.envs.pusher import Pusher as BraxPusher
    from brax.envs.reacher import Reacher as BraxReacher

OPTIONS = EnvOptions()
IDS = ["reacher", "pusher_easy", "pusher_hard", "cheetah"]
QUICK = {  # XLA options for short compilation
    "xla_backend_optimization_level": 0,
    "xla_llvm_disable_expensive_passes": True,
    "xla_cpu_use_fusion_emitters": False,
}

pytestmark = pytest.mark.filterwarnings("ignore:Brax System", "ignore:compiler attribute 'settotalmass'")


class PhysicsState(NamedTuple):
    """Fields of a pipeline's state that observations need."""

    q: Array
    qd: Array
    x: Any = None
    xd: Any = None


@cache
def env_of(env_id: str) -> BraxEnv:
    return build(env_id, OPTIONS)


@cache
def all_drawn() -> dict[str, tuple[np.ndarray, ...]]:
    """Returns `drawn` for all environments, compiled at once."""
    draw = jax.jit(lambda keys: {env_id: jax.vmap(env_of(env_id).start)(keys) for env_id in IDS})
    return jax.device_get(draw(jax.random.split(jax.random.key(0), 2000)))


def drawn(env_id: str) -> tuple[np.ndarray, ...]:
    """Returns positions, velocities and goals of 2000 starts."""
    return all_drawn()[env_id]


def observed(env: BraxEnv, q: np.ndarray, qd: np.ndarray) -> tuple[PhysicsState, np.ndarray]:
    """Returns the physics at `q` and `qd`, and the state `[S]` that the agent observes."""

    def observe(q: Array, qd: Array) -> tuple[PhysicsState, Array]:
        physics = PhysicsState(q, qd, *kinematics.forward(env.physics.system, q, qd))
        return physics, env.observe(physics, jnp.zeros(env.spec.action_size), jnp.zeros(env.spec.goal_size))

    return jax.device_get(jax.jit(observe, compiler_options=QUICK)(q, qd))


@pytest.mark.parametrize(
    ("env_id", "backend", "theirs"),
    [
        ("reacher", "spring", BraxReacher),
        ("reacher", "generalized", BraxReacher),
        ("pusher_easy", "generalized", BraxPusher),
        ("pusher_hard", "spring", BraxPusher),
        ("cheetah", "mjx", BraxCheetah),
    ],
)
def test_model_without_the_target_equals_brax(
    env_id: str, backend: Any, theirs: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # MuJoCo logs warnings about brax's own cheetah to the working directory
    physics = build(env_id, EnvOptions(backend=backend)).physics
    theirs = theirs(backend=backend)
    assert physics.seconds_per_step == pytest.approx(float(theirs.dt))
    ours, theirs = physics.system, theirs.sys
    links = ours.num_links()
    assert ours.link_names == theirs.link_names[:links]
    assert ours.link_types == theirs.link_types[:links]
    assert set(theirs.link_names[links:]) <= {"target", "goal"}
    for mine, reference in ((ours.link, theirs.link), (ours.dof, theirs.dof), (ours.actuator, theirs.actuator)):
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b[: len(a)], rtol=1e-5, atol=1e-6), mine, reference)
    for name in ("ang_damping", "vel_damping", "spring_mass_scale", "spring_inertia_scale", "joint_scale_pos"):
        assert getattr(ours, name) == getattr(theirs, name)
    for name in ("geom_friction", "geom_contype", "geom_conaffinity", "geom_size", "geom_pos", "geom_margin"):
        mine, reference = getattr(ours, name), getattr(theirs, name)
        np.testing.assert_allclose(mine, reference[: len(mine)], atol=1e-6)
    if backend == "mjx":
        for name in ("timestep", "solver", "iterations", "ls_iterations", "disableflags"):
            assert getattr(ours.opt, name) == getattr(theirs.opt, name)


@pytest.mark.parametrize(
    ("env_id", "sizes"),
    [("reacher", (10, 3, 2)), ("pusher_easy", (20, 3, 7)), ("pusher_hard", (20, 3, 7)), ("cheetah", (18, 1, 6))],
)
def test_sizes(env_id: str, sizes: tuple[int, ...]) -> None:
    env = env_of(env_id)  # test_registry.py checks the shapes that a reset returns
    assert (env.spec.state_size, env.spec.goal_size, env.spec.action_size) == sizes
    assert len(env.spec.goal_indices) == sizes[1]
    assert env.spec.episode_length == 1000
    assert jax.eval_shape(env.goal_points, np.zeros(sizes[1], np.float32)).shape == (1, 3)
    assert not env.fell(None)
    action = np.full(sizes[2], 0.7, np.float32)
    np.testing.assert_array_equal(env.control(None, action), action)


def test_reacher_tip_and_its_velocity() -> None:
    env = build("reacher", OPTIONS)
    q, qd, dt = np.array([0.7, -2.0]), np.array([3.0, -5.0]), 1e-3
    _, state = observed(env, q, qd)
    np.testing.assert_allclose(state[:4], [*np.cos(q), *np.sin(q)], rtol=1e-6)

    def tip(q: np.ndarray) -> np.ndarray:
        first, both = q[0], q[0] + q[1]
        return np.array([0.1 * np.cos(first) + 0.11 * np.cos(both), 0.1 * np.sin(first) + 0.11 * np.sin(both), 0.01])

    np.testing.assert_allclose(state[4:7], tip(q), atol=1e-6)
    np.testing.assert_allclose(state[7:], (tip(q + dt * qd) - tip(q - dt * qd)) / (2 * dt), atol=1e-4)
    distance = jax.jit(env.distance)(state, tip(q) + np.array([0.03, 0.04, 0]))
    assert float(distance) == pytest.approx(0.05, abs=1e-5)


def test_pusher_wrist_and_object_positions_equal_brax() -> None:
    env = build("pusher_hard", OPTIONS)
    rng = np.random.default_rng(0)
    physics, state = observed(env, np.append(rng.uniform(-0.5, 0.5, 7), [-0.1, 0.2]), rng.normal(size=9))
    system = env.physics.system
    centres = jax.jit(lambda x: x.vmap().do(Transform.create(pos=system.link.inertia.transform.pos)).pos)(physics.x)
    np.testing.assert_allclose(state[7:10], centres[system.link_names.index("r_wrist_flex_link")], atol=1e-6)
    np.testing.assert_allclose(state[10:13], centres[-1], atol=1e-6)
    np.testing.assert_allclose(state[10:13], [0.45 + 0.2, -0.05 - 0.1, -0.275], atol=1e-6)
    np.testing.assert_allclose(state[:7], physics.q[:7], rtol=1e-6)
    np.testing.assert_allclose(state[13:], physics.qd[:7], rtol=1e-6)


def test_reacher_starts_nearly_straight_and_its_goals_are_within_reach() -> None:
    q, qd, goal = drawn("reacher")
    np.testing.assert_allclose([q.min(0), q.max(0)], [[-0.1] * 2, [0.1] * 2], atol=1e-3)
    np.testing.assert_allclose([qd.min(0), qd.max(0)], [[-0.005] * 2, [0.005] * 2], atol=1e-4)
    radius = np.linalg.norm(goal[:, :2], axis=1)
    assert radius.max() <= 0.2
    assert radius.mean() == pytest.approx(0.1, abs=0.005)
    assert abs(goal[:, :2].mean(axis=0)).max() < 0.01
    assert (goal[:, 2] == np.float32(0.01)).all()


@pytest.mark.parametrize(
    ("env_id", "low", "high"),
    [("pusher_easy", (0.25, -0.6), (0.65, -0.3)), ("pusher_hard", (-0.1, -0.7), (0.9, 0.3))],
)
def test_pusher_object_starts_apart_from_its_goal(
    env_id: str, low: tuple[float, float], high: tuple[float, float]
) -> None:
    q, qd, goal = drawn(env_id)
    assert not q[:, :7].any()
    assert not qd[:, 7:].any()
    np.testing.assert_allclose([qd[:, :7].min(), qd.max()], [-0.005, 0.005], atol=1e-4)
    np.testing.assert_allclose([goal.min(0), goal.max(0)], [(*low, -0.275), (*high, -0.275)], atol=5e-3)
    place = np.array([0.45, -0.05]) + q[:, [8, 7]]
    apart = np.linalg.norm(place - goal[:, :2], axis=1)
    assert apart.min() >= 0.17 - 1e-5
    as_drawn = apart > 0.17 + 1e-5
    assert 0.7 < as_drawn.mean() < 1
    box = [place[as_drawn].min(0), place[as_drawn].max(0)]
    np.testing.assert_allclose(box, [(0.25, -0.35), (0.65, -0.05)], atol=5e-3)
    assert (place.min(0) > np.array([0.25, -0.35]) - 0.17).all()


def test_cheetah_goal_is_always_the_same() -> None:
    env = env_of("cheetah")
    q, qd, goal = drawn("cheetah")
    np.testing.assert_allclose([q.min(0), q.max(0)], [[-0.1] * 9, [0.1] * 9], atol=1e-3)
    np.testing.assert_allclose(qd.std(axis=0), 0.1, rtol=0.1)
    assert (goal == 5).all()

    @jax.jit
    def compute(q: Array, qd: Array, goal: Array) -> tuple[Array, ...]:
        state = env.observe(PhysicsState(q, qd), jnp.zeros(6), goal)
        return state, env.distance(state, goal), env.goal_points(goal)

    state, distance, points = compute(np.arange(9, dtype=np.float32), np.arange(9, 18, dtype=np.float32), goal[0])
    np.testing.assert_array_equal(state, np.arange(18))
    assert float(distance) == 5
    np.testing.assert_allclose(points, [[5, 0, 0.6]])


@pytest.mark.parametrize("env_id", IDS)
def test_goals_fill_many_cells_and_outside_points_count_in_the_nearest_cell(env_id: str) -> None:
    env = env_of(env_id)
    goals = drawn(env_id)[2]
    outside = np.array([[-99.0], [99.0]], np.float32) * np.ones(env.spec.goal_size, np.float32)
    cells = np.asarray(jax.jit(env.cell)(np.concatenate([goals, outside])))
    cells, ends = cells[:-2], cells[-2:]
    assert cells.dtype == np.int32
    assert ((cells >= 0) & (cells < env.spec.num_cells)).all()
    assert len(np.unique(cells)) == 1 if env_id == "cheetah" else len(np.unique(cells)) > 10
    assert list(ends) == [0, env.spec.num_cells - 1]


def test_radii() -> None:
    radii = [(s.goal_radius, s.easy_radius, s.hard_radius) for s in (build(env_id, OPTIONS).spec for env_id in IDS)]
    assert radii == [(0.05, None, None), (0.1, None, 0.05), (0.1, None, 0.05), (0.5, 2.0, None)]


@pytest.mark.parametrize("env_id", IDS)
def test_options_are_accepted_or_refused(env_id: str) -> None:
    assert build(env_id, EnvOptions(episode_length=50)).spec.episode_length == 50
    for options, named in (
        (EnvOptions(reference_state=True), "reference_state"),
        (EnvOptions(separate_walls=True), "separate_walls"),
        (EnvOptions(backend="generalized" if env_id == "cheetah" else "mjx"), "backend"),
    ):
        with pytest.raises(ValueError, match=named):
            build(env_id, options)


@pytest.mark.slow
def test_reacher_links_stay_joined_and_steps_compile_once() -> None:
    env = build("reacher", OPTIONS)
    traces = 0

    def step(env_state: EnvState, action: Array) -> EnvState:
        nonlocal traces
        traces += 1
        return jax.vmap(env.step)(env_state, action)

    state = fresh = jax.jit(jax.vmap(env.reset), compiler_options=QUICK)(jax.random.split(jax.random.key(0), 2))
    stepped = jax.jit(step, compiler_options=QUICK)
    for i in range(100):
        state = stepped(state, np.array([[1.0, 1.0], [-1.0, 0.5]], np.float32) * (-1) ** (i // 10))
    assert traces == 1
    assert np.isfinite(state.state).all()
    assert not state.terminated.any()
    np.testing.assert_array_equal(state.goal, fresh.goal)
    assert not np.array_equal(fresh.goal[0], fresh.goal[1])
    # With too long physics steps the arm comes apart, and its tip is no longer at the position that its angles imply.
    q = np.asarray(state.physics.q)
    first, both = q[:, 0], q.sum(axis=1)
    tip = [0.1 * np.cos(first) + 0.11 * np.cos(both), 0.1 * np.sin(first) + 0.11 * np.sin(both)]
    np.testing.assert_allclose(state.state[:, 4:6], np.stack(tip, axis=1), atol=0.01)
    np.testing.assert_allclose(state.state[:, 6], 0.01, atol=0.01)
    assert np.abs(np.asarray(state.state[:, 7:9])).max() > 0.1
