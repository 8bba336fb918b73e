"""Pictures and films of a gallery outside of a page: the same grid, drawn by matplotlib."""

from collections.abc import Iterator
from pathlib import Path

import matplotlib
import numpy as np

from deploy.render.paths import draw_paths, make_frame, spread
from deploy.render.plane import PathPanel, add_time_scale, pixels
from deploy.report.gallery import films
from deploy.report.gallery.films import Footage
from deploy.report.gallery.play import Cell, Gallery

matplotlib.use("Agg")
from matplotlib import pyplot
from matplotlib.axes import Axes
from matplotlib.figure import Figure

_PATH_FPS, _PATH_FRAMES = 15.0, 120  # 8 seconds
_PATH, _TILE, _STRIP = (2.2, 2.2), (2.2, 1.65), (4.8, 0.9)  # inches of a panel: width and height


def save_still(gallery: Gallery, name: str, footage: Footage | None, path: Path) -> None:
    """Writes a picture of the episodes `name` in all cells: strips of the footage, if any, or paths. Raises OSError."""
    figure = still(gallery, name, footage)
    figure.savefig(path, dpi=150)
    pyplot.close(figure)


def still(gallery: Gallery, name: str, footage: Footage | None) -> Figure:
    """Returns the picture of the episodes `name` in all cells; see `save_still`."""
    figure, axes = _grid(gallery, name, _STRIP if footage else _PATH)
    if footage:
        for cell, axis in axes.items():
            axis.imshow(footage.strip(cell))
    else:
        _path_panels(gallery, name, figure, axes)
    return figure


def frames(gallery: Gallery, name: str, footage: Footage | None) -> tuple[Iterator[np.ndarray], float]:
    """Returns the frames `[height, width, 3]` of a film of all cells, and its frames per second."""
    return (_film(gallery, name, footage), films.FPS) if footage else (_path_film(gallery, name), _PATH_FPS)


def _film(gallery: Gallery, name: str, footage: Footage) -> Iterator[np.ndarray]:
    figure, axes = _grid(gallery, name, _TILE)
    images = {cell: axis.imshow(footage.frames(cell)[0]) for cell, axis in axes.items()}
    for index in range(len(footage.steps)):
        for cell, image in images.items():
            image.set_data(footage.frames(cell)[index])
        yield pixels(figure)
    pyplot.close(figure)


def _path_film(gallery: Gallery, name: str) -> Iterator[np.ndarray]:
    figure, axes = _grid(gallery, name, _PATH)
    panels, num_steps = _path_panels(gallery, name, figure, axes)
    for step in spread(num_steps, -(-num_steps // _PATH_FRAMES)):
        for panel in panels:
            panel.show(step)
        yield pixels(figure)
    pyplot.close(figure)


def _path_panels(gallery: Gallery, name: str, figure: Figure, axes: dict[Cell, Axes]) -> tuple[list[PathPanel], int]:
    """Draws the paths, and returns their panels and the number of steps of the longest one."""
    episodes, env = gallery.episodes(name), gallery.env
    frame, num_steps = make_frame(env, episodes.values()), max(len(each.states) for each in episodes.values())
    panels = [PathPanel(axis, frame, draw_paths(env, frame, episodes[cell], num_steps)) for cell, axis in axes.items()]
    add_time_scale(figure, num_steps)
    return panels, num_steps


def _grid(gallery: Gallery, name: str, panel: tuple[float, float]) -> tuple[Figure, dict[Cell, Axes]]:
    """Returns a figure with a panel for each cell, deep collectors above, and the panels of the cells with episodes."""
    rows, columns = gallery.rows[::-1], gallery.columns
    size = 0.4 + panel[0] * len(columns), 0.7 + (panel[1] + 0.3) * len(rows)
    figure, axes = pyplot.subplots(len(rows), len(columns), figsize=size, dpi=100, layout="constrained", squeeze=False)
    figure.suptitle(f"{gallery.env_id}, {gallery.objective}, seed {gallery.seed}: {name} episode", fontsize=10)
    found: dict[Cell, Axes] = {}
    for (row, column), axis in np.ndenumerate(axes):
        axis.set(xticks=[], yticks=[])
        axis.spines[:].set_visible(False)
        learner = "collector learner" if columns[column] is None else f"learner {columns[column]}"
        axis.set_title(learner, fontsize=9)
        if column == 0:
            axis.set_ylabel(f"collector depth {rows[row]}", fontsize=9)
        if (cell := (rows[row], columns[column])) in gallery.cells:
            found[cell] = axis
        else:
            axis.text(0.5, 0.5, "no final policy", ha="center", fontsize=8, transform=axis.transAxes)
    return figure, found
