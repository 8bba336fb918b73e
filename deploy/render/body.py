"""An episode in three dimensions as a contact sheet or a film, and the writers of each kind of picture."""

import math
from collections.abc import Sequence
from pathlib import Path

import matplotlib
import numpy as np

from deploy.render.episode import Episode
from deploy.render.film import write_film
from deploy.render.page import write_page
from deploy.render.scene import Scene
from shared.envs.brax_env import BraxEnv

matplotlib.use("Agg")
from matplotlib import pyplot

EPISODES = 1
_SHEET = 2, 4  # rows, columns
_FRAME = 960, 720  # width, height in pixels
_MAX_FPS = 50


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


WRITERS = {"png": write_sheet, "mp4": write_body_film, "html": write_page}
