"""Pictures and films of a gallery outside of a page: the same grid, drawn by matplotlib."""

from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import Path

import matplotlib
import numpy as np

from deploy.render.episode import Episode
from deploy.report.gallery import films, paths
from deploy.report.gallery.films import Footage
from deploy.report.gallery.play import Cell, Gallery

matplotlib.use("Agg")
from matplotlib import pyplot
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.patches import Circle, Rectangle

PATH_FPS, _PATH_FRAMES = 15.0, 120  # 8 seconds
_SIDE, _STRIP_WIDTH = 2.2, 4.8  # inches of a panel
_WALL, _FLOOR, _GOAL, _INK = "#8c99ad", "#f4f5f7", "#0dbf4d", "#1f2430"


def save_still(gallery: Gallery, name: str, footage: Footage | None, path: Path) -> None:
    """Writes a picture of the episodes `name` in all cells: strips of the footage, if any, or paths. Raises OSError."""
    figure = still(gallery, name, footage)
    figure.savefig(path, dpi=150)
    pyplot.close(figure)


def still(gallery: Gallery, name: str, footage: Footage | None) -> Figure:
    """Returns the picture of the episodes `name` in all cells; see `save_still`."""
    panels = _Panels(gallery, name, (_STRIP_WIDTH if footage else _SIDE))
    for cell, axis in panels.axes.items():
        if footage:
            axis.imshow(footage.strip(cell))
        else:
            panels.draw_path(axis, cell)
    return panels.figure


def frames(gallery: Gallery, name: str, footage: Footage | None) -> tuple[Iterator[np.ndarray], float]:
    """Returns the frames `[height, width, 3]` of a film of all cells, and its frames per second."""
    panels = _Panels(gallery, name, _SIDE)
    return (panels.play(footage), films.FPS) if footage else (panels.play_paths(), PATH_FPS)


class _Panels:
    """Figure with a named panel for each cell. `axes`: those of the cells that were played."""

    def __init__(self, gallery: Gallery, name: str, width: float) -> None:
        self._episodes: Mapping[Cell, Episode] = gallery.episodes(name)
        self._gallery = gallery
        rows, columns = gallery.rows[::-1], gallery.columns
        size = 0.4 + width * len(columns), 0.7 + (_SIDE + 0.3) * len(rows)
        self.figure, axes = pyplot.subplots(
            len(rows), len(columns), figsize=size, dpi=100, layout="constrained", squeeze=False
        )
        self.axes: dict[Cell, Axes] = {}
        for (row, column), axis in np.ndenumerate(axes):
            cell = rows[row], columns[column]
            learner = "collector learner" if columns[column] is None else f"learner {columns[column]}"
            axis.set_title(learner, fontsize=9)
            axis.set(xticks=[], yticks=[])
            axis.spines[:].set_visible(False)
            if column == 0:
                axis.set_ylabel(f"collector depth {rows[row]}", fontsize=9)
            if cell in self._episodes:
                self.axes[cell] = axis
            else:
                axis.text(0.5, 0.5, "no finished run", ha="center", fontsize=8, transform=axis.transAxes)
        self.figure.suptitle(f"{gallery.env_id}, {gallery.objective}, seed {gallery.seed}: {name} episode", fontsize=10)

    @property
    def num_steps(self) -> int:
        return max(len(episode.states) for episode in self._episodes.values())

    @cached_property
    def _frame(self) -> paths.Frame:
        return paths.make_frame(self._gallery)

    def draw_path(self, axis: Axes, cell: Cell) -> tuple[LineCollection, Circle, paths.PathPicture]:
        """Draws the whole path, and returns what a film changes."""
        picture = paths.draw_path(self._gallery.env.spec, self._frame, self._episodes[cell], self.num_steps)
        axis.set(xlim=(0, paths.WIDTH), ylim=(self._frame.height, 0), aspect="equal", facecolor=_FLOOR)
        for left, top, width, height in self._frame.walls:
            axis.add_patch(Rectangle((left, top), width, height, color=_WALL, lw=0))
        axis.add_patch(Circle(picture.goal, max(picture.radius, 3), facecolor=f"{_GOAL}66", edgecolor=_GOAL))
        pieces = [np.array([point.split(",") for point in points.split()], float) for _, points in picture.pieces]
        path = LineCollection(pieces, colors=[colour for colour, _ in picture.pieces], lw=2, capstyle="round")
        axis.add_collection(path)
        axis.add_patch(Circle(picture.start, 3.5, facecolor="white", edgecolor=_INK, zorder=3))
        body = Circle(tuple(pieces[-1][-1]), 4, color=_INK, zorder=4)
        axis.add_patch(body)
        return path, body, picture

    def play_paths(self) -> Iterator[np.ndarray]:
        drawn = {cell: self.draw_path(axis, cell) for cell, axis in self.axes.items()}
        wholes = {cell: [*path.get_segments()] for cell, (path, _, _) in drawn.items()}
        for step in range(0, self.num_steps, -(-self.num_steps // _PATH_FRAMES)):
            for cell, (path, body, picture) in drawn.items():
                pieces, last = _until(wholes[cell], step // picture.stride)
                path.set_segments(pieces)
                body.center = tuple(last)
            yield self._pixels()
        pyplot.close(self.figure)

    def play(self, footage: Footage) -> Iterator[np.ndarray]:
        images = {cell: axis.imshow(footage.frames[cell][0]) for cell, axis in self.axes.items()}
        for index in range(len(footage.steps)):
            for cell, image in images.items():
                image.set_data(footage.frames[cell][index])
            yield self._pixels()
        pyplot.close(self.figure)

    def _pixels(self) -> np.ndarray:
        """Returns the figure as `[height, width, 3]` uint8, both even."""
        self.figure.canvas.draw()
        self.figure.set_layout_engine("none")  # the first layout stays: panels do not move
        pixels = np.asarray(self.figure.canvas.buffer_rgba())  # type: ignore[attr-defined]
        height, width = pixels.shape[:2]
        return pixels[: height // 2 * 2, : width // 2 * 2, :3].copy()


def _until(pieces: list[np.ndarray], index: int) -> tuple[list[np.ndarray], np.ndarray]:
    """Returns the pieces of a path up to its point number `index`, and that point, or its last one."""
    shown = []
    for piece in pieces:
        shown.append(piece[: max(index, 0) + 1])
        if index < len(piece) - 1:
            break
        index -= len(piece) - 1
    return shown, shown[-1][-1]
