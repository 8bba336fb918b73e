"""Paths through goal space, seen from above, as the parts of an SVG: coloured by time, on a maze's map if there is one.

In a maze x points down and y to the right, as in its grid. On a plane x points to the right and y upwards.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from matplotlib import colormaps
from matplotlib.colors import to_hex

from deploy.render.episode import Episode
from deploy.report.gallery.play import Gallery
from shared.envs.base import EnvSpec, GoalEnv
from shared.envs.space import Maze

WIDTH = 200.0  # of a picture, in its own units
MAX_POINTS = 240
_PIECES = 24  # of a path, each with a colour of its own
_MARGIN = 0.06  # around paths on a plane, as a share of their extent
_COLOURS = colormaps["plasma"]


class Frame(NamedTuple):
    """Window on goal space. `walls`: rectangles (left, top, width, height) in units of the picture."""

    low: np.ndarray  # [2] in units of the picture's axes: to the right, down
    scale: float
    height: float
    walls: Sequence[tuple[float, ...]]
    is_maze: bool

    def place(self, points: np.ndarray) -> np.ndarray:
        """Returns `[..., 2]` to the right and down, in units of the picture, of points of goal space `[..., G]`."""
        right, down = (points[..., 1], points[..., 0]) if self.is_maze else (points[..., 0], -points[..., 1])
        return ((np.stack([right, down], axis=-1) - self.low) * self.scale).round(1)


class PathPicture(NamedTuple):
    """One episode. `pieces`: colour and points of each piece of the path, the first of which is where the last ended.

    `stride`: environment steps between two points.
    """

    pieces: Sequence[tuple[str, str]]
    start: tuple[float, float]
    goal: tuple[float, float]
    radius: float
    stride: int


def can_draw(env: GoalEnv) -> bool:
    """Returns whether goals have two coordinates to draw."""
    return env.spec.goal_size > 1


def make_frame(gallery: Gallery) -> Frame:
    """Returns the window on all paths of a gallery, or on the whole maze."""
    maze: Maze | None = getattr(gallery.env, "maze", None)
    if maze:
        rows, columns = maze.walls.shape
        low, high = (maze.centres(np.array(cell, float)) for cell in ((0, 0), (rows - 1, columns - 1)))
        low, high = low[::-1], high[::-1]  # half of the border is enough
    else:
        places = [
            points
            for cell in gallery.cells.values()
            for episode in cell
            for points in _all_points(gallery.env.spec, episode)
        ]
        points = np.concatenate(places)[:, :2] * (1, -1)
        radius = gallery.env.spec.goal_radius
        low, high = points.min(axis=0) - radius, points.max(axis=0) + radius
        centre, half = (low + high) / 2, (0.5 + _MARGIN) * max(high - low)
        low, high = centre - half, centre + half
    scale = WIDTH / (high - low)[0]
    frame = Frame(low, scale, float(((high - low)[1] * scale).round(1)), (), maze is not None)
    return frame._replace(walls=_walls(maze, frame)) if maze else frame


def draw_path(spec: EnvSpec, frame: Frame, episode: Episode, num_steps: int) -> PathPicture:
    """Returns the picture of an episode whose colours are of a time scale of `num_steps` steps."""
    points, goals = _all_points(spec, episode)
    stride = -(-len(points) // MAX_POINTS)
    kept = [*range(0, len(points), stride)]
    places = frame.place(points[kept])
    size = max(1, -(-len(kept) // _PIECES))
    pieces = []
    for first in range(0, max(len(kept) - 1, 1), size):
        share = kept[min(first + size // 2, len(kept) - 1)] / max(num_steps - 1, 1)
        piece = places[first : first + size + 1]
        pieces.append((to_hex(_COLOURS(0.05 + 0.85 * share)), " ".join(f"{x:g},{y:g}" for x, y in piece)))
    start, goal = frame.place(np.stack([points[0], goals[0]])).tolist()
    return PathPicture(pieces, tuple(start), tuple(goal), round(spec.goal_radius * frame.scale, 1), stride)


def _all_points(spec: EnvSpec, episode: Episode) -> tuple[np.ndarray, np.ndarray]:
    """Returns points of goal space `[T, G]`, and the goals `[T, G]`."""
    return episode.states[:, list(spec.goal_indices)], episode.goals


def _walls(maze: Maze, frame: Frame) -> list[tuple[float, ...]]:
    cells = np.argwhere(maze.walls)
    corners = frame.place(maze.centres(cells - 0.5))
    side = round(maze.scale * frame.scale, 1)
    return [(*corner, side, side) for corner in corners.tolist()]
