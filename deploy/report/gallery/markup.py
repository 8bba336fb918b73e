"""Galleries as markup for a page: the grid of cells with their pictures, and the player.

Films are in the page up to `FILM_BUDGET_BYTES`; those beyond are files beside it.
"""

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from deploy.render import paths
from deploy.render.episode import Episode
from deploy.report.gallery import films
from deploy.report.gallery.films import Film
from deploy.report.gallery.play import Cell, Gallery
from deploy.report.records import Missing
from shared.envs.base import EnvSpec
from shared.files import replace_file

FILM_BUDGET_BYTES = 9_000_000  # of all films in a page, which base64 makes a third larger
_PATH_FPS, _PATH_FRAMES = 30.0, 240  # of a player without a film: 8 seconds


@dataclass(frozen=True, eq=False)
class Timeline:
    """Frames of one episode in the player. `steps`: environment step of each. `film`: its URL; empty without one."""

    name: str
    number: int
    steps: Sequence[int]
    fps: float
    film: str


@dataclass(frozen=True, eq=False)
class Shot:
    """One episode in one cell: the bodies' paths, tile of the film, strip of its frames, each if there is one."""

    caption: str
    paths: Sequence[paths.PathPicture]
    tile: tuple[int, int] | None
    strip: str


@dataclass(frozen=True, eq=False)
class View:
    """A gallery as the template shows it. `shots`: by cell, then by the name of the episode."""

    gallery: Gallery
    frame: paths.Frame | None
    timelines: Sequence[Timeline]
    shots: Mapping[Cell, Mapping[str, Shot]]

    @property
    def files(self) -> list[str]:
        """URLs of the films that are not inside of the page."""
        return [each.film for each in self.timelines if each.film and not each.film.startswith("data:")]

    def render(self) -> Markup:
        template = _environment().get_template("gallery.html.j2")
        return Markup(template.render(view=self, width=paths.WIDTH, tile=films.TILE))


class FilmStore:
    """Gives each film of a page its URL: its data, or once the page has enough of them a file in a folder beside it."""

    def __init__(self, page: Path, folder: Path) -> None:
        self._page, self._folder = page, folder
        self._left = FILM_BUDGET_BYTES

    def url(self, film: Film, name: str) -> str:
        """Raises OSError where a file cannot be written."""
        if len(film.mp4) <= self._left:
            self._left -= len(film.mp4)
            return f"data:video/mp4;base64,{base64.b64encode(film.mp4).decode()}"
        self._folder.mkdir(parents=True, exist_ok=True)
        path = self._folder / f"{name}.mp4"
        replace_file(path, film.mp4, sync=False)
        return quote(path.relative_to(self._page.parent).as_posix())


def lay_out(gallery: Gallery, made: Mapping[str, Film], store: FilmStore) -> View:
    """Returns what the template shows of a gallery. `made`: its films by episode, empty if there are none."""
    spec = gallery.env.spec
    frame = paths.make_frame(gallery.env, gallery.all_episodes) if paths.can_draw(gallery.env) else None
    timelines: list[Timeline] = []
    shots: dict[Cell, dict[str, Shot]] = {cell: {} for cell in gallery.cells}
    for index, (name, number) in enumerate(gallery.shown.items()):
        episodes, film = gallery.episodes(name), made.get(name)
        num_steps = max(len(episode.states) for episode in episodes.values())
        steps = film.steps if film else paths.spread(num_steps, -(-num_steps // _PATH_FRAMES))
        url = store.url(film, f"{gallery.name}-{name}") if film else ""
        timelines.append(Timeline(name, number, list(steps), films.FPS if film else _PATH_FPS, url))
        for cell, episode in episodes.items():
            shots[cell][name] = Shot(
                caption=_caption(spec, gallery.cells[cell][index]),
                paths=paths.draw_paths(gallery.env, frame, episode, num_steps) if frame else [],
                tile=film.tiles[cell] if film else None,
                strip=f"data:image/jpeg;base64,{base64.b64encode(film.strips[cell]).decode()}" if film else "",
            )
    return View(gallery, frame, timelines, shots)


def player() -> Markup:
    """Returns the styles and the script that galleries need, once for a page."""
    return Markup(_environment().get_template("player.html.j2").render())


def page(name: str, views: Sequence[View], missing: Sequence[Missing]) -> str:
    """Returns a page with the galleries of the matrix called `name`, and with what is `missing`."""
    template = _environment().get_template("alone.html.j2")
    return template.render(name=name, views=views, player=player(), missing=missing)


def _environment() -> Environment:
    loader = PackageLoader("deploy.report.gallery", "")
    return Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=StrictUndefined, loader=loader)


def _caption(spec: EnvSpec, episode: Episode) -> str:
    at_goal, length = np.flatnonzero(episode.distances < spec.goal_radius), len(episode.states)
    text = "never at goal"
    if len(at_goal):
        text = f"at goal in {len(at_goal)} of {length} steps, first at step {at_goal[0]}"
    return f"{text}; ended at step {length}" if length < spec.episode_length else text
