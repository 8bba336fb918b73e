"""Model of an environment for drawing: with goals, plain surroundings, and colours that stand out."""

import mujoco
import numpy as np

from shared.envs.brax_env import BraxEnv, compile_model

_BROWN, _GREY = (0.4, 0.33, 0.26, 1), (0.5, 0.5, 0.5, 1)  # defaults of brax's models and of MuJoCo
_BODY = (0.95, 0.62, 0.07, 1)
_GOAL = (0.05, 0.75, 0.3)
_TILES = (0.93, 0.94, 0.95), (0.84, 0.86, 0.88)
_SKY = (0.97, 0.98, 1.0)
_SMALL = 5.0  # metres: tiles of the floor are 1 m wide, in smaller scenes 0.1 m
_FLOOR, _MARKER = "drawn_floor", "drawn_goal"  # materials


def drawn_model(env: BraxEnv, goals: int, opaque: bool) -> mujoco.MjModel:
    """Returns the model with `goals` markers that slide along x, y and z and come last in its positions.

    `opaque`: nothing is translucent, for a viewer that cannot draw it. Goals are then smaller than the success
    radius, so that they hide nothing.
    """
    spec = env.model_spec()
    spec.add_material(name=_MARKER, emission=0.5)
    for number in range(goals):
        _add_goal(spec, f"goal_{number}", env.spec.goal_radius, opaque)
    for replaced in (*spec.lights, *spec.numerics):  # numerics are brax's, some with a number for each body
        spec.delete(replaced)
    spec.worldbody.add_light(type=mujoco.mjtLightType.mjLIGHT_DIRECTIONAL, dir=(-0.4, 0.3, -1), diffuse=(0.4,) * 3)
    _lay_floor(spec)
    model = compile_model(spec)
    _colour(model)
    return model


def fit_to(model: mujoco.MjModel, low: np.ndarray, high: np.ndarray) -> None:
    """Fits clipping planes, light and the tiles of the floor to the box from `low` to `high` `[3]`."""
    centre, extent = (low + high) / 2, float(np.linalg.norm(high - low))
    model.stat.center, model.stat.extent = centre, extent
    model.light_pos[0] = centre - extent * model.light_dir[0]  # shadows fall from there
    model.vis.map.shadowclip, model.vis.quality.shadowsize = 1.4, 4096  # other numbers leave specks on the floor
    headlight = model.vis.headlight
    headlight.ambient, headlight.diffuse, headlight.specular = (0.4,) * 3, (0.3,) * 3, (0,) * 3
    model.mat_texrepeat[model.material(_FLOOR).id] = 1.0 if extent > _SMALL else 10.0


def _lay_floor(spec: mujoco.MjSpec) -> None:
    """Gives endless light tiles to every plane, under a light sky."""
    for texture in spec.textures:
        if texture.type == mujoco.mjtTexture.mjTEXTURE_SKYBOX:
            texture.rgb1 = texture.rgb2 = _SKY
    checker = {"type": mujoco.mjtTexture.mjTEXTURE_2D, "builtin": mujoco.mjtBuiltin.mjBUILTIN_CHECKER}
    spec.add_texture(name=_FLOOR, **checker, width=256, height=256, rgb1=_TILES[0], rgb2=_TILES[1])
    floor = spec.add_material(name=_FLOOR, texuniform=True, specular=0)
    floor.textures[mujoco.mjtTextureRole.mjTEXROLE_RGB] = _FLOOR
    for geom in spec.geoms:
        if geom.type == mujoco.mjtGeom.mjGEOM_PLANE:
            geom.material, geom.rgba = _FLOOR, (1, 1, 1, 1)
            geom.size[:2] = 0


def _colour(model: mujoco.MjModel) -> None:
    """Colours moving geometries that have no colour of their own; only the floor keeps its texture."""
    is_floor = model.geom_type == mujoco.mjtGeom.mjGEOM_PLANE
    textured = (model.mat_texid[model.geom_matid] >= 0).any(axis=1)
    model.geom_matid[textured & ~is_floor] = -1
    by_material = _has_colour(model, _GREY) & (model.geom_matid >= 0)
    model.geom_rgba[by_material] = model.mat_rgba[model.geom_matid[by_material]]  # brax's viewer has no materials
    plain = _has_colour(model, _BROWN) | _has_colour(model, _GREY)
    model.geom_rgba[plain & (model.geom_bodyid > 0)] = _BODY


def _has_colour(model: mujoco.MjModel, rgba: tuple[float, ...]) -> np.ndarray:
    return np.isclose(model.geom_rgba, rgba).all(axis=1)  # [geoms]


def _add_goal(spec: mujoco.MjSpec, name: str, radius: float, opaque: bool) -> None:
    """Adds a sphere of the success radius, and a column above it that is visible from afar; neither collides."""
    body = spec.worldbody.add_body(name=name)
    for axis, direction in zip("xyz", np.eye(3), strict=True):
        body.add_joint(name=f"{name}_{axis}", type=mujoco.mjtJoint.mjJNT_SLIDE, axis=direction, limited=0)
    looks = {"contype": 0, "conaffinity": 0, "mass": 1, "group": 0, "material": _MARKER}
    sphere, alpha = (0.4 * radius, 1) if opaque else (radius, 0.4)
    body.add_geom(type=mujoco.mjtGeom.mjGEOM_SPHERE, size=(sphere, 0, 0), rgba=(*_GOAL, alpha), **looks)
    column = {"fromto": (0, 0, 0, 0, 0, 3 * radius), "size": (radius / 10, 0, 0)}
    body.add_geom(type=mujoco.mjtGeom.mjGEOM_CAPSULE, **column, rgba=(*_GOAL, 1), **looks)
