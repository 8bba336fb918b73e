"""An episode in three dimensions as a contact sheet, a film, or a page with a viewer."""

import math
import warnings
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import matplotlib
import numpy as np
from brax.base import Transform
from brax.io import html, mjcf

from deploy.render.episode import Episode
from deploy.render.film import write_film
from deploy.render.scene import Scene, look_at, view_direction
from shared.envs.brax_env import BraxEnv
from shared.files import replace_file

matplotlib.use("Agg")
from matplotlib import pyplot

EPISODES = 1
_SHEET = 2, 4  # rows, columns
_FRAME = 960, 720  # width, height in pixels
_MAX_FPS = 50
_GAMMA = 2.2  # brax's viewer takes colours as linear
_PAGE_ASPECT, _PAGE_FIELD_OF_VIEW = 1.5, 40  # the second is the viewer's own
_PAGE_OPENS = "var viewer = new Viewer(domElement, system);"
# The viewer opens close to the first body, which in a maze is behind a wall, and dims everything 40 m away.
_PAGE_VIEW = """
      viewer.camera.position.set(...{position});
      viewer.controls.target.set(...{target});
      viewer.controls.enablePan = true;
      viewer.camera.follow = false;
      viewer.camera.far = 1000;
      viewer.camera.updateProjectionMatrix();
      viewer.scene.fog = null;"""


def write_sheet(env: BraxEnv, episodes: Sequence[Episode], out: Path, title: str) -> None:
    """Draws eight moments, evenly over the episode, each with its step and its distance to the goal."""
    (episode,) = episodes
    steps = np.linspace(0, len(episode.distances) - 1, math.prod(_SHEET)).round().astype(int)
    figure, axes = pyplot.subplots(*_SHEET, figsize=(14, 5.9), layout="constrained")
    for axis, step, frame in zip(axes.flat, steps, Scene(env, episode).frames(steps, *_FRAME), strict=True):
        distance = episode.distances[step]
        reached = ", at the goal" if distance < env.spec.goal_radius else ""
        axis.imshow(frame)
        axis.set(xticks=[], yticks=[], xlabel=f"step {step}: distance {distance:.2f}{reached}")
        axis.spines[:].set_visible(False)
    figure.suptitle(title)
    figure.savefig(out, format="png", dpi=130)
    pyplot.close(figure)


def write_body_film(env: BraxEnv, episodes: Sequence[Episode], out: Path, title: str) -> None:
    """Writes a film of the episode in real time."""
    (episode,), seconds = episodes, env.physics.seconds_per_step
    stride = math.ceil(1 / (seconds * _MAX_FPS) - 1e-6)
    steps = range(0, len(episode.distances), stride)
    write_film(out, Scene(env, episode).frames(steps, *_FRAME), fps=1 / (seconds * stride))


def write_page(env: BraxEnv, episodes: Sequence[Episode], out: Path, title: str) -> None:
    """Writes a page with the episode and brax's viewer, which the page loads from the internet."""
    (episode,) = episodes
    scene = Scene(env, episode, opaque=True)
    scene.model.opt.timestep = env.physics.seconds_per_step  # the viewer's time between two moments
    scene.model.geom_rgba[:, :3] **= _GAMMA
    moments = [
        SimpleNamespace(x=Transform(pos=data.xpos[1:].round(4), rot=data.xquat[1:].round(4)))
        for data in scene.moments(range(len(episode.distances)))
    ]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Brax System", UserWarning)  # the system is not simulated here
        system = mjcf.load_model(scene.model)
    page = html.render(system, moments, height="100vh", colab=False)
    camera = look_at(scene.points, _PAGE_ASPECT, _PAGE_FIELD_OF_VIEW)
    position = camera.lookat - camera.distance * view_direction(camera)
    view = _PAGE_VIEW.format(target=camera.lookat.tolist(), position=position.tolist())
    replace_file(out, page.replace(_PAGE_OPENS, _PAGE_OPENS + view), sync=False)


WRITERS = {"png": write_sheet, "mp4": write_body_film, "html": write_page}
