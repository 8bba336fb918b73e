"""Franka Panda built from primitives, and the table that it stands on.

The arm's kinematic and inertial numbers, and those of its servos, come from MuJoCo Menagerie's model of the Franka
Emika Panda (Apache-2.0), with the changes of the reference environments: the arm's joints have neither armature nor
damping, four of them turn without end, the hand has no mass, and the servos' gains are not unity.
"""

from typing import NamedTuple

import mujoco

JOINTS = 7
START = (1.571, 0.742, 0.0, -1.571, 0.0, 3.054, 1.449)  # of the joints, in radians
FINGER_START = 0.04  # metres from closed
OPEN, CLOSED = 255.0, 0.0  # controls of a finger's servo
TABLE, HAND, FINGERS = "table", "hand", ("left_finger", "right_finger")  # geoms with contacts
TIP = (0.0, 0.005, 0.07)  # in a finger's frame, metres

_HAND_POS, _HAND_QUAT = (0.0, 0.0, 0.107), (0.92388, 0.0, 0.0, -0.38268)  # in link 7's frame
_SHELL, _DARK = "shell", "dark"
_MATERIALS = {
    _SHELL: {"rgba": (0.86, 0.87, 0.89, 1), "specular": 0.4, "shininess": 0.5},
    _DARK: {"rgba": (0.2, 0.22, 0.26, 1), "specular": 0.3, "shininess": 0.4},
}

Vector = tuple[float, float, float]
Quaternion = tuple[float, float, float, float]


class Inertial(NamedTuple):
    """Mass and inertia of a link about its centre of mass, in the link's frame."""

    mass: float  # kg
    com: Vector  # metres
    inertia: tuple[float, float, float, float, float, float]  # xx, yy, zz, xy, xz, yz


class Servo(NamedTuple):
    """Servo with force = `gain` * control - `stiffness` * position - `damping` * velocity, within +-`force`."""

    gain: float
    stiffness: float
    damping: float
    force: float
    controls: tuple[float, float]


class Hinge(NamedTuple):
    """Hinge about z that carries a link: the link's frame in its parent's, in metres, and the hinge's servo."""

    pos: Vector
    quat: Quaternion
    servo: Servo
    limited: bool = False  # if so, the hinge's range is that of the servo's controls


class Shape(NamedTuple):
    """Visible part of a link, without contacts: a capsule or a cylinder from `start` to `end` in the link's frame."""

    link: int  # 0: the base
    material: str
    radius: float
    start: Vector
    end: Vector


_INERTIALS = (
    Inertial(4.970684, (0.003875, 0.002081, -0.04762), (0.70337, 0.70661, 0.009117, -0.000139, 0.006772, 0.019169)),
    Inertial(0.646926, (-0.003141, -0.02872, 0.003495), (0.007962, 0.02811, 0.025995, -0.003925, 0.010254, 0.000704)),
    Inertial(3.228604, (0.027518, 0.039252, -0.066502), (0.037242, 0.036155, 0.01083, -0.004761, -0.011396, -0.012805)),
    Inertial(3.587895, (-0.05317, 0.104419, 0.027454), (0.025853, 0.019552, 0.028323, 0.007796, -0.001332, 0.008641)),
    Inertial(
        1.225946, (-0.011953, 0.041065, -0.038437), (0.035549, 0.029474, 0.008627, -0.002117, -0.004037, 0.000229)
    ),
    Inertial(1.666555, (0.060149, -0.014117, -0.010517), (0.001964, 0.004354, 0.005433, 0.000109, -0.001158, 0.000341)),
    Inertial(
        0.735522, (0.010517, -0.004252, 0.061597), (0.012516, 0.010027, 0.004815, -0.000428, -0.001196, -0.000741)
    ),
)
_HINGES = (
    Hinge((0, 0, 0.333), (1, 0, 0, 0), Servo(4500, 4500, 450, 87, (-2.8973, 2.8973))),
    Hinge((0, 0, 0), (1, -1, 0, 0), Servo(4500, 4500, 450, 87, (-1.7628, 1.7628)), limited=True),
    Hinge((0, -0.316, 0), (1, 1, 0, 0), Servo(2000, 3500, 350, 87, (-2.8973, 2.8973))),
    Hinge((0.0825, 0, 0), (1, 1, 0, 0), Servo(2000, 3500, 350, 87, (-3.0718, -0.0698)), limited=True),
    Hinge((-0.0825, 0.384, 0), (1, -1, 0, 0), Servo(1000, 2000, 200, 12, (-2.8973, 2.8973))),
    Hinge((0, 0, 0), (1, 1, 0, 0), Servo(1000, 2000, 200, 12, (-0.0175, 3.7525)), limited=True),
    Hinge((0.088, 0, 0), (1, 1, 0, 0), Servo(1000, 2000, 200, 12, (-2.8973, 2.8973))),
)
_FINGER_POS, _FINGER_QUATS = (0.0, 0.0, 0.0584), ((1, 0, 0, 0), (0, 0, 0, 1))  # in the hand's frame
_FINGER = Inertial(0.015, (0, 0, 0), (2.375e-6, 2.375e-6, 7.5e-7, 0, 0, 0))
_FINGER_SERVO = Servo(0.15686, 500, 50, 500, (CLOSED, OPEN))

_SHAPES = (
    Shape(0, _DARK, 0.105, (0, 0, 0), (0, 0, 0.03)),
    Shape(0, _SHELL, 0.075, (0, 0, 0.03), (0, 0, 0.1)),
    Shape(0, _DARK, 0.066, (0, 0, 0.135), (0, 0, 0.15)),
    Shape(1, _SHELL, 0.062, (0, 0, -0.17), (0, 0, 0)),
    Shape(2, _DARK, 0.056, (0, 0, -0.076), (0, 0, 0.076)),
    Shape(2, _SHELL, 0.06, (0, 0, 0), (0, -0.14, 0)),
    Shape(3, _DARK, 0.062, (0, 0, -0.125), (0, 0, -0.112)),
    Shape(3, _SHELL, 0.056, (0, 0, -0.11), (0, 0, -0.06)),
    Shape(3, _SHELL, 0.054, (0, 0, -0.06), (0.0825, 0, 0)),
    Shape(4, _DARK, 0.05, (0, 0, -0.066), (0, 0, 0.066)),
    Shape(4, _SHELL, 0.054, (0, 0, 0), (-0.0825, 0.085, 0)),
    Shape(4, _SHELL, 0.054, (-0.0825, 0.085, 0), (-0.0825, 0.13, 0)),
    Shape(5, _DARK, 0.06, (0, 0, -0.235), (0, 0, -0.222)),
    Shape(5, _SHELL, 0.054, (0, 0, -0.2), (0, 0.03, -0.1)),
    Shape(5, _SHELL, 0.05, (0, 0.03, -0.1), (0, 0, 0)),
    Shape(6, _DARK, 0.046, (0, 0, -0.062), (0, 0, 0.062)),
    Shape(6, _SHELL, 0.046, (0, 0, 0), (0.088, 0, 0)),
    Shape(7, _SHELL, 0.046, (0, 0, -0.03), (0, 0, 0.06)),
    Shape(7, _DARK, 0.044, (0, 0, 0.08), (0, 0, 0.11)),
)


def add_panda(spec: mujoco.MjSpec, fingers: bool) -> None:
    """Adds the arm to the world of `spec`, its base at the origin. The arm has no contacts except by contact pairs."""
    for name, material in _MATERIALS.items():
        spec.add_material(name=name, **material)
    bodies = [spec.worldbody]
    for number, (hinge, inertial) in enumerate(zip(_HINGES, _INERTIALS, strict=True), 1):
        bodies.append(_add_link(bodies[-1], f"link{number}", hinge.pos, hinge.quat, inertial))
        limits = hinge.servo.controls if hinge.limited else (0, 0)
        bodies[-1].add_joint(name=f"joint{number}", axis=(0, 0, 1), range=limits)
    for shape in _SHAPES:
        bodies[shape.link].add_geom(
            type=mujoco.mjtGeom.mjGEOM_CYLINDER if shape.material == _DARK else mujoco.mjtGeom.mjGEOM_CAPSULE,
            fromto=(*shape.start, *shape.end),
            size=(shape.radius, 0, 0),
            material=shape.material,
            mass=0,
            group=1,
        )
    _add_hand(bodies[-1], fingers)
    for number, hinge in enumerate(_HINGES, 1):
        _add_servo(spec, f"joint{number}", hinge.servo)
    if fingers:
        for name in FINGERS:
            _add_servo(spec, name, _FINGER_SERVO)
        spec.add_equality(
            name="fingers",
            type=mujoco.mjtEq.mjEQ_JOINT,
            name1=FINGERS[0],
            name2=FINGERS[1],
            solref=(0.005, 1),
            solimp=(0.95, 0.99, 0.001, 0.5, 2),
        )


def add_table(spec: mujoco.MjSpec) -> None:
    """Adds the plane that the arm stands on, with light and sky. Its edges are seen, but contacts have no edges."""
    spec.add_texture(
        name="sky",
        type=mujoco.mjtTexture.mjTEXTURE_SKYBOX,
        builtin=mujoco.mjtBuiltin.mjBUILTIN_GRADIENT,
        rgb1=(0.78, 0.85, 0.93),
        rgb2=(0.97, 0.97, 0.98),
        width=128,
        height=6 * 128,
    )
    spec.add_texture(
        name=TABLE,
        type=mujoco.mjtTexture.mjTEXTURE_2D,
        builtin=mujoco.mjtBuiltin.mjBUILTIN_CHECKER,
        rgb1=(0.82, 0.79, 0.74),
        rgb2=(0.79, 0.76, 0.71),
        width=64,
        height=64,
    )
    wood = spec.add_material(name=TABLE, texrepeat=(10, 10), texuniform=True, specular=0.1)
    wood.textures[mujoco.mjtTextureRole.mjTEXROLE_RGB] = TABLE
    spec.visual.headlight.ambient = spec.visual.headlight.diffuse = (0.4, 0.4, 0.4)
    spec.worldbody.add_light(pos=(0.8, -0.4, 2.5), dir=(-0.3, 0.4, -1), diffuse=(0.5, 0.5, 0.5))
    plane = mujoco.mjtGeom.mjGEOM_PLANE
    spec.worldbody.add_geom(name=TABLE, type=plane, pos=(0, 0.4, 0), size=(0.9, 0.8, 0.1), material=TABLE)


def _add_link(parent: mujoco.MjsBody, name: str, pos: Vector, quat: Quaternion, inertial: Inertial) -> mujoco.MjsBody:
    mass, com, inertia = inertial
    return parent.add_body(
        name=name, pos=pos, quat=quat, mass=mass, ipos=com, fullinertia=inertia, explicitinertial=True
    )


def _add_hand(link: mujoco.MjsBody, fingers: bool) -> None:
    """Adds the hand as a frame of the last `link`. A body of its own would add its mass to the link's when fused."""
    hand = link.add_frame(pos=_HAND_POS, quat=_HAND_QUAT)
    palm = link.add_geom(
        name=HAND,
        type=mujoco.mjtGeom.mjGEOM_CAPSULE,
        size=(0.04, 0.06, 0),
        pos=(0, 0, 0.035),
        quat=(1, 1, 0, 0),
        material=_SHELL,
        mass=0,
    )
    palm.set_frame(hand)
    for name, quat in zip(FINGERS, _FINGER_QUATS, strict=True) if fingers else ():
        finger = _add_link(link, name, _FINGER_POS, quat, _FINGER)
        finger.set_frame(hand)
        slide = mujoco.mjtJoint.mjJNT_SLIDE
        finger.add_joint(name=name, type=slide, axis=(0, 1, 0), range=(0, 0.08), armature=0.1, damping=5)
        finger.add_geom(
            name=name,
            type=mujoco.mjtGeom.mjGEOM_BOX,
            size=(0.015, 0.005, 0.04),
            pos=(0, 0.0055, 0.035),
            material=_DARK,
            mass=0,
        )


def _add_servo(spec: mujoco.MjSpec, joint: str, servo: Servo) -> None:
    actuator = spec.add_actuator(
        name=joint,
        target=joint,
        trntype=mujoco.mjtTrn.mjTRN_JOINT,
        gaintype=mujoco.mjtGain.mjGAIN_FIXED,
        biastype=mujoco.mjtBias.mjBIAS_AFFINE,
        forcerange=(-servo.force, servo.force),
        ctrlrange=servo.controls,
    )
    actuator.gainprm[0] = servo.gain
    actuator.biasprm[1:3] = (-servo.stiffness, -servo.damping)
