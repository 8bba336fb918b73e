"""Galleries of a matrix from its folder: for a page, or as files of their own."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Literal

from matplotlib.figure import Figure

from deploy.render.film import write_film
from deploy.render.paths import can_draw
from deploy.report.gallery import pictures
from deploy.report.gallery.films import Footage, has_body, make_film, shoot
from deploy.report.gallery.markup import FilmStore, View, lay_out, page
from deploy.report.gallery.play import Gallery, play_matrix
from deploy.report.records import MatrixRecord, Missing
from shared.errors import ConfigError
from shared.files import replace_file

FILMS = "films"  # folder, in that of the report's files
PAGE = "behaviours.html"
Say = Callable[[str], None]


def make_views(record: MatrixRecord, page: Path, folder: Path, say: Say) -> list[View]:
    """Returns the galleries of a matrix; what cannot be shown is added to `record.missing`.

    Args:
        record: the matrix, whole or half done.
        page: the page that will hold them.
        folder: the folder for films that are too many for the page.
        say: gets a line on each environment.

    Raises:
        OSError: A film cannot be written.
    """
    galleries, missing = play_matrix(record, say)
    record.missing += missing
    store, views = FilmStore(page, folder / FILMS), []
    for gallery in galleries:
        made = {}
        for name, footage in _shoot(gallery, record, say):
            if footage:
                made[name] = make_film(footage)
            del footage  # the next one is as large
        if made or can_draw(gallery.env):
            views.append(lay_out(gallery, made, store))
    return views


def path_figures(views: Sequence[View]) -> Iterator[tuple[str, Figure]]:
    """Yields the paths of all cells as a figure for each episode, after its name as a file."""
    for view in views:
        for name in view.gallery.shown if view.frame else ():
            yield f"{view.gallery.name}-paths-{name}", pictures.still(view.gallery, name, None)


def write_galleries(record: MatrixRecord, folder: Path, kind: Literal["png", "mp4", "html"], say: Say) -> list[Path]:
    """Writes the galleries of a matrix to files of `kind` in `folder`, and returns these.

    html is one page with the player. png and mp4 are a file for each gallery and episode; those of bodies show strips
    and films, all others show paths. What cannot be shown is added to `record.missing`. Raises OSError.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if kind == "html":
        views = make_views(record, folder / PAGE, folder, say)
        replace_file(folder / PAGE, page(record.directory.name, views, record.missing), sync=False)
        return [folder / PAGE]
    galleries, missing = play_matrix(record, say)
    record.missing += missing
    written = []
    for gallery in galleries:
        for name, footage in _shoot(gallery, record, say):
            if footage or can_draw(gallery.env):
                written.append(folder / f"{gallery.name}-{name}.{kind}")
                _write(gallery, name, footage, written[-1])
    return written


def _write(gallery: Gallery, name: str, footage: Footage | None, path: Path) -> None:
    """Writes a film or a picture of the episodes `name`, by the suffix of `path`. Raises OSError."""
    if path.suffix == ".mp4":
        write_film(path, *pictures.frames(gallery, name, footage))
    else:
        pictures.save_still(gallery, name, footage, path)


def _shoot(gallery: Gallery, record: MatrixRecord, say: Say) -> Iterator[tuple[str, Footage | None]]:
    """Yields the footage of each episode, after its name; none where there is nothing to film or no way to film it."""
    filming = has_body(gallery.env)
    if filming:
        say(f"{gallery.env_id}: filming {len(gallery.cells)} cells, {gallery.objective}")
    elif not can_draw(gallery.env):
        kind = type(gallery.env).__name__
        reason = f"{kind} has no body to film, and its goals have one coordinate, too few for a path"
        _miss(record, gallery, reason)
    for name in gallery.shown:
        footage = None
        if filming:
            try:
                footage = shoot(gallery.env, gallery.episodes(name))  # type: ignore[arg-type]
            except ConfigError as error:  # no OpenGL
                _miss(record, gallery, f"no films: {error}")
                filming = False
        yield name, footage


def _miss(record: MatrixRecord, gallery: Gallery, reason: str) -> None:
    """Adds what an environment lacks to `record.missing`, once for all of its galleries."""
    missing = Missing("", f"behaviours in {gallery.env_id}", reason)
    if missing not in record.missing:
        record.missing.append(missing)
