"""An episode in three dimensions: bodies and goals at each moment, the camera, and the frames."""

import itertools
from collections.abc import Iterable, Iterator

import jax
import mujoco
import numpy as np

from deploy.render.episode import Episode
from deploy.render.gl import open_gl
from deploy.render.model import drawn_model, fit_to
from shared.envs.brax_env import BraxEnv

_TURN = 40  # degrees: tall scenes are seen over a corner
_MARGIN = 1.05  # factor on the distance that just fits the picture
_STEEPEST, _FLATTEST = -65, -25  # degrees: the camera's elevation for a flat scene, and for one as high as wide


class Scene:
    """Model of one episode, with positions of bodies and goals.

    `positions` `[T, Q]`: at each moment. `points` `[k, 3]`: corners of all boxes around geometries, at every moment.
    """

    def __init__(self, env: BraxEnv, episode: Episode, opaque: bool = False) -> None:
        goals = np.asarray(jax.vmap(env.goal_points)(episode.goals))
        self.positions = np.concatenate([episode.positions, goals.reshape(len(goals), -1)], axis=1)
        self.model = drawn_model(env, goals.shape[1], opaque)
        self.fit(self._corners())

    def fit(self, points: np.ndarray) -> None:
        """Turns camera and light to `points` `[k, 3]`; scenes that are compared have the same points."""
        self.points = points
        fit_to(self.model, points.min(axis=0), points.max(axis=0))

    def moments(self, steps: Iterable[int]) -> Iterator[mujoco.MjData]:
        """Yields the moments at `steps`, all in the same MjData."""
        data = mujoco.MjData(self.model)
        for step in steps:
            data.qpos = self.positions[step]
            mujoco.mj_kinematics(self.model, data)
            mujoco.mj_camlight(self.model, data)
            yield data

    def frames(self, steps: Iterable[int], width: int, height: int) -> Iterator[np.ndarray]:
        """Yields pictures `[height, width, 3]` uint8 of the moments at `steps`. Raises ConfigError without OpenGL."""
        view = self.model.vis.global_
        camera = look_at(self.points, width / height, view.fovy)
        view.offwidth, view.offheight = width, height
        shapes, options = mujoco.MjvScene(self.model, maxgeom=10_000), mujoco.MjvOption()
        area = mujoco.MjrRect(0, 0, width, height)
        with open_gl(self.model, width, height) as context:
            for data in self.moments(steps):
                mujoco.mjv_updateScene(self.model, data, options, None, camera, mujoco.mjtCatBit.mjCAT_ALL, shapes)
                mujoco.mjr_render(area, shapes, context)
                pixels = np.empty((height, width, 3), np.uint8)
                mujoco.mjr_readPixels(pixels, None, area, context)
                yield np.flipud(pixels)

    def _corners(self) -> np.ndarray:
        solid = self.model.geom_type != mujoco.mjtGeom.mjGEOM_PLANE
        middle, half = np.split(self.model.geom_aabb[solid], 2, axis=1)
        signs = np.array(list(itertools.product((-1, 1), repeat=3)))
        local = middle[:, None] + signs * half[:, None]
        corners = []
        for data in self.moments(range(len(self.positions))):
            turned = data.geom_xmat[solid].reshape(-1, 3, 3).swapaxes(1, 2)
            corners.append((data.geom_xpos[solid][:, None] + local @ turned).reshape(-1, 3))
        return np.concatenate(corners)


def look_at(points: np.ndarray, aspect: float, field_of_view: float) -> mujoco.MjvCamera:
    """Returns a camera that just sees all `points` `[k, 3]`. `field_of_view`: vertical, in degrees.

    The longer side of the scene lies across; a square maze reads like its grid, rows from the top. The camera looks
    at a flat scene from above.
    """
    low, high = points.min(axis=0), points.max(axis=0)
    width, depth, height = high - low
    camera = mujoco.MjvCamera()
    camera.azimuth = 90 if width > 1.2 * depth else 180
    if height > max(width, depth) / 2:
        camera.azimuth += _TURN
    camera.elevation = _STEEPEST + (_FLATTEST - _STEEPEST) * min(1.0, height / min(width, depth))
    ahead = view_direction(camera)
    right = np.cross(ahead, (0, 0, 1)) / np.cos(np.radians(camera.elevation))
    axes = np.stack([right, np.cross(right, ahead)])
    # A point `far` along the view is visible within `half * (distance + far)` of the view's axis.
    half = np.tan(np.radians(field_of_view) / 2) * np.array([aspect, 1])
    middle = (low + high) / 2
    across, far = (points - middle) @ axes.T, ((points - middle) @ ahead)[:, None] * half
    least, most = (across - far).max(axis=0), (across + far).min(axis=0)
    camera.lookat = middle + (least + most) / 2 @ axes
    camera.distance = _MARGIN * ((least - most) / (2 * half)).max()
    return camera


def view_direction(camera: mujoco.MjvCamera) -> np.ndarray:
    """Returns the unit vector `[3]` along which `camera` looks."""
    azimuth, elevation = np.radians(camera.azimuth), np.radians(camera.elevation)
    return np.array([np.cos(azimuth), np.sin(azimuth), np.tan(elevation)]) * np.cos(elevation)
