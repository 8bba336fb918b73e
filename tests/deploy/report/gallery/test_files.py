"""Galleries as `fathom render` and `fathom report` write them: pictures, films, pages, and what these cannot show."""

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from matplotlib import image

from deploy.cli.main import run_command
from deploy.render import gl
from deploy.render.episode import Episode
from deploy.render.film import write_film
from deploy.report.gallery import pictures
from deploy.report.gallery.films import shoot
from deploy.report.gallery.make import write_galleries
from deploy.report.read import read_matrix
from shared.errors import ConfigError
from tests.deploy.render.cases import GOAL, WALL, count
from tests.deploy.report.gallery.cases import sliding
from tests.deploy.report.gallery.conftest import CopyMatrix

pytestmark = pytest.mark.slow
NAMES = "best", "median", "worst"
NO_BODY = "Line has no body to film, and its goals have one coordinate, too few for a path"


def film(path: Path) -> Iterator[np.ndarray]:
    """Yields the frames `[height, width, 3]` in 0..1."""
    with av.open(str(path)) as container:
        for frame in container.decode(video=0):
            yield frame.to_ndarray(format="rgb24") / 255


def panels(pixels: np.ndarray, rows: int, columns: int) -> list[np.ndarray]:
    """Returns the parts of a picture in which its panels lie, without the time scale at the right."""
    parts = [part for row in np.array_split(pixels[60:], rows) for part in np.array_split(row, columns, axis=1)]
    assert len(parts) == rows * columns
    return parts


def test_pictures_show_paths_in_all_cells(maze: Path, tmp_path: Path) -> None:
    assert run_command(["render", str(maze), "--out", str(tmp_path / "new" / "folder")]) == 0
    files = sorted((tmp_path / "new" / "folder").iterdir())
    assert [path.name for path in files] == [f"point_u_maze-contrastive-{name}.png" for name in NAMES]
    for path in files:
        pixels = image.imread(path)[..., :3]
        for panel in panels(pixels[:, : int(0.88 * pixels.shape[1])], 2, 3):
            counts = count(panel)
            assert counts[WALL] > 0.3 * panel[..., 0].size
            assert counts[GOAL] > 500


def test_films_show_paths_that_grow(maze: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pictures, "_PATH_FRAMES", 2)  # each frame takes a tenth of a second
    assert run_command(["render", str(maze), "--format", "mp4", "--out", str(tmp_path)]) == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        f"point_u_maze-contrastive-{name}.mp4" for name in NAMES
    ]
    frames = [*film(tmp_path / "point_u_maze-contrastive-median.mp4")]
    assert len(frames) == 3  # every tenth step, and the last one
    for panel in zip(*(panels(frame[:, : int(0.88 * frame.shape[1])], 2, 3) for frame in frames), strict=True):
        changed = [int((abs(later - panel[0]).max(axis=-1) > 0.2).sum()) for later in panel]
        assert changed == sorted(changed)
        assert changed[-1] > 0


def test_one_page_has_all_galleries_and_says_what_it_lacks(
    own: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_command(["render", str(own), "--format", "html", "--out", str(tmp_path)]) == 0
    printed = capsys.readouterr()
    assert printed.out.splitlines()[-1] == f"1 file: {tmp_path / 'behaviours.html'}"
    assert NO_BODY in printed.err
    page = (tmp_path / "behaviours.html").read_text()
    assert page.count(NO_BODY) == 1
    assert page.count('class="gallery"') == 1
    assert page.count("data:video/mp4") == 3
    assert page.count("data:image/jpeg") == 3


def test_bodies_are_shown_in_all_cells(tmp_path: Path) -> None:
    gallery, still, moving = sliding(), tmp_path / "still.png", tmp_path / "moving.mp4"
    footage = shoot(gallery.env, gallery.episodes("worst"))  # type: ignore[arg-type]
    pictures.save_still(gallery, "worst", footage, still)
    write_film(moving, *pictures.frames(gallery, "worst", footage))
    frames = [*film(moving)]
    assert len(frames) == len(footage.steps) == 30
    for shown in (image.imread(still)[..., :3], frames[0], frames[-1]):
        for panel in panels(shown, 1, 3):
            assert min(count(panel).values()) > 50


def test_after_its_end_a_body_stands_as_it_stood_last() -> None:
    gallery = sliding()
    episodes = [Episode(*(column[:40] for column in episode)) for episode in gallery.episodes("worst").values()]
    early = Episode(*(column[:20] for column in episodes[0]))  # frames show every seventh step, and the last one
    held = Episode(*(column[np.minimum(np.arange(40), 19)] for column in episodes[0]))
    env: Any = gallery.env
    one, other = (shoot(env, {(4, 4): each, (4, 8): episodes[1]}) for each in (early, held))
    assert [*one.steps] == [0, 7, 14, 21, 28, 35, 39]
    np.testing.assert_array_equal(one.picture, other.picture)


@pytest.mark.parametrize("option", ["--learner=d4", "--seed=0", "--steps=5"])
def test_options_of_one_episode_are_refused(maze: Path, option: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(["render", str(maze), *option.split("=")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f"{option.split('=')[0]}: {maze} is a matrix" in line
    assert "leave it out" in line


@pytest.mark.parametrize("kind", ["png", "mp4", "html"])
def test_a_folder_that_cannot_be_written_gives_one_line(
    maze: Path, kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    blocked = tmp_path / "file"
    blocked.touch()
    for out in (blocked, blocked / "below"):
        assert run_command(["render", str(maze), "--format", kind, "--out", str(out)]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert "--out: " in line
        assert "name another folder" in line


def test_the_report_has_a_gallery_and_figures_of_paths(report: Path) -> None:
    page = report.read_text()
    assert page.count('class="gallery"') == page.count("<h3>Behaviours</h3>") == 1
    assert "no final policy" not in page
    for name in NAMES:
        assert (report.parent / "report" / f"point_u_maze-contrastive-paths-{name}.svg").stat().st_size > 10_000


def test_a_report_without_behaviours_plays_nothing(copy_maze: CopyMatrix) -> None:
    folder = copy_maze("checkpoints", "point_u_maze-c8-s*")
    assert run_command(["report", str(folder), "--no-behaviours"]) == 0
    page = (folder / "report.html").read_text()
    assert "<h3>Behaviours</h3>" not in page
    assert "class Player" not in page
    assert "behaviour of" not in page


def test_without_opengl_a_page_says_so(own: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> str:
        raise ConfigError("needs an off-screen OpenGL")

    monkeypatch.setattr(gl, "choose_gl", refuse)
    record = read_matrix(own)
    objectives = record.matrix.model_copy(update={"objectives": {"contrastive": {}, "survival": {}}})
    both = dataclasses.replace(record, matrix=objectives)  # the collector learners are in the galleries of both
    assert write_galleries(both, tmp_path, "html", lambda line: None) == [tmp_path / "behaviours.html"]
    page = (tmp_path / "behaviours.html").read_text()
    assert page.count("no films: needs an off-screen OpenGL") == page.count(NO_BODY) == 1
    assert 'class="gallery"' not in page  # goals of one coordinate have no paths, either
    assert write_galleries(both, tmp_path, "mp4", lambda line: None) == []
