"""Pictures and films of episodes, and what their pages hold, checked by the hues of goals, bodies and walls."""

import base64
import json
import re
import zlib
from fractions import Fraction
from functools import cache
from pathlib import Path
from typing import Any

import av
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from matplotlib import image

from deploy.render import gl
from deploy.render.episode import Episode, Recorder
from deploy.render.scene import Scene, look_at, view_direction
from shared.config import EnvOptions
from shared.envs.base import EnvSpec, EnvState, GoalEnv
from shared.envs.registry import make_env
from shared.errors import ConfigError
from shared.policy import PolicyFunction, random_policy
from shared.types import Array
from tests.deploy.render.cases import BODY, GOAL, LENGTH, WALL, Slider, count, draw

pytestmark = pytest.mark.slow


class Falling(GoalEnv):
    """An environment whose state counts steps from 0; it terminates in its sixth step."""

    @property
    def spec(self) -> EnvSpec:
        return EnvSpec(1, 1, 1, goal_indices=(0,), episode_length=LENGTH, goal_radius=0.5, num_cells=1)

    def reset(self, key: Array) -> EnvState:
        return EnvState((), jnp.zeros(1), jnp.full(1, 4.0), jnp.array(False))

    def step(self, env_state: EnvState, action: Array) -> EnvState:
        state = env_state.state + 1
        return env_state._replace(state=state, terminated=state[0] == 6)

    def cell(self, goal: Array) -> Array:
        return jnp.zeros(goal.shape[:-1], jnp.int32)


@pytest.fixture(scope="module")
def slider() -> Slider:
    return Slider(EnvOptions())


@pytest.fixture(scope="module")
def slide(slider: Slider) -> Episode:
    return play(slider, random_policy(1))


def film(path: Path) -> tuple[np.ndarray, Fraction | None, str]:
    """Returns frames `[T, height, width, 3]`, their rate and their format."""
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        frames = np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(stream)])
        return frames, stream.average_rate, f"{stream.codec_context.name} {stream.codec_context.pix_fmt}"


def play(env: Any, policy: PolicyFunction, **options: Any) -> Episode:
    """Returns an episode with seed 0."""
    (episode,) = Recorder(env).play(policy, {}, jax.random.split(jax.random.key(0), 1), jax.random.key(1), **options)
    return episode


def test_an_episode_ends_when_the_environment_terminates() -> None:
    episode = play(Falling(), random_policy(1))
    np.testing.assert_array_equal(episode.states[:, 0], np.arange(6))
    np.testing.assert_array_equal(episode.distances, abs(np.arange(6) - 4))
    assert episode.positions.shape == (6, 0)


def test_an_episode_is_drawn_with_the_policys_action_chunks() -> None:
    class Summing(Falling):
        def step(self, env_state: EnvState, action: Array) -> EnvState:
            return env_state._replace(state=env_state.state + action)

    def policy(params: Any, state: Array, goal: Array, key: Array) -> jax.Array:
        return jnp.array([[1.0, 1.0, -0.5]])

    episode = play(Summing(), policy, steps=7, chunk=3)
    np.testing.assert_array_equal(episode.states[:, 0], [0, 1, 2, 1.5, 2.5, 3.5, 3])


def test_an_episode_is_cut_off_at_its_length(slide: Episode) -> None:
    assert len(play(Falling(), random_policy(1), steps=3).states) == 3
    assert len(slide.states) == LENGTH  # the environment's own length


def test_goals_move(slider: Slider, slide: Episode) -> None:
    np.testing.assert_allclose(slide.goals[:, 0], 1 + 0.1 * np.arange(LENGTH), rtol=1e-6)
    positions = Scene(slider, slide).positions
    np.testing.assert_allclose(positions[:, 1:], [[1 + 0.1 * step, 0, 0.4] for step in range(LENGTH)], rtol=1e-6)
    np.testing.assert_array_equal(positions[:, 0], slide.states[:, 0])


def test_a_sheet_shows_goal_body_and_wall_at_each_moment(slider: Slider, tmp_path: Path) -> None:
    messages = draw(slider, tmp_path / "new" / "sheet.png", "png")
    assert "12 steps" in messages[0]
    pixels = image.imread(tmp_path / "new" / "sheet.png")
    assert pixels.shape[:2] == (767, 1820)
    for row in (pixels[:383], pixels[383:]):
        for panel in np.array_split(row, 4, axis=1):
            assert min(count(panel).values()) > 200


def test_a_film_shows_a_moving_body(slider: Slider, tmp_path: Path) -> None:
    draw(slider, tmp_path / "film.mp4", "mp4")
    frames, rate, kind = film(tmp_path / "film.mp4")
    assert frames.shape == (LENGTH / 2, 720, 960, 3)  # every second step: 100 steps a second are 50 frames a second
    assert (rate, kind) == (50, "h264 yuv420p")
    assert min(count(frames[-1] / 255).values()) > 1000
    assert (frames[0] != frames[-1]).any()


def test_a_page_holds_the_episode(slider: Slider, slide: Episode, tmp_path: Path) -> None:
    draw(slider, tmp_path / "page.html", "html")
    page = (tmp_path / "page.html").read_text()
    assert "<title>a title · success radius 0.4</title>" in page
    assert len(page) < 600_000
    coded = re.search(r'fetch\("data:;base64,([^"]+)"\)', page)
    assert coded
    system = json.loads(zlib.decompress(base64.b64decode(coded[1])))
    assert system["opt"]["timestep"] == pytest.approx(0.01)
    assert [geom["name"] for geom in system["geoms"]["world"]] == ["Plane", "Box"]
    (sphere, column) = system["geoms"]["goal_0"]
    assert (sphere["name"], column["name"], sphere["link_idx"]) == ("Sphere", "Capsule", 1)
    assert len(system["states"]["x"]) == LENGTH
    for goal, state in zip(slide.goals[:, 0], system["states"]["x"], strict=True):
        np.testing.assert_allclose(state["pos"][1], [goal, 0, 0.4], atol=1e-3)


@cache
def first_moment(env_id: str) -> tuple[Any, Episode]:
    """Returns an environment and an episode that holds only its start, so that no step is compiled."""
    env: Any = make_env(env_id)
    q, _, goal = jax.jit(env.start)(jax.random.key(0))
    return env, Episode(np.zeros((1, 1)), goal[None], np.zeros(1), np.array(q)[None])


@pytest.mark.parametrize("env_id", ["ant", "ant_u4_maze", "ant_push"])
def test_ants_goals_and_walls_are_visible(env_id: str) -> None:
    (frame,) = Scene(*first_moment(env_id)).frames([0], 480, 360)
    counts = count(frame / 255)
    assert counts[BODY] > 25
    assert counts[GOAL] > 25
    assert (counts[WALL] > 10_000) == (env_id != "ant")


def test_bodies_have_the_positions_that_brax_computes() -> None:
    from brax import kinematics

    env, episode = first_moment("ant_push")
    q = episode.positions[0].copy()
    q[3:7] /= np.linalg.norm(q[3:7])  # MuJoCo normalises it by itself
    (data,) = Scene(env, episode).moments([0])
    system = env.physics.system
    expected = jax.jit(kinematics.forward)(system, q, jnp.zeros(system.qd_size()))[0]
    np.testing.assert_allclose(data.xpos[1:-1], expected.pos, atol=1e-4)


@pytest.mark.parametrize("size", [(8, 6, 0.2), (3, 9, 0.5), (1, 1, 1), (1, 1, 4)])
def test_the_camera_sees_every_point_from_the_smallest_distance(size: tuple[float, ...]) -> None:
    points = np.random.default_rng(0).uniform(size=(500, 3)) * size + 5
    camera = look_at(points, aspect=1.5, field_of_view=45)
    ahead = view_direction(camera)
    right = np.cross(ahead, (0, 0, 1)) / np.linalg.norm(np.cross(ahead, (0, 0, 1)))
    from_camera = points - (camera.lookat - camera.distance * ahead)
    height = (from_camera @ ahead) * np.tan(np.radians(45) / 2)
    share = np.stack([from_camera @ right / (1.5 * height), from_camera @ np.cross(right, ahead) / height])
    assert 0.85 < abs(share).max() < 1


def test_a_picture_of_a_point_maze_shows_walls_and_goals(tmp_path: Path) -> None:
    draw(make_env("point_u_maze"), tmp_path / "maze.png", "png", steps=20)
    pixels = image.imread(tmp_path / "maze.png")
    for row in np.array_split(pixels[60:], 2):
        for panel in np.array_split(row[:, :-150], 3, axis=1):
            counts = count(panel)
            assert counts[WALL] > 0.3 * panel[..., 0].size
            assert counts[GOAL] > 1000


def test_a_film_of_a_point_maze_grows(tmp_path: Path) -> None:
    draw(make_env("point_u_maze"), tmp_path / "maze.mp4", "mp4", steps=4)
    frames, rate, kind = film(tmp_path / "maze.mp4")
    assert (len(frames), rate, kind) == (4, 10, "h264 yuv420p")
    changed = [int((abs(frame.astype(int) - frames[0]).max(axis=-1) > 60).sum()) for frame in frames]
    assert changed == sorted(changed)
    assert changed[-1] > 0


def test_environments_that_cannot_be_drawn_are_refused_before_an_episode(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="Falling cannot be drawn"):
        draw(Falling(), tmp_path / "a.png", "png")
    with pytest.raises(ConfigError, match="paths have no 3-D page"):
        draw(make_env("point_u_maze"), tmp_path / "a.html", "html")
    assert not list(tmp_path.iterdir())


def test_missing_opengl_error_names_the_package(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("MUJOCO_GL", raising=False)
    monkeypatch.setattr(gl, "find_library", lambda name: None)
    for picture in ("png", "mp4"):
        with pytest.raises(ConfigError, match=r"apt-get install libosmesa6 .*3-D pages need none"):
            draw(make_env("ant"), tmp_path / "a", picture)
    draw(make_env("point_u_maze"), tmp_path / "maze.png", "png", steps=2)


@pytest.mark.parametrize(
    ("wanted", "found", "gpu", "chosen"),
    [
        ("", ("EGL", "OSMesa"), False, "osmesa"),
        ("", ("EGL", "OSMesa"), True, "egl"),
        ("", ("EGL",), False, "egl"),
        ("", ("OSMesa",), True, "osmesa"),
        ("egl", (), False, "egl"),
        ("disable", ("OSMesa",), False, "osmesa"),  # `disable` concerns windows, which are not used here
    ],
)
def test_the_choice_of_opengl(
    wanted: str, found: tuple[str, ...], gpu: bool, chosen: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MUJOCO_GL", wanted)
    monkeypatch.setattr(gl, "find_library", lambda name: f"lib{name}.so" if name in found else None)
    monkeypatch.setattr(gl.Path, "exists", lambda path: gpu)
    assert gl.choose_gl() == chosen


def test_broken_opengl_gives_a_one_line_error(slider: Slider, slide: Episode, monkeypatch: pytest.MonkeyPatch) -> None:
    scene = Scene(slider, slide)
    assert len(list(scene.frames([0], 64, 48))) == 1
    # A process can use either EGL or OSMesa. It uses one already, so the other fails.
    other = "egl" if gl.choose_gl() == "osmesa" else "osmesa"
    monkeypatch.setenv("MUJOCO_GL", other)
    with pytest.raises(ConfigError, match=rf"^OpenGL by {other} does not work here \(.*3-D pages need none$") as caught:
        list(scene.frames([0], 64, 48))
    assert "\n" not in str(caught.value)
