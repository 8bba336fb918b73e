"""Windows on goal space, and paths in them, computed by hand: in a maze, on a plane, and along time."""

from itertools import pairwise

import numpy as np
import pytest
from matplotlib import pyplot
from matplotlib.collections import LineCollection
from matplotlib.colors import to_hex

from deploy.render.episode import Episode
from deploy.render.paths import TIME_COLOURS, WIDTH, can_draw, draw_path, draw_paths, make_frame, spread
from deploy.render.plane import PathPanel
from shared.config import EnvOptions
from shared.envs.base import EnvSpec
from shared.envs.registry import make_env
from tests.deploy.render.cases import LENGTH

RADIUS = 0.5


class Plane:
    """A plane whose goals are the second and the third entry of the state."""

    spec = EnvSpec(3, 2, 2, goal_indices=(1, 2), episode_length=LENGTH, goal_radius=RADIUS, num_cells=1)


def walk(points: np.ndarray, goal: tuple[float, float]) -> Episode:
    """Returns an episode along `points` `[T, 2]`, which are the second and the third entry of the state."""
    states = np.concatenate([np.full((len(points), 1), 99.0), points], axis=1)
    return Episode(states, np.tile(goal, (len(points), 1)), np.ones(len(points)), np.zeros((len(points), 0)))


def straight(steps: int) -> Episode:
    return walk(np.stack([np.arange(steps), np.zeros(steps)], axis=1), (steps - 1, 0))


def test_every_moment_of_a_stride_and_the_last_one_are_taken() -> None:
    assert spread(7, 3) == [0, 3, 6]
    assert spread(8, 3) == [0, 3, 6, 7]
    assert spread(1, 3) == [0]


def test_a_maze_reads_like_its_grid() -> None:
    env = make_env("point_u_maze")  # five rows and five columns, cells of 1
    frame = make_frame(env, [])
    assert (frame.scale, frame.height) == (WIDTH / 4, WIDTH)  # half of the border is seen
    assert frame.place(np.array([0.0, 0.0])).tolist() == [0, 0]
    assert frame.place(np.array([1.0, 3.0])).tolist() == [150, 50]  # x is the row, y the column
    assert len(frame.walls) == 5 * 5 - 7
    assert (-25, -25, 50, 50) in frame.walls
    assert (25, 75, 50, 50) in frame.walls  # row 2, column 1: between both corridors
    assert (25, 25, 50, 50) not in frame.walls  # row 1, column 1


def test_a_plane_shows_all_paths_and_goals_with_y_upwards() -> None:
    episodes = [walk(np.array([[0.0, 0.0], [2.0, 1.0]]), (2, 1)), walk(np.array([[0.0, 0.0]]), (3, -1))]
    frame = make_frame(Plane(), episodes)  # type: ignore[arg-type]
    # From -0.5 to 3.5 to the right and from -1.5 to 1.5 upwards; a margin of 6 % of the larger extent at each side.
    side = 4 * 1.12
    assert frame.scale == pytest.approx(WIDTH / side)
    assert (frame.height, frame.walls) == (WIDTH, ())
    np.testing.assert_allclose(frame.place(np.array([1.5, 0.0])), [WIDTH / 2, WIDTH / 2])
    np.testing.assert_allclose(frame.place(np.array([1.5, 1.0])), [WIDTH / 2, WIDTH / 2 - WIDTH / side], atol=0.06)


def test_pieces_of_a_path_join_and_are_coloured_by_time() -> None:
    episode = straight(49)
    frame = make_frame(Plane(), [episode])  # type: ignore[arg-type]
    picture = draw_path(Plane.spec, frame, episode, num_steps=100)
    assert (picture.stride, len(picture.pieces)) == (1, 16)  # three steps each
    colours, points = zip(*picture.pieces, strict=True)
    assert [len(each) for each in points] == [4] * 16
    for one, other in pairwise(points):
        np.testing.assert_array_equal(one[-1], other[0])
    assert colours[:2] == (to_hex(TIME_COLOURS(0.01)), to_hex(TIME_COLOURS(0.04)))
    np.testing.assert_allclose(points[0][:, 0], frame.place(np.array([[x, 0] for x in range(4)]))[:, 0])
    assert picture.start == tuple(points[0][0])
    assert picture.goal == tuple(points[-1][-1])
    assert picture.radius == round(RADIUS * frame.scale, 1)


def test_a_long_path_is_thinned_and_keeps_its_end() -> None:
    episode = straight(500)
    frame = make_frame(Plane(), [episode])  # type: ignore[arg-type]
    picture = draw_path(Plane.spec, frame, episode, num_steps=500)
    points = [picture.pieces[0][1][0], *(point for _, piece in picture.pieces for point in piece[1:])]
    assert (picture.stride, len(points)) == (3, 168)  # 0, 3, ... 498, and 499
    np.testing.assert_array_equal(points[-1], frame.place(np.array([499.0, 0.0])))


def test_a_path_of_one_moment_is_a_point() -> None:
    episode = straight(1)
    picture = draw_path(Plane.spec, make_frame(Plane(), [episode]), episode, num_steps=1)  # type: ignore[arg-type]
    ((_, points),) = picture.pieces
    assert points.shape == (1, 2)


@pytest.mark.parametrize("steps", [49, 500])
def test_a_panel_shows_the_path_up_to_a_step(steps: int) -> None:
    episode = straight(steps)
    frame = make_frame(Plane(), [episode])  # type: ignore[arg-type]
    figure, axis = pyplot.subplots()
    panel = PathPanel(axis, frame, [draw_path(Plane.spec, frame, episode, steps)])
    (lines,) = (each for each in axis.collections if isinstance(each, LineCollection))
    dot = axis.patches[-1]

    def ends() -> tuple[float, float]:
        """Returns the largest x of the lines, and that of the dot."""
        xs = np.concatenate([line[:, 0] for line in lines.get_segments()])
        return xs.max(), dot.center[0]  # type: ignore[attr-defined]

    stride = 1 if steps == 49 else 3
    for step in (0, 9, 12, 48, steps - 1):
        panel.show(step)
        reached = step if step == steps - 1 else step // stride * stride
        place = frame.place(np.array([reached, 0.0]))[0]
        assert ends() == (place, place)
    panel.show(10 * steps)  # after an episode's end its path stays
    assert ends()[1] == frame.place(np.array([steps - 1, 0.0]))[0]
    pyplot.close(figure)


def test_each_of_several_bodies_has_a_path_and_a_goal() -> None:
    env = make_env("point_u_maze", EnvOptions(bodies=2))
    states = np.array([[1, 1, 9, 9, 3, 3, 9, 9], [1, 2, 9, 9, 3, 2, 9, 9]], float)
    episode = Episode(states, np.tile([1.0, 3.0, 3.0, 1.0], (2, 1)), np.ones(2), np.zeros((2, 0)))
    frame = make_frame(env, [episode])
    pictures = draw_paths(env, frame, episode, num_steps=2)
    assert [(each.start, each.goal) for each in pictures] == [((50, 50), (150, 50)), ((150, 150), (50, 150))]
    assert [each.pieces[-1][1][-1].tolist() for each in pictures] == [[100, 50], [100, 150]]
    assert {each.radius for each in pictures} == {make_env("point_u_maze").spec.goal_radius * frame.scale}
    figure, axis = pyplot.subplots()
    PathPanel(axis, frame, pictures)
    assert [text.get_text() for text in axis.texts] == ["1", "1", "2", "2"]
    pyplot.close(figure)


def test_goals_of_one_coordinate_have_no_path() -> None:
    class Line:
        spec = EnvSpec(1, 1, 1, goal_indices=(0,), episode_length=LENGTH, goal_radius=RADIUS, num_cells=1)

    assert not can_draw(Line())  # type: ignore[arg-type]
    assert can_draw(Plane())  # type: ignore[arg-type]
