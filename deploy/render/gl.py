"""OpenGL without a window: the one thing that pictures need from the system.

MuJoCo reads `MUJOCO_GL` when it is imported, so when the first environment with a body is made, and would load a
broken library there and then. Its contexts can be had by name at any later time, which is what happens here:
nothing has to be set before, and what goes wrong goes wrong in one place.
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
    """Which of MuJoCo's contexts to draw with: the user's `MUJOCO_GL`, or what fits this machine.

    Raises ConfigError where there is none.
    """
    chosen = os.environ.get("MUJOCO_GL", "").lower().strip()
    if chosen in ("egl", "osmesa", "glfw", "cgl"):
        return chosen
    if sys.platform == "darwin":
        return "cgl"
    egl, osmesa = find_library("EGL"), find_library("OSMesa")
    if egl and (Path("/dev/nvidia0").exists() or not osmesa):  # without a GPU it is Mesa in software, as is the other
        return "egl"
    if osmesa:
        return "osmesa"
    raise ConfigError(
        "png and mp4 need an off-screen OpenGL: apt-get install libosmesa6 (CPU) or libegl1 (GPU); html needs none"
    )


@contextmanager
def open_gl(model: Any, width: int, height: int) -> Iterator[Any]:
    """MuJoCo's `MjrContext` to draw `model` with, pictures of up to that many pixels.

    Raises ConfigError where OpenGL does not work.
    """
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
        except Exception as error:  # a missing or broken library shows in as many ways as there are
            why = " ".join(f"{type(error).__name__}: {error}".split())[:200]
            raise ConfigError(
                f"OpenGL by {kind} does not work here ({why}); MUJOCO_GL=osmesa or MUJOCO_GL=egl chooses another "
                "(apt-get install libosmesa6 or libegl1); html needs none"
            ) from error
        yield context
