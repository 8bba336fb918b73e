"""An episode in three dimensions as a contact sheet, a film, and a page to turn it around in."""

import math
import warnings
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import numpy as np
from brax.base import Transform
from brax.io import html, mjcf

from deploy.render.episode import Episode
from deploy.render.film import write_film
from deploy.render.scene import Scene, view_direction
from shared.envs.brax_env import BraxEnv

EPISODES = 1
_SHEET = 2, 4  # rows, columns
_SHEET_FRAME = _FILM_FRAME = 960, 720  # width, height in pixels
_MOST_FPS = 50
_GAMMA = 2.2  # brax's viewer takes colours for linear ones
_PAGE_ASPECT, _PAGE_FIELD_OF_VIEW = 1.5, 40  # the second is the viewer's own
_PAGE_OPENS = "var viewer = new Viewer(domElement, system);"
# The viewer opens close to the first body, which in a maze is behind a wall, and dims what is 40 m away.
_PAGE_VIEW = """
      viewer.camera.position.set(...{position});
      viewer.controls.target.set(...{target});
      viewer.controls.enablePan = true;
      viewer.camera.follow = false;
      viewer.camera.far = 1000;
      viewer.camera.updateProjectionMatrix();
      viewer.scene.fog = null;"""


def write_sheet(env: BraxEnv, episodes: Sequence[Episode], out: Path, title: str) -> None:
    """Eight moments, evenly over the episode, each with its step and its distance to the goal."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    episode = episodes[0]
    steps = np.linspace(0, len(episode.distances) - 1, math.prod(_SHEET)).round().astype(int)
    figure, axes = pyplot.subplots(*_SHEET, figsize=(14, 5.9), layout="constrained")
    frames = Scene(env, episode).frames(steps, *_SHEET_FRAME)
    for axis, step, frame in zip(axes.flat, steps, frames, strict=True):
        distance = episode.distances[step]
        axis.imshow(frame)
        reached = ", at the goal" if distance < env.spec.goal_radius else ""
        axis.set_xlabel(f"step {step}: distance {distance:.2f}{reached}")
        axis.set(xticks=[], yticks=[])
        axis.spines[:].set_visible(False)
    figure.suptitle(title)
    figure.savefig(out, format="png", dpi=130)
    pyplot.close(figure)


def write_body_film(env: BraxEnv, episodes: Sequence[Episode], out: Path, title: str) -> None:
    """The episode in real time."""
    episode, seconds = episodes[0], env.physics.seconds_per_step
    every = math.ceil(1 / (seconds * _MOST_FPS) - 1e-6)
    steps = range(0, len(episode.distances), every)
    write_film(out, Scene(env, episode).frames(steps, *_FILM_FRAME), fps=1 / (seconds * every))


def write_page(env: BraxEnv, episodes: Sequence[Episode], out: Path, title: str) -> None:
    """Brax's viewer, which the page loads from the internet, with the episode inside."""
    episode = episodes[0]
    scene = Scene(env, episode, opaque=True)
    scene.model.opt.timestep = env.physics.seconds_per_step  # the viewer's time between two moments
    scene.model.geom_rgba[:, :3] **= _GAMMA
    moments = [
        SimpleNamespace(x=Transform(pos=data.xpos[1:].round(4), rot=data.xquat[1:].round(4)))
        for data in scene.moments(range(len(episode.distances)))
    ]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Brax System", UserWarning)  # known; here it is only written down
        system = mjcf.load_model(scene.model)
    page = html.render(system, moments, height="100vh", colab=False)
    camera = scene.camera(_PAGE_ASPECT, _PAGE_FIELD_OF_VIEW)
    view = _PAGE_VIEW.format(
        target=camera.lookat.tolist(), position=(camera.lookat - camera.distance * view_direction(camera)).tolist()
    )
    out.write_text(page.replace(_PAGE_OPENS, _PAGE_OPENS + view), encoding="utf-8")


WRITERS = {"png": write_sheet, "mp4": write_body_film, "html": write_page}
