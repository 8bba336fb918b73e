"""Episodes seen from above, as a picture and as a film: their paths through goal space."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import matplotlib
import numpy as np

from deploy.render.episode import Episode
from deploy.render.film import write_film
from deploy.render.paths import TIME_COLOURS, WIDTH, Frame, PathPicture, draw_paths, make_frame
from shared.envs.base import GoalEnv
from shared.envs.point_maze import SECONDS_PER_STEP, PointMaze

matplotlib.use("Agg")
from matplotlib import pyplot
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.collections import LineCollection
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Circle, Rectangle

EPISODES = 6
_PANELS = 2, 3  # rows, columns
_SIDE = 3.2  # inches of a panel
_FPS = 10.0  # steps a second of an environment whose time is unknown
_FLOOR, _WALL, _GOAL, _INK = "#f4f5f7", "#8c99ad", "#0dbf4d", "#1f2430"
_DOT, _START = 4.0, 3.5  # radii in units of the picture


class PathPanel:
    """Paths of one episode's bodies on matplotlib's axes: first the whole ones, then up to any step."""

    def __init__(self, axis: Axes, frame: Frame, pictures: Sequence[PathPicture]) -> None:
        axis.set(xlim=(0, WIDTH), ylim=(frame.height, 0), aspect="equal", facecolor=_FLOOR, xticks=[], yticks=[])
        axis.spines[:].set_visible(False)
        for left, top, width, height in frame.walls:
            axis.add_patch(Rectangle((left, top), width, height, color=_WALL, lw=0))
        self._paths = [_BodyPath(axis, picture) for picture in pictures]
        for number, picture in enumerate(pictures, start=1) if len(pictures) > 1 else ():
            for place in (picture.start, picture.goal):
                axis.text(*place, str(number), ha="center", va="center", fontsize=5, zorder=2.7)

    def show(self, step: int) -> None:
        """Shows the paths up to environment step `step`."""
        for path in self._paths:
            path.show(step)


class _BodyPath:
    """Path, goal and start of one body."""

    def __init__(self, axis: Axes, picture: PathPicture) -> None:
        radius = max(picture.radius, _START)
        axis.add_patch(Circle(picture.goal, radius, facecolor=f"{_GOAL}66", edgecolor=_GOAL, lw=1.5))
        self._pieces, self._stride = [points for _, points in picture.pieces], picture.stride
        colours = [colour for colour, _ in picture.pieces]
        self._path = LineCollection(self._pieces, colors=colours, lw=2.2, capstyle="round")
        self._dot = Circle(tuple(self._pieces[-1][-1]), _DOT, color=_INK, zorder=3)
        axis.add_collection(self._path)
        axis.add_patch(Circle(picture.start, _START, facecolor="white", edgecolor=_INK, zorder=2.5))
        axis.add_patch(self._dot)

    def show(self, step: int) -> None:
        left, shown = -(-step // self._stride), []  # points
        for piece in self._pieces:
            shown.append(piece[: left + 1])
            if left < len(piece) - 1:
                break
            left -= len(piece) - 1
        self._path.set_segments(shown)
        self._dot.center = tuple(shown[-1][-1])


def add_time_scale(figure: Figure, num_steps: int) -> None:
    """Adds the colours of time to a figure of paths."""
    steps = ScalarMappable(Normalize(0, num_steps), TIME_COLOURS)
    figure.colorbar(steps, ax=figure.axes, label="step", shrink=0.6, aspect=40)


def pixels(figure: Figure) -> np.ndarray:
    """Draws the figure and returns it as `[height, width, 3]` uint8, both even."""
    figure.canvas.draw()
    figure.set_layout_engine("none")  # the first layout stays: panels do not move
    drawn = np.asarray(figure.canvas.buffer_rgba())  # type: ignore[attr-defined]
    height, width = drawn.shape[:2]
    return drawn[: height // 2 * 2, : width // 2 * 2, :3].copy()


def write_panels(env: GoalEnv, episodes: Sequence[Episode], out: Path, title: str) -> None:
    figure, _ = _panels(env, episodes, title)
    figure.savefig(out, format="png", dpi=130)
    pyplot.close(figure)


def write_film_of_panels(env: GoalEnv, episodes: Sequence[Episode], out: Path, title: str) -> None:
    """Writes a film of all episodes at once, in real time where it is known."""
    write_film(out, _play(env, episodes, title), 1 / SECONDS_PER_STEP if isinstance(env, PointMaze) else _FPS)


def _play(env: GoalEnv, episodes: Sequence[Episode], title: str) -> Iterator[np.ndarray]:
    figure, panels = _panels(env, episodes, title)
    for step in range(max(len(episode.states) for episode in episodes)):
        for panel in panels:
            panel.show(step)
        yield pixels(figure)
    pyplot.close(figure)


def _panels(env: GoalEnv, episodes: Sequence[Episode], title: str) -> tuple[Figure, list[PathPanel]]:
    """Returns a figure with a panel for each episode, whose title counts steps at the goal."""
    frame, num_steps = make_frame(env, episodes), max(len(episode.states) for episode in episodes)
    size = _PANELS[1] * _SIDE + 1, _PANELS[0] * (_SIDE * frame.height / WIDTH + 0.3) + 0.4
    figure, axes = pyplot.subplots(*_PANELS, figsize=size, dpi=100, layout="constrained")
    panels = []
    for axis, episode in zip(axes.flat, episodes, strict=True):
        panels.append(PathPanel(axis, frame, draw_paths(env, frame, episode, num_steps)))
        at_goal = int((episode.distances < env.spec.goal_radius).sum())
        axis.set_title(f"{at_goal} of {len(episode.states)} steps at the goal", fontsize=9)
    add_time_scale(figure, num_steps)
    figure.suptitle(title)
    return figure, panels


WRITERS = {"png": write_panels, "mp4": write_film_of_panels}
