"""Frames into an MP4 that browsers play."""

import io
import itertools
from collections.abc import Iterable
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np

_TO_PLAY_WHILE_LOADING = {"movflags": "faststart"}  # the index comes first
_SMALL = {"crf": "28", "g": "15"}  # a player seeks to key frames, so there are more of them


def write_film(out: Path, frames: Iterable[np.ndarray], fps: float) -> None:
    """Writes at least one of `frames` `[height, width, 3]` uint8; both sides are even. Raises OSError."""
    with av.open(str(out), "w", format="mp4", options=_TO_PLAY_WHILE_LOADING) as container:
        _encode(container, frames, fps, {"crf": "20"})


def encode_film(frames: Iterable[np.ndarray], fps: float) -> bytes:
    """Returns a small film of at least one of `frames`, for a page; see `write_film`."""
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as container:
        _encode(container, frames, fps, _SMALL)
    return file.getvalue()


def _encode(container: Any, frames: Iterable[np.ndarray], fps: float, options: dict[str, str]) -> None:
    """`options`: those of the encoder, x264."""
    frames = iter(frames)
    first = next(frames)
    stream = container.add_stream("libx264", Fraction(fps).limit_denominator(1000), options=options)
    # Browsers need 4:2:0 colours.
    stream.pix_fmt, (stream.height, stream.width) = "yuv420p", first.shape[:2]
    for frame in itertools.chain([first], frames):
        container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
    container.mux(stream.encode())
