"""OpenGL without a window, the only system library that pictures need.

MuJoCo reads `MUJOCO_GL` at import, and would load a broken library at that point. Here its contexts are made by name
when a picture is drawn: no variable has to be set before the import, and all errors of OpenGL occur in one place.
"""

import importlib
import os
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from ctypes.util import find_library
from pathlib import Path
from typing import Any

from shared.errors import ConfigError


def choose_gl() -> str:
    """Returns the name of MuJoCo's context for this machine, or the user's `MUJOCO_GL`. Raises ConfigError for none."""
    chosen = os.environ.get("MUJOCO_GL", "").lower().strip()
    if chosen in ("egl", "osmesa", "glfw", "cgl"):
        return chosen
    if sys.platform == "darwin":
        return "cgl"
    egl, osmesa = find_library("EGL"), find_library("OSMesa")
    if egl and (Path("/dev/nvidia0").exists() or not osmesa):  # without a GPU both are Mesa's software
        return "egl"
    if osmesa:
        return "osmesa"
    raise ConfigError(
        "png and mp4 need an off-screen OpenGL: apt-get install libosmesa6 (CPU) or libegl1 (GPU); 3-D pages need none"
    )


@contextmanager
def open_gl(model: Any, width: int, height: int) -> Iterator[Any]:
    """Opens MuJoCo's `MjrContext` for pictures of `model`, up to `width` x `height` pixels. Raises ConfigError."""
    import mujoco

    kind = choose_gl()
    with ExitStack() as opened:
        try:
            window = importlib.import_module(f"mujoco.{kind}").GLContext(width, height)
            opened.callback(window.free)
            window.make_current()
            context = mujoco.MjrContext(model, mujoco.mjtFontScale.mjFONTSCALE_100)
            opened.callback(context.free)
            mujoco.mjr_setBuffer(mujoco.mjtFramebuffer.mjFB_OFFSCREEN, context)
        except Exception as error:  # missing and broken libraries raise many types
            why = " ".join(f"{type(error).__name__}: {error}".split())[:200]
            raise ConfigError(
                f"OpenGL by {kind} does not work here ({why}); MUJOCO_GL=osmesa or MUJOCO_GL=egl chooses another "
                "(apt-get install libosmesa6 or libegl1); 3-D pages need none"
            ) from error
        yield context
