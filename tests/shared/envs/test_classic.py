import warnings
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from shared.config import EnvOptions
from shared.envs.base import EnvState
from shared.envs.classic import BoxedEnv, build
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
QUICK = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}  # to compile

pytestmark = pytest.mark.filterwarnings("ignore:Brax System", "ignore:compiler attribute 'settotalmass'")


class Seen(NamedTuple):
    """What a state is made of."""

    q: Array
    qd: Array
    x: Any = None
    xd: Any = None


def drawn(env: BoxedEnv, n: int = 2000) -> list[np.ndarray]:
    starts = jax.jit(jax.vmap(env.start))(jax.random.split(jax.random.key(0), n))
    return [np.asarray(x) for x in starts]


def at(env: BoxedEnv, q: np.ndarray, qd: np.ndarray) -> Seen:
    forward = jax.jit(lambda *args: kinematics.forward(env.physics.system, *args), compiler_options=QUICK)
    return Seen(q, qd, *forward(q, qd))


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
def test_without_the_target_the_rest_is_brax_s(
    env_id: str, backend: Any, theirs: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # where MuJoCo writes what it warns of in brax's own cheetah
    physics = build(env_id, EnvOptions(backend=backend)).physics
    theirs = theirs(backend=backend)
    assert physics.seconds_per_step == pytest.approx(float(theirs.dt))
    ours, theirs = physics.system, theirs.sys
    links = ours.num_links()
    assert ours.link_names == theirs.link_names[:links]
    assert ours.link_types == theirs.link_types[:links]
    assert set(theirs.link_names[links:]) <= {"target", "goal"}
    for mine, brax_s in ((ours.link, theirs.link), (ours.dof, theirs.dof), (ours.actuator, theirs.actuator)):
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b[: len(a)], rtol=1e-5, atol=1e-6), mine, brax_s)
    for name in ("ang_damping", "vel_damping", "spring_mass_scale", "spring_inertia_scale", "joint_scale_pos"):
        assert getattr(ours, name) == getattr(theirs, name)
    for name in ("geom_friction", "geom_contype", "geom_conaffinity", "geom_size", "geom_pos", "geom_margin"):
        mine, brax_s = getattr(ours, name), getattr(theirs, name)
        np.testing.assert_allclose(mine, brax_s[: len(mine)], atol=1e-6)
    if backend == "mjx":
        for name in ("timestep", "solver", "iterations", "ls_iterations", "disableflags"):
            assert getattr(ours.opt, name) == getattr(theirs.opt, name)


@pytest.mark.parametrize(
    ("env_id", "sizes"),
    [("reacher", (10, 3, 2)), ("pusher_easy", (20, 3, 7)), ("pusher_hard", (20, 3, 7)), ("cheetah", (18, 1, 6))],
)
def test_sizes(env_id: str, sizes: tuple[int, ...]) -> None:
    env = build(env_id, OPTIONS)
    state = jax.eval_shape(env.reset, jax.random.key(0))
    assert (*state.state.shape, *state.goal.shape) == sizes[:2]
    assert (env.spec.state_size, env.spec.goal_size, env.spec.action_size) == sizes
    assert len(env.spec.goal_indices) == sizes[1]
    assert env.spec.episode_length == 1000
    assert env.goal_points(jnp.zeros(sizes[1])).shape == (1, 3)
    assert not env.fell(None)
    action = jnp.full(sizes[2], 0.7)
    np.testing.assert_array_equal(env.control(None, action), action)


def test_the_reacher_s_tip_and_its_velocity() -> None:
    env = build("reacher", OPTIONS)
    q, qd, dt = np.array([0.7, -2.0]), np.array([3.0, -5.0]), 1e-3
    state = np.asarray(env.observe(at(env, q, qd), jnp.zeros(2), jnp.zeros(3)))
    np.testing.assert_allclose(state[:4], [*np.cos(q), *np.sin(q)], rtol=1e-6)

    def tip(q: np.ndarray) -> np.ndarray:
        first, both = q[0], q[0] + q[1]
        return np.array([0.1 * np.cos(first) + 0.11 * np.cos(both), 0.1 * np.sin(first) + 0.11 * np.sin(both), 0.01])

    np.testing.assert_allclose(state[4:7], tip(q), atol=1e-6)
    np.testing.assert_allclose(state[7:], (tip(q + dt * qd) - tip(q - dt * qd)) / (2 * dt), atol=1e-4)
    assert float(env.distance(state, tip(q) + np.array([0.03, 0.04, 0]))) == pytest.approx(0.05, abs=1e-5)


def test_the_pusher_s_wrist_and_object_are_where_brax_says() -> None:
    env = build("pusher_hard", OPTIONS)
    rng = np.random.default_rng(0)
    seen = at(env, np.append(rng.uniform(-0.5, 0.5, 7), [-0.1, 0.2]), rng.normal(size=9))
    state = np.asarray(env.observe(seen, jnp.zeros(7), jnp.zeros(3)))
    system = env.physics.system
    centres = seen.x.vmap().do(Transform.create(pos=system.link.inertia.transform.pos)).pos
    np.testing.assert_allclose(state[7:10], centres[system.link_names.index("r_wrist_flex_link")], atol=1e-6)
    np.testing.assert_allclose(state[10:13], centres[-1], atol=1e-6)
    np.testing.assert_allclose(state[10:13], [0.45 + 0.2, -0.05 - 0.1, -0.275], atol=1e-6)
    np.testing.assert_allclose(state[:7], seen.q[:7], rtol=1e-6)
    np.testing.assert_allclose(state[13:], seen.qd[:7], rtol=1e-6)


def test_the_reacher_starts_anywhere_near_straight_and_reaches_its_goals() -> None:
    q, qd, goal = drawn(build("reacher", OPTIONS))
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
def test_the_pusher_s_object_lies_apart_from_its_goal(
    env_id: str, low: tuple[float, float], high: tuple[float, float]
) -> None:
    q, qd, goal = drawn(build(env_id, OPTIONS))
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


def test_the_cheetah_runs_to_the_same_place_always() -> None:
    env = build("cheetah", OPTIONS)
    q, qd, goal = drawn(env)
    np.testing.assert_allclose([q.min(0), q.max(0)], [[-0.1] * 9, [0.1] * 9], atol=1e-3)
    np.testing.assert_allclose(qd.std(axis=0), 0.1, rtol=0.1)
    assert (goal == 5).all()
    state = env.observe(Seen(jnp.arange(9.0), jnp.arange(9.0, 18)), jnp.zeros(6), goal[0])
    np.testing.assert_array_equal(state, np.arange(18))
    assert float(env.distance(state, goal[0])) == 5
    np.testing.assert_allclose(env.goal_points(goal[0]), [[5, 0, 0.6]])


@pytest.mark.parametrize("env_id", IDS)
def test_goals_are_in_many_cells_and_what_is_outside_in_the_nearest(env_id: str) -> None:
    env = build(env_id, OPTIONS)
    cells = np.asarray(env.cell(drawn(env)[2]))
    assert cells.dtype == np.int32
    assert ((cells >= 0) & (cells < env.spec.num_cells)).all()
    assert len(np.unique(cells)) == 1 if env_id == "cheetah" else len(np.unique(cells)) > 10
    ends = np.asarray(env.cell(np.array([[-99.0], [99.0]]) * np.ones(env.spec.goal_size)))
    assert list(ends) == [0, env.spec.num_cells - 1]


def test_radii() -> None:
    radii = [(s.goal_radius, s.easy_radius, s.hard_radius) for s in (build(env_id, OPTIONS).spec for env_id in IDS)]
    assert radii == [(0.05, None, None), (0.1, None, 0.05), (0.1, None, 0.05), (0.5, 2.0, None)]


@pytest.mark.parametrize("env_id", IDS)
def test_options_are_taken_or_refused(env_id: str) -> None:
    assert build(env_id, EnvOptions(episode_length=50)).spec.episode_length == 50
    for options, named in (
        (EnvOptions(reference_state=True), "reference_state"),
        (EnvOptions(separate_walls=True), "separate_walls"),
        (EnvOptions(backend="generalized" if env_id == "cheetah" else "mjx"), "backend"),
    ):
        with pytest.raises(ValueError, match=named):
            build(env_id, options)


def test_a_reacher_holds_together_and_its_steps_are_compiled_once() -> None:
    env = build("reacher", OPTIONS)
    traces = 0

    def step(env_state: EnvState, action: Array) -> EnvState:
        nonlocal traces
        traces += 1
        return jax.vmap(env.step)(env_state, action)

    state = fresh = jax.jit(jax.vmap(env.reset), compiler_options=QUICK)(jax.random.split(jax.random.key(0), 2))
    stepped = jax.jit(step, compiler_options=QUICK)
    for i in range(100):
        state = stepped(state, jnp.array([[1.0, 1.0], [-1.0, 0.5]]) * (-1) ** (i // 10))
    assert traces == 1
    assert np.isfinite(state.state).all()
    assert not state.terminated.any()
    np.testing.assert_array_equal(state.goal, fresh.goal)
    assert not np.array_equal(fresh.goal[0], fresh.goal[1])
    # The arm has not come apart, as it does where physics steps are too long: its tip is where its angles say.
    first, both = state.physics.q[:, 0], state.physics.q.sum(axis=1)
    tip = [0.1 * jnp.cos(first) + 0.11 * jnp.cos(both), 0.1 * jnp.sin(first) + 0.11 * jnp.sin(both)]
    np.testing.assert_allclose(state.state[:, 4:6], np.stack(tip, axis=1), atol=0.01)
    np.testing.assert_allclose(state.state[:, 6], 0.01, atol=0.01)
    assert np.abs(np.asarray(state.state[:, 7:9])).max() > 0.1
