"""Episodes of a point in a maze, seen from above, as a picture and as a film."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import matplotlib
import numpy as np

from deploy.render.episode import Episode
from deploy.render.film import write_film
from shared.envs.point_maze import RADIUS, SECONDS_PER_STEP, PointMaze

matplotlib.use("Agg")
from matplotlib import pyplot
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.colors import ListedColormap, Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Circle, Rectangle

EPISODES = 6
_PANELS = 2, 3  # rows, columns
_SIDE = 3.2  # inches of a panel
_FREE_AND_WALL = ListedColormap(["#f4f5f7", "#8c99ad"])
_GOAL, _POINT = "#0dbf4d", "#1f2430"


def write_panels(env: PointMaze, episodes: Sequence[Episode], out: Path, title: str) -> None:
    (figure,) = _panels(env, episodes, title, every_step=False)
    figure.savefig(out, format="png", dpi=130)


def write_film_of_panels(env: PointMaze, episodes: Sequence[Episode], out: Path, title: str) -> None:
    """Writes a film of all episodes at once, in real time."""
    write_film(out, map(_pixels, _panels(env, episodes, title, every_step=True)), fps=1 / SECONDS_PER_STEP)


def _panels(env: PointMaze, episodes: Sequence[Episode], title: str, every_step: bool) -> Iterator[Figure]:
    """Yields one figure, drawn up to each step or to the end: a panel for each episode, x downwards, y to the right."""
    num_steps = max(len(episode.states) for episode in episodes)
    rows, columns = env.maze.walls.shape
    size = _PANELS[1] * _SIDE * columns / rows + 1, _PANELS[0] * _SIDE + 0.6
    figure, axes = pyplot.subplots(*_PANELS, figsize=size, dpi=100, layout="constrained")
    steps = Normalize(0, num_steps)
    paths = [LineCollection([], cmap="plasma", norm=steps, lw=2.2, capstyle="round") for _ in episodes]
    points = [Rectangle((0, 0), 2 * RADIUS, 2 * RADIUS, color=_POINT, zorder=3) for _ in episodes]
    for axis, episode, path, point in zip(axes.flat, episodes, paths, points, strict=True):
        _draw_maze(axis, env, episode)
        axis.add_collection(path)
        axis.add_patch(point)
    figure.colorbar(paths[0], ax=axes, label="step", shrink=0.6, aspect=40)
    figure.suptitle(title)
    for step in range(num_steps) if every_step else [num_steps]:
        for episode, path, point in zip(episodes, paths, points, strict=True):
            places = episode.states[: step + 1, 1::-1]
            path.set_segments(list(np.stack([places[:-1], places[1:]], axis=1)))
            path.set_array(np.arange(len(places) - 1))
            point.set_xy(places[-1] - RADIUS)
        figure.canvas.draw()
        figure.set_layout_engine("none")  # the first layout stays: panels do not move
        yield figure
    pyplot.close(figure)


def _pixels(figure: Figure) -> np.ndarray:
    """Returns the drawn figure as `[height, width, 3]` uint8, both even."""
    pixels = np.asarray(figure.canvas.buffer_rgba())  # type: ignore[attr-defined]
    height, width = pixels.shape[:2]
    return pixels[: height // 2 * 2, : width // 2 * 2, :3].copy()


def _draw_maze(axis: Axes, env: PointMaze, episode: Episode) -> None:
    """Draws walls, start and goal; the title counts steps at the goal."""
    rows, columns = env.maze.walls.shape
    axis.imshow(env.maze.walls, cmap=_FREE_AND_WALL)
    axis.set(xlim=(0, columns - 1), ylim=(rows - 1, 0))  # half of the border is enough
    axis.axis("off")
    (x, y), (goal_x, goal_y) = episode.states[0, :2], episode.goals[0]
    axis.add_patch(Circle((goal_y, goal_x), env.spec.goal_radius, facecolor=f"{_GOAL}66", edgecolor=_GOAL, lw=1.5))
    axis.plot(y, x, "o", markersize=8, markerfacecolor="white", markeredgecolor=_POINT, zorder=2.5)
    at_goal = int((episode.distances < env.spec.goal_radius).sum())
    axis.set_title(f"{at_goal} of {len(episode.states)} steps at the goal", fontsize=9)


WRITERS = {"png": write_panels, "mp4": write_film_of_panels}
