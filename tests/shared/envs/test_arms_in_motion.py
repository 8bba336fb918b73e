"""The arms move as they did with the version of MJX whose rollouts are kept, and the docs show how versions differ."""

from functools import cache
from importlib.metadata import version
from pathlib import Path

import jax
import jax.numpy as jnp
import mujoco
import numpy as np
import pytest

from shared.config import EnvOptions
from shared.envs.arm import TASKS, build
from shared.envs.base import EnvState
from shared.types import Array
from tests.shared.envs import arms_in_motion
from tests.shared.envs.arms_in_motion import HERE, REFERENCE, Motion, drift, places, read, table

REFERENCE_PAGE = Path(__file__).parents[3] / "docs" / "reference.md"
SAME_MODEL = {"arm_grasp": "arm_push_easy", "arm_push_hard": "arm_push_easy"}
KEPT = f"mjx {HERE}"

every_motion = pytest.mark.parametrize("env_id", arms_in_motion.SEEDS)
pytestmark = pytest.mark.filterwarnings("ignore:Brax System")


@cache
def motions() -> dict[str, Motion]:
    return read()


def allowed(motion: Motion) -> np.ndarray:
    """Returns bounds `[T, 2 or 3]` of what rounding may change, by step.

    They are ten times what a start changes that is moved by 1e-6, or what float64 changes.
    """
    changed = [drift(motion, f"{KEPT} {change}", KEPT) for change in ("moved", "float64")]
    return 1e-5 + 10 * np.maximum(*changed)


@pytest.mark.parametrize("env_id", ["arm_binpick_easy", "arm_binpick_hard"])
def test_the_bounds_tell_another_version(env_id: str) -> None:
    motion = motions()[env_id]
    assert (drift(motion, f"mjx {REFERENCE}", KEPT) > allowed(motion)).any()


def test_kept_rollouts_are_of_the_installed_version() -> None:
    """Otherwise: `python -m tests.shared.envs.arms_in_motion --roll`, then compare in docs/reference.md."""
    assert version("mujoco-mjx") == version("mujoco") == HERE


def test_the_docs_show_the_kept_rollouts() -> None:
    assert table(motions()) in REFERENCE_PAGE.read_text(encoding="utf-8")


def test_every_arm_has_the_model_of_a_motion() -> None:
    assert {*motions(), *SAME_MODEL} == {*TASKS}
    assert {*SAME_MODEL.values()} <= {*motions()}


@pytest.mark.parametrize("env_id", TASKS)
def test_a_motions_model_is_that_of_the_environment(env_id: str) -> None:
    """Geoms that can touch are compared, and the others are left out: they are painted patches and the arm's looks."""
    model = build(env_id, EnvOptions()).physics.system.mj_model
    kept = motions()[SAME_MODEL.get(env_id, env_id)].model()
    for name in ("timestep", "solver", "iterations", "ls_iterations", "integrator", "cone", "impratio", "disableflags"):
        assert getattr(model.opt, name) == getattr(kept.opt, name), name
    compared = 0
    for name in dir(model):
        array = getattr(model, name)
        if name.startswith(("body_", "jnt_", "dof_", "actuator_", "eq_", "pair_", "qpos")) and not any(
            part in name for part in ("geom", "plugin", "tree", "bvh")
        ):
            np.testing.assert_array_equal(array, getattr(kept, name), err_msg=name)
            compared += 1
    assert compared > 60
    for one, other in zip(touching(model), touching(kept), strict=True):
        for field in ("type", "bodyid", "pos", "quat", "size"):
            np.testing.assert_array_equal(getattr(one, field), getattr(other, field), err_msg=f"{one.name} {field}")


def touching(model: mujoco.MjModel) -> list:
    """Returns the geoms of all contact pairs."""
    return [model.geom(number) for pair in zip(model.pair_geom1, model.pair_geom2, strict=True) for number in pair]


@every_motion
def test_a_motion_has_contact_in_it(env_id: str) -> None:
    motion = motions()[env_id]
    model = motion.model()
    data = mujoco.MjData(model)
    arm = {"hand", "left_finger", "right_finger"}
    touched = []
    for data.qpos[:] in motion.rolled[KEPT]:
        mujoco.mj_forward(model, data)
        pairs = [{model.geom(number).name for number in pair} for pair in data.contact.geom]
        touched.append(
            any(pair & arm and pair - arm == {"table" if env_id == "arm_reach" else "cube"} for pair in pairs)
        )
    assert any(touched)
    angles, end_effector, *cube = places(motion, motion.rolled[KEPT].astype(float))
    assert np.ptp(angles, axis=0).max() > 1
    assert np.ptp(end_effector, axis=0).max() > 0.3
    for positions in cube:
        landed, end = positions[touched.index(True) - 1], positions[-1]
        assert np.linalg.norm(end - landed) > 0.03
    assert len(cube) == (env_id != "arm_reach")


@pytest.mark.envs
@pytest.mark.timeout(1200)
@every_motion
def test_an_environment_moves_as_kept(env_id: str) -> None:
    motion, arm = motions()[env_id], build(env_id, EnvOptions())

    @jax.jit
    def roll(start: Array, actions: Array) -> tuple[Array, Array]:
        def step(env_state: EnvState, action: Array) -> tuple[EnvState, tuple[Array, Array]]:
            env_state = arm.step(env_state, action)
            return env_state, (env_state.physics.q, env_state.terminated)

        physics = arm.physics.init(start, jnp.zeros(arm.physics.system.qd_size()))
        goal = jnp.zeros(arm.spec.goal_size)
        state = arm.observe(physics, jnp.zeros(arm.physics.system.act_size()), goal)
        return jax.lax.scan(step, EnvState(physics, state, goal, jnp.zeros((), bool)), actions)[1]

    motion.rolled["env"], terminated = map(np.asarray, roll(motion.start, motion.actions))
    assert not terminated.any()
    off = drift(motion, "env", KEPT)
    far = np.flatnonzero((off >= allowed(motion)).any(axis=1))
    assert not far.size, f"steps {far + 1}: {off.max(axis=0)}"
