from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from collector.behaviour import STUCK_STEPS, Trajectories, as_lists, band_name, band_of, measure_episodes, summarise
from collector.evaluator import make_evaluate
from shared.config import EnvOptions
from shared.envs.point_maze import PointMaze
from shared.envs.registry import make_env
from shared.envs.space import Maze

U_MAZE = PointMaze(Maze("#####/#XXX#/###X#/#XXX#/#####"), episode_length=60)
GOAL = (3.0, 1.0)  # behind the wall of a start at (1, 1)


def line(*corners: tuple[float, float], pieces: int) -> np.ndarray:
    """Returns points `[k, 2]` along straight lines between `corners`, each line in `pieces` equal steps."""
    ends = np.array(corners)
    lines = [np.linspace(a, b, pieces, endpoint=False) for a, b in pairwise(ends)]
    return np.concatenate([*lines, ends[-1:]])


def episodes(env: PointMaze, *paths: np.ndarray, goal: tuple[float, ...] = GOAL, **changes: np.ndarray) -> dict:
    """Returns the measures of episodes along `paths`, each of points `[steps + 1, 2]`, which may differ in length."""
    longest = max(map(len, paths))
    points = np.stack(
        [np.pad(path, ((0, longest - len(path)), (0, 0)), constant_values=99.0) for path in paths], axis=1
    )
    within = np.arange(longest - 1)[:, None] < np.array([len(path) - 1 for path in paths])
    distances = np.linalg.norm(points[1:] - goal, axis=-1)
    goals = np.tile(goal, (len(paths), 1))
    held = Trajectories(points, goals, distances, within, np.zeros_like(within), {})
    return measure_episodes(env, held._replace(**changes))


AROUND = line((1, 1), (1, 3), (3, 3), GOAL, pieces=4)  # corridors' middle lines, in steps of half a cell


def test_several_bodies_are_one_point_in_the_space_of_their_coordinates() -> None:
    env = PointMaze(U_MAZE.maze, episode_length=60, bodies=2)
    still = np.full_like(AROUND, 1.0)
    alone, first = (episodes(U_MAZE, AROUND), episodes(env, np.hstack([AROUND, still]), goal=(*GOAL, 1.0, 1.0)))
    second = episodes(env, np.hstack([still, AROUND]), goal=(1.0, 1.0, *GOAL))
    both = episodes(env, np.hstack([AROUND, AROUND]), goal=(*GOAL, *GOAL))
    for name in ("shortest_path", "behaviour/path_length"):
        np.testing.assert_allclose(first[name], alone[name])
        np.testing.assert_allclose(second[name], alone[name])
        np.testing.assert_allclose(both[name], np.sqrt(2) * alone[name])
    np.testing.assert_allclose(both["behaviour/detour"], alone["behaviour/detour"])


def test_measures_of_a_way_around_the_wall() -> None:
    short = line((1, 1), (1, 2), pieces=2)
    measured = episodes(U_MAZE, AROUND, short)
    np.testing.assert_array_equal(measured["steps"], [12, 2])
    np.testing.assert_array_equal(measured["time_at_goal"], [1, 0])
    np.testing.assert_array_equal(measured["behaviour/first_reach"], [12, np.nan])
    np.testing.assert_allclose(measured["behaviour/path_length"], [6, 1])
    shortest = 2 * np.hypot(0.5, 1.5) + 1
    np.testing.assert_allclose(measured["shortest_path"], shortest, rtol=1e-6)
    np.testing.assert_allclose(measured["behaviour/detour"], [6 / shortest, np.nan], rtol=1e-6)
    np.testing.assert_allclose(measured["final_distance"], [0, np.hypot(2, 1)])
    metrics = summarise(U_MAZE.spec, measured)
    assert {name: metrics[name] for name in ("time_at_goal", "success_rate", "episode_length")} == {
        "time_at_goal": 0.5, "success_rate": 0.5, "episode_length": 7,
    }  # fmt: skip
    assert metrics["behaviour/first_reach"] == 12
    assert metrics["behaviour/path_length"] == 3.5
    assert metrics["reached/4-8"] == 0.5


def test_the_way_after_the_goal_is_not_measured() -> None:
    onwards = np.concatenate([AROUND, AROUND[-2::-1]])
    measured = episodes(U_MAZE, onwards)
    assert measured["steps"] == 24
    assert measured["behaviour/path_length"] == 6
    assert measured["behaviour/first_reach"] == 12


def test_a_way_over_a_wall_is_shorter_than_the_shortest_path() -> None:
    measured = episodes(U_MAZE, line((1, 1), GOAL, pieces=20))
    assert measured["behaviour/path_length"] == pytest.approx(1.8)  # 0.2 before the goal, within its radius of 0.25
    assert measured["behaviour/detour"] == pytest.approx(1.8 / (np.hypot(0.5, 1.5) + 1 + np.hypot(0.3, 1.5)))
    assert summarise(U_MAZE.spec, episodes(U_MAZE, AROUND[:3])).keys().isdisjoint({"behaviour/detour"})


def test_a_body_is_stuck_at_a_wall_after_a_while_without_way_and_away_from_the_goal() -> None:
    rest = np.tile((1.0, 1.0), (STUCK_STEPS + 6, 1))
    contact = np.ones((STUCK_STEPS + 5, 1), bool)
    stuck = {"goal": (3.0, 3.0), "measures": {"wall_contact": contact}}
    assert episodes(U_MAZE, rest, **stuck)["behaviour/stuck"] == 6  # steps 20 to 25
    assert episodes(U_MAZE, rest, **stuck | {"goal": (1.0, 1.1)})["behaviour/stuck"] == 0
    assert episodes(U_MAZE, rest, **stuck | {"measures": {"wall_contact": ~contact}})["behaviour/stuck"] == 0
    slow = rest + np.linspace(0, 0.12, len(rest))[:, None] * (0, 1)  # 0.096 cells in 20 steps
    assert episodes(U_MAZE, slow, **stuck)["behaviour/stuck"] == 6
    assert episodes(U_MAZE, rest + 2 * (slow - rest), **stuck)["behaviour/stuck"] == 0
    assert "behaviour/stuck" not in episodes(U_MAZE, rest)  # contacts are not known


def test_own_measures_are_counted_or_averaged_within_the_episode() -> None:
    steps = np.arange(12.0)[:, None].repeat(2, axis=1)
    own = {"height": steps, "upright": steps % 2 == 0}
    measured = episodes(U_MAZE, AROUND, AROUND[:3], measures=own)
    np.testing.assert_array_equal(measured["behaviour/height"], [5.5, 0.5])
    np.testing.assert_array_equal(measured["behaviour/upright"], [6, 1])


def test_a_broken_step_does_not_count() -> None:
    broken = np.zeros((12, 1), bool)
    broken[-1] = True
    measured = episodes(U_MAZE, AROUND, broken=broken, measures={"height": np.where(broken, np.nan, 2.0)})
    assert measured["broken"]
    assert measured["time_at_goal"] == 0
    assert measured["behaviour/height"] == 2
    assert as_lists(measured)["behaviour/first_reach"] == [None]


def test_bands_double_in_width() -> None:
    lengths = np.array([0.0, 0.99, 1.0, 1.99, 2.0, 7.9, 8.1, np.nan])
    bands = band_of(U_MAZE.spec, lengths)  # radius 0.25
    np.testing.assert_array_equal(bands, [0, 0, 1, 1, 2, 3, 4, np.nan])
    assert [band_name(U_MAZE.spec, band) for band in (0, 1, 4)] == ["0-1", "1-2", "8-16"]
    two = make_env("point_u_maze", EnvOptions(bodies=2)).spec
    assert [band_name(two, band) for band in (0, 1)] == ["0-1.414", "1.414-2.828"]


def sideways(params: None, state: jax.Array, goal: jax.Array, key: jax.Array) -> jax.Array:
    return jnp.tile(jnp.array([0.0, 1.0]), (len(state), 1))


def test_the_last_point_is_that_after_the_last_step() -> None:
    short = PointMaze(U_MAZE.maze, episode_length=3)
    trajectories, _ = jax.device_get(jax.jit(make_evaluate(short, sideways, 7))(None, jax.random.key(0)))
    expected = np.linalg.norm(trajectories.points[1:] - trajectories.goals, axis=-1)
    np.testing.assert_allclose(trajectories.distances, expected, atol=1e-5)


def test_an_evaluation_returns_the_points_of_its_episodes() -> None:
    """Every episode goes straight along y, from rest, and is truncated after 60 steps."""
    trajectories, _ = jax.device_get(jax.jit(make_evaluate(U_MAZE, sideways, 7))(None, jax.random.key(0)))
    points = trajectories.points
    assert points.shape == (61, 7, 2)
    assert trajectories.within.all()
    np.testing.assert_allclose(points[1] - points[0], np.tile([0.0, 0.05], (7, 1)), atol=1e-6)
    np.testing.assert_allclose(
        trajectories.distances, np.linalg.norm(points[1:] - trajectories.goals, axis=-1), atol=1e-5
    )
    rest = trajectories.measures["wall_contact"][-1]
    clear = np.isclose(points[-1, :, 1], 3.35, atol=1e-4)  # against the wall at the corridors' ends
    assert clear.any()
    assert rest[clear].all()
    measured = measure_episodes(U_MAZE, trajectories)
    assert (measured["behaviour/stuck"] > 20)[clear & (measured["time_at_goal"] == 0)].all()
    np.testing.assert_array_equal(measured["behaviour/wall_contact"], trajectories.measures["wall_contact"].sum(axis=0))


@pytest.mark.slow
def test_measures_of_a_body() -> None:
    env = make_env("ant_u_maze", EnvOptions())
    measure = jax.jit(jax.vmap(env.measures))
    fresh = jax.jit(env.reset)(jax.random.key(0))
    q, qd = fresh.physics.q, fresh.physics.qd

    def moved(place: tuple[float, float, float], up: float = 1.0) -> jax.Array:
        turned = jnp.array([up, (1 - up**2) ** 0.5, 0, 0])  # about the ant's own axis x
        return q.at[:7].set(jnp.concatenate([jnp.array(place), turned]))

    free, over, at_wall, upside_down = (4.0, 4.0, 0.3), (8.0, 4.0, 0.6), (5.7, 4.0, 0.6), (4.0, 4.0, 3.0)
    states = jnp.stack([moved(free), moved(over), moved(at_wall), moved(upside_down, up=0.0)])
    physics = jax.jit(jax.vmap(env.physics.init))(states, jnp.tile(qd.at[:2].set(jnp.array([3.0, 4.0])), (4, 1)))
    batch = fresh._replace(
        physics=physics,
        **{
            name: jnp.tile(getattr(fresh, name), (4, *[1] * jnp.ndim(getattr(fresh, name))))
            for name in ("state", "goal", "terminated")
        },
    )
    measured = {name: np.asarray(values).tolist() for name, values in measure(batch).items()}
    assert measured["over_walls"] == [False, True, False, False]
    assert measured["wall_contact"] == [False, True, True, False]
    assert measured["upright"] == [True, True, True, False]
    assert measured["height"] == pytest.approx([0.3, 0.6, 0.6, 3.0])
    assert measured["speed"] == pytest.approx([5.0] * 4)
    assert measured["contacts"][3] == 0
    assert min(measured["contacts"][:2]) > 0  # of the first with the floor alone
