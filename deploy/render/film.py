"""Frames into an MP4 that browsers play."""

import itertools
from collections.abc import Iterable
from fractions import Fraction
from pathlib import Path

import av
import numpy as np


def write_film(out: Path, frames: Iterable[np.ndarray], fps: float) -> None:
    """Writes at least one of `frames` `[height, width, 3]` uint8; both sides are even. Raises OSError."""
    frames = iter(frames)
    first = next(frames)
    # Browsers need 4:2:0 colours, and an index at the front to start before the whole file is loaded.
    with av.open(str(out), "w", format="mp4", options={"movflags": "faststart"}) as container:
        stream = container.add_stream("libx264", Fraction(fps).limit_denominator(1000), options={"crf": "20"})
        stream.pix_fmt, (stream.height, stream.width) = "yuv420p", first.shape[:2]
        for frame in itertools.chain([first], frames):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
