"""Paths through goal space, seen from above: coloured by time, on a maze's map if there is one.

In a maze x points down and y to the right, as in its grid. On a plane x points to the right and y upwards. Both kinds
of pictures, SVG for pages and matplotlib's, draw the same numbers.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
from matplotlib import colormaps
from matplotlib.colors import ListedColormap, to_hex

from deploy.render.episode import Episode
from shared.envs.base import EnvSpec, GoalEnv
from shared.envs.space import Maze

WIDTH = 200.0  # of a picture, in its own units
_MAX_POINTS, _PIECES = 240, 24  # of a path; each piece has a colour of its own
_MARGIN = 0.06  # around paths on a plane, as a share of their extent
TIME_COLOURS = ListedColormap(colormaps["plasma"](np.linspace(0.05, 0.9, 256)))  # seen on a light ground at both ends


class Frame(NamedTuple):
    """Window on goal space. `walls`: rectangles (left, top, width, height) in units of the picture."""

    low: np.ndarray  # [2] to the right and down, in units of goal space
    scale: float
    height: float
    walls: Sequence[tuple[float, ...]]
    is_maze: bool

    def place(self, points: np.ndarray) -> np.ndarray:
        """Returns `[..., 2]` to the right and down, in units of the picture, of points of goal space `[..., G]`."""
        right, down = (points[..., 1], points[..., 0]) if self.is_maze else (points[..., 0], -points[..., 1])
        return ((np.stack([right, down], axis=-1) - self.low) * self.scale).round(1)


class PathPicture(NamedTuple):
    """One body's path in an episode, in units of the picture.

    `pieces`: colours, and the points `[k, 2]` of each piece of the path; it begins where the one before ends. `stride`:
    environment steps between two points; before the last point there may be fewer.
    """

    pieces: Sequence[tuple[str, np.ndarray]]
    start: tuple[float, float]
    goal: tuple[float, float]
    radius: float
    stride: int


def spread(count: int, stride: int) -> list[int]:
    """Returns every `stride`-th of `count` moments, from the first one, and the last one."""
    return [*range(0, count - 1, stride), count - 1]


def can_draw(env: GoalEnv) -> bool:
    """Returns true if goals have two coordinates to draw."""
    return env.spec.goal_size > 1


def make_frame(env: GoalEnv, episodes: Iterable[Episode]) -> Frame:
    """Returns the window on the whole maze of `env`, or without a maze on all paths and goals."""
    maze: Maze | None = getattr(env, "maze", None)
    if maze:
        rows, columns = maze.walls.shape
        top, bottom = (maze.centres(np.array(cell, float)) for cell in ((0, 0), (rows - 1, columns - 1)))
        low, high = top[::-1], bottom[::-1]  # half of the border is enough
    else:
        points = np.concatenate([points for each in episodes for points in _points(env.spec, each)])[:, :2] * (1, -1)
        low, high = points.min(axis=0) - env.spec.goal_radius, points.max(axis=0) + env.spec.goal_radius
        centre, half = (low + high) / 2, (0.5 + _MARGIN) * max(high - low)
        low, high = centre - half, centre + half
    scale = WIDTH / (high - low)[0]
    frame = Frame(low, scale, float(((high - low)[1] * scale).round(1)), (), maze is not None)
    return frame._replace(walls=_walls(maze, frame)) if maze else frame


def draw_paths(env: GoalEnv, frame: Frame, episode: Episode, num_steps: int) -> list[PathPicture]:
    """Returns one picture for each body of `env` (see `draw_path`); most environments have one body.

    A joint goal is shown as one goal for each body, whose radius is the root mean square over the bodies.
    """
    spec, bodies = env.spec, getattr(env, "bodies", 1)
    size, radius = spec.goal_size // bodies, spec.goal_radius / math.sqrt(bodies)
    pictures = []
    for own in (slice(first, first + size) for first in range(0, spec.goal_size, size)):
        alone = replace(spec, goal_size=size, goal_indices=spec.goal_indices[own], goal_radius=radius)
        pictures.append(draw_path(alone, frame, episode._replace(goals=episode.goals[:, own]), num_steps))
    return pictures


def draw_path(spec: EnvSpec, frame: Frame, episode: Episode, num_steps: int) -> PathPicture:
    """Returns the picture of an episode, in colours of a time scale of `num_steps` steps."""
    points, goals = _points(spec, episode)
    stride = -(-len(points) // _MAX_POINTS)
    steps = spread(len(points), stride)
    places = frame.place(points[steps])
    size = -(-len(steps) // _PIECES)
    pieces = []
    for first in range(0, max(len(steps) - 1, 1), size):
        middle = steps[min(first + size // 2, len(steps) - 1)]
        pieces.append((to_hex(TIME_COLOURS(middle / num_steps)), places[first : first + size + 1]))
    start, goal = (tuple(place) for place in frame.place(np.stack([points[0], goals[0]])).tolist())
    return PathPicture(pieces, start, goal, round(spec.goal_radius * frame.scale, 1), stride)


def _points(spec: EnvSpec, episode: Episode) -> tuple[np.ndarray, np.ndarray]:
    """Returns points of goal space `[T, G]`, and the goals `[T, G]`."""
    return episode.states[:, list(spec.goal_indices)], episode.goals


def _walls(maze: Maze, frame: Frame) -> list[tuple[float, ...]]:
    corners = frame.place(maze.centres(np.argwhere(maze.walls) - 0.5))
    side = round(maze.scale * frame.scale, 1)
    return [(*corner, side, side) for corner in corners.tolist()]
