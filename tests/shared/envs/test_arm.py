"""Tests of the arm. The numbers of its reference are repeated here and compared with the compiled models."""

import itertools
from collections.abc import Callable
from functools import cache, partial
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import mujoco
import numpy as np
import pytest

from shared.config import EnvOptions
from shared.envs.arm import TASKS, Arm, ArmReach, build
from shared.envs.brax_env import compile_model
from shared.types import Array

IDS = tuple(TASKS)
WITH_CUBE = IDS[1:]
MOVES = IDS[2:]
START = (1.571, 0.742, 0, -1.571, 0, 3.054, 1.449)
FINGERS = ("left_finger", "right_finger")
SETTLED = np.array([1, 1, 2000 / 3500, 2000 / 3500, 0.5, 0.5, 0.5])  # share of its control that a joint reaches

QUICK = {  # XLA options for short compilation
    "xla_backend_optimization_level": 0,
    "xla_llvm_disable_expensive_passes": True,
    "xla_cpu_use_fusion_emitters": False,
}

every_id = pytest.mark.parametrize("env_id", IDS)
pytestmark = pytest.mark.filterwarnings("ignore:Brax System")

# Mass; centre of mass; inertia xx, yy, zz, xy, xz, yz.
LINKS = """
4.970684   .003875  .002081 -.04762    .70337  .70661  .009117 -.000139  .006772  .019169
 .646926  -.003141 -.02872   .003495   .007962 .02811  .025995 -.003925  .010254  .000704
3.228604   .027518  .039252 -.066502   .037242 .036155 .01083  -.004761 -.011396 -.012805
3.587895  -.05317   .104419  .027454   .025853 .019552 .028323  .007796 -.001332  .008641
1.225946  -.011953  .041065 -.038437   .035549 .029474 .008627 -.002117 -.004037  .000229
1.666555   .060149 -.014117 -.010517   .001964 .004354 .005433  .000109 -.001158  .000341
 .735522   .010517 -.004252  .061597   .012516 .010027 .004815 -.000428 -.001196 -.000741
"""
# Gain, stiffness, damping, force, lowest and highest control.
SERVOS = """
4500 4500 450 87 -2.8973  2.8973
4500 4500 450 87 -1.7628  1.7628
2000 3500 350 87 -2.8973  2.8973
2000 3500 350 87 -3.0718  -.0698
1000 2000 200 12 -2.8973  2.8973
1000 2000 200 12  -.0175  3.7525
1000 2000 200 12 -2.8973  2.8973
"""
FINGER_SERVO = (0.15686, 500, 50, 500, 0, 255)


@cache
def env(env_id: str) -> Arm:
    return build(env_id, EnvOptions())


@cache
def model(env_id: str) -> mujoco.MjModel:
    return compile_model(env(env_id).model_spec())


def numbers(table: str) -> np.ndarray:
    return np.array([line.split() for line in table.strip().splitlines()], float)


def started(env_id: str, control: Array | None = None, seconds: float = 0.0) -> mujoco.MjData:
    """Returns MuJoCo's own simulation after `seconds` from a start, with constant `control`."""
    model_, data = model(env_id), mujoco.MjData(model(env_id))
    model_.opt.timestep = 0.002
    data.qpos[:] = drawn(env_id)[0][0]
    if control is not None:
        data.ctrl[:] = control
    for _ in range(round(seconds / 0.002)):
        mujoco.mj_step(model_, data)
    mujoco.mj_forward(model_, data)
    return data


@cache
def all_drawn() -> dict[str, tuple[np.ndarray, ...]]:
    """Returns `drawn` for all environments, compiled at once."""
    draw = jax.jit(lambda keys: {env_id: jax.vmap(env(env_id).start)(keys) for env_id in IDS})
    return jax.device_get(draw(jax.random.split(jax.random.key(0), 1000)))


def drawn(env_id: str) -> tuple[np.ndarray, ...]:
    """Returns positions, velocities and goals of 1000 starts."""
    return all_drawn()[env_id]


@cache
def compiled_control(env_id: str) -> Callable[[np.ndarray], Array]:
    """Returns `control` for actions `[N, A]`, compiled."""
    return jax.jit(jax.vmap(partial(env(env_id).control, None)))


def controls(env_id: str, actions: Any) -> np.ndarray:
    """Returns the controls that the actuators get for each of `actions` `[N, A]`."""
    padded = np.zeros((2746, env(env_id).spec.action_size), np.float32)  # one shape, so that `control` is compiled once
    padded[: len(actions)] = actions
    return np.asarray(compiled_control(env_id)(padded))[: len(actions)]


@cache
def compiled_cell(env_id: str) -> Callable[[np.ndarray], Array]:
    return jax.jit(env(env_id).cell)


@every_id
def test_bodies_have_the_masses_of_the_reference(env_id: str) -> None:
    compiled = model(env_id)
    names = [compiled.body(number).name for number in range(1, compiled.nbody)]
    arm = [f"link{number}" for number in range(1, 8)]
    assert names == (["cube", *arm, *FINGERS] if env_id in WITH_CUBE else arm)
    table = numbers(LINKS)
    for name, row in zip(arm, table, strict=True):
        body = compiled.body(name)
        turn = np.zeros(9)
        mujoco.mju_quat2Mat(turn, body.iquat)
        turn = turn.reshape(3, 3)
        xx, yy, zz, xy, xz, yz = row[4:]
        np.testing.assert_allclose(body.mass, row[0])
        np.testing.assert_allclose(body.ipos, row[1:4])
        inertia = turn @ np.diag(body.inertia) @ turn.T
        np.testing.assert_allclose(inertia, [[xx, xy, xz], [xy, yy, yz], [xz, yz, zz]], atol=1e-9)
    if env_id in WITH_CUBE:
        for name in FINGERS:
            np.testing.assert_allclose(compiled.body(name).mass, 0.015)
            np.testing.assert_allclose(compiled.body(name).inertia, (2.375e-6, 2.375e-6, 7.5e-7))
        np.testing.assert_allclose(compiled.body("cube").mass, 0.216)


@every_id
def test_joints_and_servos_equal_the_reference(env_id: str) -> None:
    compiled = model(env_id)
    fingers = 2 * (env_id in WITH_CUBE)
    limits = {2: (-1.7628, 1.7628), 4: (-3.0718, -0.0698), 6: (-0.0175, 3.7525)}
    for number in range(1, 8):
        joint = compiled.joint(f"joint{number}")
        assert (joint.armature, joint.damping) == (0, 0)
        assert bool(compiled.jnt_limited[joint.id]) == (number in limits)
        np.testing.assert_allclose(joint.range, limits.get(number, (0, 0)))
    for name in FINGERS[:fingers]:
        joint = compiled.joint(name)
        assert (joint.armature, joint.damping) == (0.1, 5)
        np.testing.assert_allclose(joint.range, (0, 0.08))
    table = np.concatenate([numbers(SERVOS), np.tile(FINGER_SERVO, (fingers, 1))])
    gain, stiffness, damping, force, *controls = table.T
    np.testing.assert_allclose(compiled.actuator_gainprm[:, 0], gain)
    np.testing.assert_allclose(compiled.actuator_biasprm[:, :3].T, [0 * gain, -stiffness, -damping])
    np.testing.assert_allclose(compiled.actuator_forcerange.T, [-force, force])
    np.testing.assert_allclose(compiled.actuator_ctrlrange.T, controls)
    assert compiled.actuator_ctrllimited.all()
    assert compiled.actuator_forcelimited.all()
    assert compiled.neq == bool(fingers)
    np.testing.assert_allclose(compiled.eq_solref, np.tile((0.005, 1), (compiled.neq, 1)))
    np.testing.assert_allclose(compiled.eq_solimp[:, :3], np.tile((0.95, 0.99, 0.001), (compiled.neq, 1)))
    np.testing.assert_allclose(compiled.eq_data[:, :5], np.tile((0, 1, 0, 0, 0), (compiled.neq, 1)))


@pytest.mark.parametrize(
    ("env_id", "pairs", "impratio"),
    [
        ("arm_reach", 1, 1),
        ("arm_grasp", 8, 1),
        ("arm_push_easy", 8, 1),
        ("arm_push_hard", 8, 1),
        ("arm_binpick_easy", 40, 10),
        ("arm_binpick_hard", 40, 10),
    ],
)
def test_only_named_pairs_touch(env_id: str, pairs: int, impratio: float) -> None:
    compiled = model(env_id)
    assert not compiled.geom_contype.any()
    assert not compiled.geom_conaffinity.any()
    assert compiled.npair == pairs
    np.testing.assert_allclose(compiled.pair_friction, [(1, 1, 0.005, 1e-4, 1e-4)] * pairs)
    assert (compiled.pair_dim == 3).all()
    touching = [
        {compiled.geom(a).name, compiled.geom(b).name}
        for a, b in zip(compiled.pair_geom1, compiled.pair_geom2, strict=True)
    ]
    assert len({frozenset(pair) for pair in touching}) == pairs
    assert {"table", "hand"} in touching
    assert {"hand", "left_finger"} not in touching
    assert compiled.opt.impratio == impratio
    assert compiled.opt.integrator == mujoco.mjtIntegrator.mjINT_IMPLICITFAST
    assert compiled.opt.cone == mujoco.mjtCone.mjCONE_PYRAMIDAL


def test_colliding_geoms_have_the_sizes_of_the_reference() -> None:
    compiled = model("arm_binpick_hard")
    hand = compiled.geom("hand")
    np.testing.assert_allclose(hand.pos, (0, 0, 0.142), atol=1e-9)
    np.testing.assert_allclose(hand.size[:2], (0.04, 0.06))
    along = np.zeros(3)
    mujoco.mju_rotVecQuat(along, np.array([0.0, 0.0, 1.0]), hand.quat)
    np.testing.assert_allclose(abs(along), (0.5**0.5, 0.5**0.5, 0), atol=1e-5)  # sideways, rolled by 45 degrees
    assert along[0] * along[1] > 0
    for name in FINGERS:
        np.testing.assert_allclose(compiled.geom(name).size, (0.015, 0.005, 0.04))
        np.testing.assert_allclose(compiled.geom(name).pos, (0, 0.0055, 0.035))
    np.testing.assert_allclose(compiled.geom("cube").size, [0.03] * 3)


@pytest.mark.parametrize(
    ("env_id", "x", "inner"), [("arm_binpick_easy", 0.17, 0.135), ("arm_binpick_hard", 0.3, 0.185)]
)
def test_bins_are_closed_and_contain_cube_and_goal(env_id: str, x: float, inner: float) -> None:
    compiled = model(env_id)
    walls = [compiled.geom(number) for number in range(compiled.ngeom) if "wall" in compiled.geom(number).name]
    assert len(walls) == 8
    q, _, goal = drawn(env_id)
    for bin_x, inside in ((-x, q[:, :2]), (x, goal[:, :2])):
        frame = [wall for wall in walls if np.sign(wall.pos[0]) == np.sign(bin_x)]
        low = np.min([wall.pos - wall.size for wall in frame], axis=0)
        high = np.max([wall.pos + wall.size for wall in frame], axis=0)
        np.testing.assert_allclose(low, (bin_x - inner - 0.01, 0.6 - inner - 0.01, 0), atol=1e-9)
        np.testing.assert_allclose(high, (bin_x + inner + 0.01, 0.6 + inner + 0.01, 0.066), atol=1e-9)
        area = sum(4 * wall.size[0] * wall.size[1] for wall in frame)
        np.testing.assert_allclose(area, (2 * inner + 0.02) ** 2 - (2 * inner) ** 2)  # a frame without overlap
        assert (abs(inside - (bin_x, 0.6)) < inner).all()


@every_id
def test_start_pose(env_id: str) -> None:
    data = started(env_id)
    np.testing.assert_allclose(data.body("link7").xpos, (0, 0.678, 0.371), atol=1e-3)
    if env_id in WITH_CUBE:
        assert data.body("left_finger").xpos[0] > 0 > data.body("right_finger").xpos[0]
        np.testing.assert_allclose(np.linalg.norm(np.subtract(*(data.body(n).xpos for n in FINGERS))), 0.08)


@every_id
def test_servos_settle_at_the_angles_that_their_gains_imply(env_id: str) -> None:
    command = np.array(START)
    control = np.append(command, [255, 255]) if env_id in WITH_CUBE else command
    data = started(env_id, control, seconds=3.0)
    q = data.qpos[7:] if env_id in WITH_CUBE else data.qpos
    np.testing.assert_allclose(q[:7], SETTLED * command, atol=0.015)
    np.testing.assert_allclose(q[[3, 5, 6]], (-0.903, 1.526, 0.724), atol=1e-3)  # as in the reference, with gravity
    np.testing.assert_allclose(q[7:], 0.08, atol=1e-4)
    assert abs(data.qvel).max() < 1e-3


def test_a_dropped_cube_lies_on_the_table() -> None:
    for env_id in ("arm_push_easy", "arm_binpick_easy"):
        data = started(env_id, np.append(START, [255, 255]), seconds=0.5)
        np.testing.assert_allclose(data.body("cube").xpos[2], 0.03, atol=1e-3)


@pytest.mark.parametrize(
    ("env_id", "state", "goal_at", "action"),
    [
        ("arm_reach", 13, (7, 10), 4),
        ("arm_grasp", 23, (16, 23), 5),
        *((env_id, 17, (0, 3), 5) for env_id in MOVES),
    ],
)
def test_sizes(env_id: str, state: int, goal_at: tuple[int, int], action: int) -> None:
    spec = env(env_id).spec
    assert (spec.state_size, spec.goal_size, spec.action_size) == (state, goal_at[1] - goal_at[0], action)
    assert spec.goal_indices == tuple(range(*goal_at))
    assert (spec.episode_length, spec.backend) == (1000, "mjx")
    radii = (0.05, 0.15, 0.02) if env_id == "arm_grasp" else (0.1, 0.3, 0.03)
    assert (spec.goal_radius, spec.easy_radius, spec.hard_radius) == radii
    # test_registry.py checks the shapes that a reset returns.
    points = jax.eval_shape(env(env_id).goal_points, np.zeros(spec.goal_size, np.float32))
    assert points.shape == (2 if env_id == "arm_grasp" else 1, 3)


@pytest.mark.parametrize("env_id", ["arm_reach", "arm_grasp", "arm_push_hard"])
def test_observation_equals_mujoco(env_id: str) -> None:
    nu, with_cube = model(env_id).nu, env_id in WITH_CUBE
    data = started(env_id, np.append(START, [255, 255])[:nu], seconds=0.2)
    velocity = np.zeros((model(env_id).nbody, 6))
    for number, row in enumerate(velocity):
        mujoco.mj_objectVelocity(model(env_id), data, mujoco.mjtObj.mjOBJ_XBODY, number, row, 0)
    moving = SimpleNamespace(pos=data.xpos[1:]), SimpleNamespace(vel=velocity[1:, 3:])
    physics = SimpleNamespace(q=data.qpos, x=moving[0], xd=moving[1], xmat=data.xmat.reshape(-1, 3, 3))
    arm = data.qpos[7:14] if with_cube else data.qpos
    link7 = data.body("link7")
    expected = [arm, link7.xpos, velocity[link7.id, 3:]]
    assert np.linalg.norm(expected[-1]) > 0.1
    if with_cube:
        fingers = [data.body(name) for name in FINGERS]
        places = [finger.xpos for finger in fingers]
        if env_id == "arm_grasp":
            places = [finger.xpos + finger.xmat.reshape(3, 3) @ (0, 0.005, 0.07) for finger in fingers]
        apart = 2 * data.qpos[-1] + (0.01 if env_id == "arm_grasp" else 0)
        expected = [data.body("cube").xpos, *expected, *places * (env_id == "arm_grasp"), [apart]]
        np.testing.assert_allclose(np.linalg.norm(places[0] - places[1]), apart, atol=1e-4)
    goal = np.zeros(env(env_id).spec.goal_size)
    q, pos, vel, xmat = (x.astype(np.float32) for x in (physics.q, physics.x.pos, physics.xd.vel, physics.xmat))

    @jax.jit
    def observe(q: Array, pos: Array, vel: Array, xmat: Array) -> Array:
        moving = SimpleNamespace(pos=pos), SimpleNamespace(vel=vel)
        return env(env_id).observe(SimpleNamespace(q=q, x=moving[0], xd=moving[1], xmat=xmat), data.ctrl, goal)

    state = observe(q, pos, vel, xmat)
    assert state.shape == (env(env_id).spec.state_size,)
    np.testing.assert_allclose(state, np.concatenate(expected), atol=1e-4)


def test_grasp_goal_follows_the_cube() -> None:
    cube = np.array([0.1, 0.5, 0.03])
    physics = SimpleNamespace(q=np.append(cube, np.zeros(13)))
    goal = jax.jit(lambda q: env("arm_grasp").follow(SimpleNamespace(q=q), np.zeros(7)))(physics.q)
    np.testing.assert_allclose(goal, (0.1375, 0.5, 0.03, 0.0625, 0.5, 0.03, 0.075), rtol=1e-6)
    np.testing.assert_allclose(env("arm_grasp").goal_points(goal), np.reshape(goal[:6], (2, 3)))
    kept = np.ones(3)
    assert env("arm_push_easy").follow(physics, kept) is kept


@pytest.mark.parametrize(
    ("env_id", "cube", "cube_reach", "goal", "goal_reach"),
    [
        ("arm_reach", None, 0, (0, 0.5, 0.3), (0.2, 0.2, 0.2)),
        ("arm_grasp", (0, 0.6), 0.3, None, None),
        ("arm_push_easy", (-0.1, 0.6), 0.1, (0.1, 0.6, 0.03), (0.1, 0.1, 0)),
        ("arm_push_hard", (-0.25, 0.65), 0.25, (0.25, 0.65, 0.03), (0.25, 0.25, 0)),
        ("arm_binpick_easy", (-0.15, 0.6), 0.09, (0.17, 0.6, 0.03), (0.09, 0.09, 0)),
        ("arm_binpick_hard", (-0.3, 0.6), 0.15, (0.3, 0.6, 0.03), (0.15, 0.15, 0)),
    ],
)
def test_starts_and_goals_are_uniform(env_id: str, cube: Any, cube_reach: float, goal: Any, goal_reach: Any) -> None:
    q, qd, goals = drawn(env_id)
    assert (q.shape[1], qd.shape[1]) == (model(env_id).nq, model(env_id).nv)
    assert not qd.any()
    np.testing.assert_allclose(q[:, -9:] if cube else q, [START + (0.04, 0.04) * bool(cube)] * 1000, rtol=1e-6)
    if cube:
        uniform(q[:, :2], cube, (cube_reach, cube_reach))
        np.testing.assert_allclose(q[:, 2:7], [(0.07, 1, 0, 0, 0)] * 1000)
    if goal:
        uniform(goals, goal, goal_reach)
    if cube and goal:
        assert abs(np.corrcoef(q[:, 0], goals[:, 0])[0, 1]) < 0.15
    if not goal:
        beside = q[:, None, :3] + np.array([[0.0375, 0, 0], [-0.0375, 0, 0]])
        np.testing.assert_allclose(
            goals, np.append(beside.reshape(-1, 6), np.full((1000, 1), 0.075), axis=1), atol=1e-6
        )


def uniform(drawn: np.ndarray, centre: Any, reach: Any) -> None:
    """Asserts that `drawn` `[N, k]` fills the box around `centre` evenly."""
    offset = drawn - np.array(centre)
    assert (abs(offset) <= np.array(reach) + 1e-6).all()
    np.testing.assert_allclose(offset.std(axis=0), np.array(reach) / 3**0.5, rtol=0.1, atol=1e-6)
    np.testing.assert_allclose(offset.mean(axis=0), 0, atol=0.02)


@every_id
def test_actions_are_target_angles(env_id: str) -> None:
    lowest, highest = [0.3491, 0, 0, -3.0718, 0, 2.3562, 1.4487], [2.7925, 1.48353, 0, -0.0698, 0, 3.7525, 1.4487]
    fingers = 2 * (env_id in WITH_CUBE)
    size = env(env_id).spec.action_size
    command = np.array([lowest, highest, np.mean([lowest, highest], axis=0)])
    alone = np.zeros(size)
    alone[2] = 1.0
    *targets, moved = controls(env_id, [np.full(size, -1.0), np.full(size, 1.0), np.zeros(size), alone])
    assert np.shape(targets) == (3, model(env_id).nu)
    np.testing.assert_allclose(
        targets, np.append(command, [[255] * fingers, [0] * fingers, [255] * fingers], axis=1), atol=1e-6
    )
    np.testing.assert_allclose(np.flatnonzero(moved - targets[2]), [3])


def test_last_action_opens_or_closes_the_fingers() -> None:
    last, command = (-1, -1e-3, 0, 1e-3, 1), (255, 255, 255, 0, 0)
    actions = np.zeros((5, 5))
    actions[:, -1] = last
    np.testing.assert_array_equal(controls("arm_push_hard", actions)[:, -2:], np.transpose([command, command]))


GRASPS: list[tuple[float, float]] = [(0.0, 0.0), (1 - 1e-3, 1 - 1e-3), (1 + 1e-3, 0.0), (0.0, 1 + 1e-3)]


@cache
def grasp_distance() -> Callable[[np.ndarray, np.ndarray], Array]:
    return jax.jit(env("arm_grasp").distance)


@pytest.mark.parametrize(
    ("radius", "midpoint", "opening"),
    [("goal_radius", 0.05, 0.02), ("easy_radius", 0.15, 0.05), ("hard_radius", 0.02, 0.005)],
)
@pytest.mark.parametrize("too_wide", [False, True])
def test_grasp_needs_position_and_opening(radius: str, midpoint: float, opening: float, too_wide: bool) -> None:
    grasp = env("arm_grasp")
    limit = getattr(grasp.spec, radius)
    cube = np.array([0.1, 0.5, 0.03])
    goal = np.array([cube[0] + 0.0375, *cube[1:], cube[0] - 0.0375, *cube[1:], 0.075])

    def state(off: float, error: float) -> np.ndarray:
        apart = 0.075 + error if too_wide else 0.075 - error
        direction = np.array([2, -1, 2]) / 3
        tips = cube + off * direction + np.array([[0.0, 0.5, 0.0], [0.0, -0.5, 0.0]]) * apart
        return np.concatenate([cube, np.full(13, 9.0), tips.ravel(), [apart]])

    errors = [(off * midpoint, error * opening) for off, error in GRASPS]
    states = np.array([state(off, error) for off, error in [*errors, (0.0, 2.0)]])
    succeeds = np.asarray(grasp_distance()(states.astype(np.float32), goal.astype(np.float32))) < limit
    assert succeeds.tolist() == [True, True, False, False, False]


def test_grasp_distance_by_hand_and_in_batches() -> None:
    # Each error of the opening counts like the distance at the same place in the lists.
    errors, distances = (
        [0, 0.0025, 0.005, 0.0125, 0.02, 0.035, 0.05, 0.08],
        [0, 0.01, 0.02, 0.035, 0.05, 0.1, 0.15, 0.25],
    )
    goal = np.zeros(7)
    state = np.zeros((2, 8, 23))
    state[..., 22] = np.multiply.outer([1, -1], errors)
    distance = jax.jit(env("arm_grasp").distance)
    np.testing.assert_allclose(distance(state, goal), [distances] * 2, atol=1e-6)
    state[..., [16, 19]] = 0.12  # both tips are farther away
    np.testing.assert_allclose(distance(state, goal), [np.maximum(distances, 0.12)] * 2, atol=1e-6)


def test_distance_of_the_other_tasks_is_euclidean() -> None:
    push = env("arm_push_easy")
    state = np.zeros((2, 17))
    state[1, :3] = (0.03, 0.04, 0.0)
    np.testing.assert_allclose(jax.jit(push.distance)(state, np.zeros(3)), [0, 0.05], atol=1e-7)


@every_id
def test_cells_distinguish_goals(env_id: str) -> None:
    arm, goals = env(env_id), drawn(env_id)[2]
    cells = np.asarray(compiled_cell(env_id)(goals.reshape(10, 100, -1)))
    assert (cells.shape, cells.dtype) == ((10, 100), np.int32)
    assert ((cells >= 0) & (cells < arm.spec.num_cells)).all()
    assert arm.spec.num_cells == (256 if env_id in MOVES else 512)
    assert len(np.unique(cells)) > 30
    far = np.full(goals.shape, 9.0, np.float32)
    far[::2] *= -1
    far = np.asarray(compiled_cell(env_id)(far.reshape(10, 100, -1))).ravel()
    np.testing.assert_array_equal(far, [0, arm.spec.num_cells - 1] * 500)


@pytest.mark.parametrize("env_id", MOVES)
def test_cells_span_the_area_of_cube_and_goal(env_id: str) -> None:
    q, _, goals = drawn(env_id)
    cells = [np.asarray(compiled_cell(env_id)(x.reshape(10, 100, -1))).ravel() for x in (q[:, :3], goals)]
    rows, columns = np.unravel_index(np.concatenate(cells), (16, 16))
    assert (rows.min(), rows.max()) == (0, 15)
    assert len(np.unique(columns)) == 16


def test_closed_fingertips_reach_cubes_and_goals() -> None:
    compiled = model("arm_push_easy")
    data = mujoco.MjData(compiled)
    actions = np.array(list(itertools.product((0.0,), *[np.linspace(-1, 1, 14)] * 3, (1.0,))))
    reached = []
    for command in controls("arm_push_easy", actions):
        data.qpos[7:] = np.append(SETTLED * command[:7], [0, 0])
        mujoco.mj_kinematics(compiled, data)
        finger = data.body("left_finger")
        tip = finger.xpos + finger.xmat.reshape(3, 3) @ (0, 0.005, 0.07)
        if 0.01 < tip[2] < 0.05 and data.geom("hand").xpos[2] > 0.05:
            reached.append(np.hypot(*tip[:2]))
    nearest, farthest = min(reached), max(reached)
    assert max(np.diff(np.sort(reached))) < 0.06  # no gap

    def within(points: np.ndarray) -> np.ndarray:
        distance, angle = np.hypot(*points.T), np.arctan2(points[:, 1], points[:, 0])
        return (nearest < distance) & (distance < farthest) & (angle > 0.35) & (angle < 2.79)

    for env_id in MOVES:
        q, _, goals = drawn(env_id)
        share = min(within(q[:, :2]).mean(), within(goals[:, :2]).mean())
        assert share > (0.6 if "hard" in env_id else 0.99), env_id


def test_options_are_accepted_or_refused() -> None:
    assert build("arm_reach", EnvOptions(episode_length=50)).spec.episode_length == 50
    for options in (EnvOptions(reference_state=True), EnvOptions(separate_walls=True), EnvOptions(backend="spring")):
        with pytest.raises(ValueError, match="this environment has no"):
            build("arm_reach", options)


class Strong(ArmReach):
    """Arm with unlimited servos, because MJX damps a servo at its limit and MuJoCo does not."""

    def model_spec(self) -> mujoco.MjSpec:
        spec = super().model_spec()
        for actuator in spec.actuators:
            actuator.forcelimited = 0
        return spec


@pytest.mark.slow
def test_steps_compile_once_and_equal_mujoco() -> None:
    reach = Strong(EnvOptions(), TASKS["arm_reach"])
    options = reach.physics.system.mj_model.opt
    assert (options.iterations, options.ls_iterations, options.timestep, options.disableflags) == (6, 12, 0.002, 0)
    assert reach.physics.seconds_per_step == pytest.approx(0.05)
    traces = 0

    def step(env_state: Any, action: Array) -> Any:
        nonlocal traces
        traces += 1
        return jax.vmap(reach.step)(env_state, action)

    env_state = jax.jit(jax.vmap(reach.reset), compiler_options=QUICK)(jnp.stack([jax.random.key(0)] * 2))
    env_state = env_state._replace(goal=env_state.goal + np.array([[0], [0.1]], np.float32))
    goal = np.asarray(env_state.goal)
    compiled = jax.jit(step, compiler_options=QUICK)
    data = mujoco.MjData(reach.physics.system.mj_model)
    data.qpos[:] = START
    for action in np.array([[0.5, -0.5, 0.2, -0.2], [-0.3, 0.1, 0.0, 0.4], [0.9, 0.3, -0.6, 0.1]], np.float32):
        env_state = compiled(env_state, jnp.stack([action] * 2))
        data.ctrl[:] = controls("arm_reach", action[None])[0]
        mujoco.mj_step(reach.physics.system.mj_model, data, 25)
        states = np.asarray(env_state.state)
        np.testing.assert_allclose(states[0, :7], data.qpos, atol=1e-4)
        # MJX and MuJoCo leave the positions before the last of the 25 steps in their state.
        np.testing.assert_allclose(states[0, 7:10], data.body("link7").xpos, atol=1e-4)
        np.testing.assert_array_equal(states[0], states[1])  # the goals differ
    assert traces == 1
    assert not env_state.terminated.any()
    np.testing.assert_array_equal(env_state.goal, goal)


def test_links_have_barriers_on_a_cpu() -> None:
    physics = build("arm_reach", EnvOptions()).physics
    model = physics.system
    traced = jax.make_jaxpr(physics.init)(jnp.zeros(model.q_size()), jnp.zeros(model.qd_size()))
    assert str(traced).count("optimization_barrier") >= 7
