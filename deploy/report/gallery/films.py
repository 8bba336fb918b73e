"""Films of bodies: one for each shown episode, with every cell as a tile, so that the cells stay in step."""

import io
import math
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from PIL import Image

from deploy.render.episode import Episode
from deploy.render.film import encode_film
from deploy.render.paths import spread
from deploy.report.gallery.play import Cell
from shared.envs.base import GoalEnv

if TYPE_CHECKING:
    from shared.envs.brax_env import BraxEnv

TILE = 240, 180  # width and height in pixels
FPS = 15.0
_MAX_FRAMES = 120  # 8 seconds
_STRIP = 4  # frames
_QUALITY = 60  # of a strip's JPEG
_SHADOWS = 512  # pixels of the shadow map; a larger one, or smooth edges, double the time of a frame


class Footage(NamedTuple):
    """One episode in all cells. F: frames.

    `steps`: environment steps of the frames. `picture` `[F, height, width, 3]` uint8: all cells as tiles. `tiles`: left
    upper corner of each cell's tile.
    """

    steps: Sequence[int]
    picture: np.ndarray
    tiles: Mapping[Cell, tuple[int, int]]

    def frames(self, cell: Cell) -> np.ndarray:
        """Returns the frames of one cell `[F, height, width, 3]`, a view."""
        left, top = self.tiles[cell]
        return self.picture[:, top : top + TILE[1], left : left + TILE[0]]

    def strip(self, cell: Cell) -> np.ndarray:
        """Returns a few moments of a cell, side by side, `[height, k * width, 3]`."""
        moments = np.linspace(0, len(self.steps) - 1, _STRIP).round().astype(int)
        return np.concatenate(self.frames(cell)[moments], axis=1)


class Film(NamedTuple):
    """Footage for a page, as bytes: `mp4` of the picture, and a JPEG of each cell's strip."""

    mp4: bytes
    steps: Sequence[int]
    tiles: Mapping[Cell, tuple[int, int]]
    strips: Mapping[Cell, bytes]


def has_body(env: GoalEnv) -> bool:
    """Returns true for a `BraxEnv`, which can be filmed."""
    module = sys.modules.get("shared.envs.brax_env")  # brax is slow to import, and other environments do not need it
    return module is not None and isinstance(env, module.BraxEnv)


def shoot(env: "BraxEnv", episodes: Mapping[Cell, Episode]) -> Footage:
    """Films all cells with the same camera. Raises ConfigError without OpenGL."""
    from deploy.render.scene import Scene  # here, because it imports brax

    steps = _steps(env, max(len(episode.states) for episode in episodes.values()))
    scenes = {cell: Scene(env, _at(episode, steps)) for cell, episode in episodes.items()}
    points = np.concatenate([scene.points for scene in scenes.values()])
    columns = math.ceil(math.sqrt(len(scenes)))
    tiles = {cell: (TILE[0] * (index % columns), TILE[1] * (index // columns)) for index, cell in enumerate(scenes)}
    size = TILE[1] * math.ceil(len(scenes) / columns), TILE[0] * columns
    footage = Footage(steps, np.zeros((len(steps), *size, 3), np.uint8), tiles)
    for cell, scene in scenes.items():
        scene.fit(points)
        quality = scene.model.vis.quality
        quality.shadowsize, quality.offsamples = _SHADOWS, 0
        frames, count = footage.frames(cell), len(scene.positions)
        for index, frame in enumerate(scene.frames(range(count), *TILE)):
            frames[index] = frame
        frames[count:] = frames[count - 1]  # after the episode's end its last moment stands still
    return footage


def make_film(footage: Footage) -> Film:
    strips = {cell: _jpeg(footage.strip(cell)) for cell in footage.tiles}
    return Film(encode_film(footage.picture, FPS), footage.steps, footage.tiles, strips)


def _steps(env: "BraxEnv", count: int) -> list[int]:
    """Returns the steps of the frames, evenly over `count` steps: in real time, or faster if these were too many."""
    real_time = round(1 / (FPS * env.physics.seconds_per_step))
    return spread(count, max(1, real_time, -(-count // _MAX_FRAMES)))


def _at(episode: Episode, steps: Sequence[int]) -> Episode:
    """Returns the moments of `episode` at `steps`; from its end on its last moment, once."""
    kept = np.unique(np.minimum(steps, len(episode.states) - 1))
    return Episode(*(column[kept] for column in episode))


def _jpeg(pixels: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, format="JPEG", quality=_QUALITY)
    return file.getvalue()
