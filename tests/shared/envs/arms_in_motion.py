"""Arms in motion: open-loop rollouts of the arms, made by two versions of MJX and of MuJoCo's C engine, and kept.

    .venv/bin/python -m tests.shared.envs.arms_in_motion            # prints the table of docs/reference.md
    python -m tests.shared.envs.arms_in_motion --roll               # rolls with the installed versions, and keeps it
    python -m tests.shared.envs.arms_in_motion --roll --float64     # the same with MJX in double precision
    .venv/bin/python -m tests.shared.envs.arms_in_motion --draw     # draws the motions again, forgets all rollouts

`--roll` needs only MuJoCo, MJX, JAX and NumPy, so it runs with versions that Fathom does not support. It steps as the
environments do: 25 physics steps with constant controls make one environment step.
"""

import argparse
from pathlib import Path
from typing import Any, NamedTuple

import jax
import mujoco
import numpy as np

FILE = Path(__file__).with_suffix(".npz")
HERE, REFERENCE = "3.17.0", "3.2.6"  # versions of MJX
SEEDS = {"arm_reach": 152, "arm_push_easy": 54, "arm_binpick_easy": 163, "arm_binpick_hard": 84}
"""One motion for each model. `arm_grasp` and `arm_push_hard` have the model of `arm_push_easy`."""

STEPS = (1, 10, 50, 80)  # columns of the table; the last is the motions' length
ROWS = {
    "MJX there": (f"mjx {HERE}", f"mjx {REFERENCE}"),
    "the same, both in float64": (f"mjx {HERE} float64", f"mjx {REFERENCE} float64"),
    "start moved by 1e-6": (f"mjx {HERE}", f"mjx {HERE} moved"),
    "MJX here in float64": (f"mjx {HERE}", f"mjx {HERE} float64"),
    "C engine, damped as MJX": (f"mjx {HERE}", f"mujoco {HERE} damped"),
    "C engine": (f"mjx {HERE}", f"mujoco {HERE}"),
}
_MOVED = 1e-6  # added to each coordinate of a start
_FRAMES = 25
_SPACING = 10  # environment steps from one random action to the next


class Motion(NamedTuple):
    """Motion of one arm by given controls.

    `exact` holds the arrays of the compiled model that XML would round. `rolled` holds positions `[T, Q]` after each
    environment step, by engine.
    """

    xml: str
    exact: dict[str, np.ndarray]
    start: np.ndarray  # [Q]
    actions: np.ndarray  # [T, A]
    controls: np.ndarray  # [T, actuators]
    rolled: dict[str, np.ndarray]

    def model(self) -> mujoco.MjModel:
        """Returns the compiled model, equal to the bit in all versions that have the same arrays."""
        model = mujoco.MjModel.from_xml_string(self.xml)
        for name, array in self.exact.items():
            if hasattr(model, name):
                getattr(model, name)[:] = array
        return model


def read() -> dict[str, Motion]:
    """Returns the kept motions by environment."""
    kept: dict[str, dict[str, Any]] = {}
    with np.load(FILE) as arrays:
        for path, array in arrays.items():
            env_id, field, *name = path.split("/")
            fields = kept.setdefault(env_id, {"exact": {}, "rolled": {}})
            if name:
                fields[field][name[0]] = array
            else:
                fields[field] = array
    return {env_id: Motion(**{**fields, "xml": str(fields["xml"])}) for env_id, fields in kept.items()}


def keep(motions: dict[str, Motion]) -> None:
    """Writes the motions to the file that `read` reads."""
    arrays = {}
    for env_id, motion in motions.items():
        for field, value in motion._asdict().items():
            for name, array in value.items() if isinstance(value, dict) else [("", value)]:
                arrays["/".join(filter(None, (env_id, field, name)))] = array
    np.savez_compressed(FILE, **arrays)


def draw(env_id: str, seed: int) -> Motion:
    """Returns a motion without rollouts: a start of the environment, and a line through random actions."""
    from shared.config import EnvOptions
    from shared.envs.arm import build
    from shared.envs.brax_env import compile_model

    arm = build(env_id, EnvOptions())
    model, spec = arm.physics.system.mj_model, arm.model_spec()
    for name in ("timestep", "solver", "iterations", "ls_iterations", "disableflags"):
        setattr(spec.option, name, getattr(model.opt, name))
    compile_model(spec)
    xml = spec.to_xml().replace(' colorspace="auto"', "")  # an attribute that the reference's version does not know
    rounded = mujoco.MjModel.from_xml_string(xml)
    arrays = {name: array for name in dir(model) if isinstance(array := getattr(model, name), np.ndarray)}
    exact = {name: array for name, array in arrays.items() if not np.array_equal(array, getattr(rounded, name))}
    knots = np.arange(0, STEPS[-1] + 1, _SPACING)
    random = np.random.default_rng(seed).uniform(-1, 1, (len(knots), arm.spec.action_size))
    actions = np.stack([np.interp(np.arange(STEPS[-1]), knots, column) for column in random.T], axis=1)
    actions = actions.astype(np.float32)
    controls = jax.vmap(lambda action: arm.control(None, action))(actions)
    start, _, _ = arm.start(jax.random.key(seed))
    return Motion(xml, exact, np.asarray(start), actions, np.asarray(controls), {})


def roll(motion: Motion) -> dict[str, np.ndarray]:
    """Returns positions `[T, Q]` for each rollout that the installed versions make, by engine."""
    version = mujoco.__version__
    if jax.config.jax_enable_x64:
        return {f"mjx {version} float64": roll_mjx(motion, motion.start.astype(float))[0]}
    rolled, moved = roll_mjx(motion, motion.start, motion.start + np.float32(_MOVED))
    return {
        f"mjx {version}": rolled,
        f"mjx {version} moved": moved,
        f"mujoco {version}": roll_mujoco(motion),
        f"mujoco {version} damped": roll_mujoco(motion, as_mjx=True),
    }


def roll_mjx(motion: Motion, *starts: np.ndarray) -> list[np.ndarray]:
    """Returns MJX's positions `[T, Q]` for each start."""
    from mujoco import mjx

    model = motion.model()
    system = mjx.put_model(model)

    def frame(data: mjx.Data, _: None) -> tuple[mjx.Data, None]:
        return mjx.step(system, data), None

    def step(data: mjx.Data, control: jax.Array) -> tuple[mjx.Data, jax.Array]:
        data, _ = jax.lax.scan(frame, data.replace(ctrl=control), None, _FRAMES)
        return data, data.qpos

    @jax.jit
    def rolled(start: jax.Array, controls: jax.Array) -> jax.Array:
        data = mjx.forward(system, mjx.make_data(model).replace(qpos=start))
        return jax.lax.scan(step, data, controls)[1]

    return [np.asarray(rolled(start, motion.controls.astype(start.dtype))) for start in starts]


def roll_mujoco(motion: Motion, as_mjx: bool = False) -> np.ndarray:
    """Returns the C engine's positions `[T, Q]`.

    MuJoCo's implicit integrator does not damp a servo whose force is at its limit, but MJX's does. `as_mjx` gives the C
    engine MJX's rule: the joints take over the servos' damping, which Euler's method always treats implicitly, and an
    applied force cancels that damping in the sum of forces.
    """
    model = motion.model()
    damping = np.zeros(model.nv)
    if as_mjx:
        damping[model.jnt_dofadr[model.actuator_trnid[:, 0]]] = -model.actuator_biasprm[:, 2]
        model.dof_damping[:] += damping
        model.opt.integrator = mujoco.mjtIntegrator.mjINT_EULER
    data = mujoco.MjData(model)
    data.qpos[:] = motion.start
    positions = []
    for data.ctrl[:] in motion.controls:
        for _ in range(_FRAMES):
            data.qfrc_applied[:] = damping * data.qvel
            mujoco.mj_step(model, data)
        positions.append(data.qpos.copy())
    return np.array(positions)


def places(motion: Motion, positions: np.ndarray) -> list[np.ndarray]:
    """Returns joint angles `[T, 7]`, end effector `[T, 3]`, and the cube `[T, 3]` if there is one."""
    model = motion.model()
    data = mujoco.MjData(model)
    bodies = []
    for data.qpos[:] in positions:
        mujoco.mj_kinematics(model, data)
        bodies.append(data.xpos.copy())
    first, last = (model.joint(name).qposadr[0] for name in ("joint1", "joint7"))
    names = [model.body(number).name for number in range(model.nbody)]
    followed = [name for name in ("link7", "cube") if name in names]
    return [positions[:, first : last + 1], *(np.array(bodies)[:, names.index(name)] for name in followed)]


def drift(motion: Motion, one: str, other: str) -> np.ndarray:
    """Returns the largest differences so far `[T, 2 or 3]` of joint angles, end effector and cube."""
    pairs = zip(*(places(motion, motion.rolled[engine].astype(float)) for engine in (one, other)), strict=True)
    return np.maximum.accumulate(np.stack([abs(x - y).max(axis=1) for x, y in pairs], axis=1))


def table(motions: dict[str, Motion]) -> str:
    """Returns the table of docs/reference.md."""
    steps = [f"step {step}" for step in STEPS]
    lines = [f"| | | {' | '.join(steps)} |", "|---|---|" + "---|" * len(STEPS)]
    for env_id, motion in motions.items():
        for row, (one, other) in ROWS.items():
            cells = [", ".join(map(_short, drift(motion, one, other)[step - 1])) for step in STEPS]
            lines.append(f"| `{env_id}` | {row} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _short(difference: float) -> str:
    digits, exponent = f"{difference:.0e}".split("e")
    return f"{digits}e{int(exponent)}" if difference else "0"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for option in ("--draw", "--roll", "--float64"):
        parser.add_argument(option, action="store_true")
    parser.add_argument("--only", choices=SEEDS, help="rolls one motion")
    options = parser.parse_args()
    jax.config.update("jax_enable_x64", options.float64)
    jax.config.update("jax_default_matmul_precision", "highest")  # on a GPU
    if options.draw:
        keep({env_id: draw(env_id, seed) for env_id, seed in SEEDS.items()})
    if options.roll:
        for env_id in [options.only] if options.only else SEEDS:
            rolled = roll(read()[env_id])
            motions = read()  # again, because another version may have kept rollouts meanwhile
            motions[env_id].rolled.update(rolled)
            keep(motions)
    if not (options.draw or options.roll):
        print(table(read()))


if __name__ == "__main__":
    main()
