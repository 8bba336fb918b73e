"""A page with one episode in three dimensions and brax's viewer. The page needs no network."""

import base64
import warnings
import zlib
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

from brax.base import Transform
from brax.io import json, mjcf
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from deploy.render.episode import Episode
from deploy.render.scene import Scene, look_at, view_direction
from shared.envs.brax_env import BraxEnv
from shared.files import replace_file

_VIEWER = Path(__file__).with_name("viewer.min.js")  # `make viewer` makes it
_GAMMA = 2.2  # the viewer takes colours as linear
_ASPECT, _FIELD_OF_VIEW = 1.5, 40  # of the camera; the second is the viewer's own, in degrees


def write_page(env: BraxEnv, episodes: Sequence[Episode], out: Path, title: str) -> None:
    """Replaces `out` by the page in one step. Raises OSError where it cannot be written."""
    (episode,) = episodes
    scene = Scene(env, episode, opaque=True)
    camera = look_at(scene.points, _ASPECT, _FIELD_OF_VIEW)
    environment = Environment(autoescape=True, undefined=StrictUndefined, loader=PackageLoader("deploy.render", ""))
    page = environment.get_template("page.html.j2").render(
        title=title,
        viewer=Markup(_VIEWER.read_text(encoding="utf-8")),
        episode=_encode(scene, env.physics.seconds_per_step),
        target=camera.lookat.tolist(),
        offset=(-camera.distance * view_direction(camera)).tolist(),
        aspect=_ASPECT,
    )
    replace_file(out, page, sync=False)


def _encode(scene: Scene, seconds_per_step: float) -> str:
    """Returns geometries and moments of `scene` for the viewer: JSON, compressed, as base64."""
    scene.model.opt.timestep = seconds_per_step  # the viewer's time between two moments
    scene.model.geom_rgba[:, :3] **= _GAMMA
    moments = [
        SimpleNamespace(x=Transform(pos=data.xpos[1:].round(4), rot=data.xquat[1:].round(4)))
        for data in scene.moments(range(len(scene.positions)))
    ]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Brax System", UserWarning)  # the system is not simulated here
        system = mjcf.load_model(scene.model)
    return base64.b64encode(zlib.compress(json.dumps(system, moments).encode())).decode()
