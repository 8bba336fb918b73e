from collections import deque
from collections.abc import Callable
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from shared.config import EnvOptions
from shared.envs.base import EnvState, goal_distance
from shared.envs.geodesic import shortest_paths
from shared.envs.point_maze import RADIUS, SECONDS_PER_STEP, START_RANGE, TOP_SPEED, PointMaze
from shared.envs.point_maze import build as build_env
from shared.envs.registry import env_entries
from shared.types import Array

Controller = Callable[[EnvState], Array]
IDS = tuple(entry.env_id for entry in env_entries() if entry.env_id.startswith("point_"))


@cache
def build(env_id: str, bodies: int = 1) -> PointMaze:
    return build_env(env_id, EnvOptions(bodies=bodies))


mazes = pytest.mark.parametrize("maze", [build(env_id) for env_id in IDS], ids=list(IDS))


MANY = 20_000


@cache
def _drawn(maze: PointMaze) -> EnvState:
    return jax.device_get(jax.jit(jax.vmap(maze.reset))(jax.random.split(jax.random.key(0), MANY)))


def reset_many(maze: PointMaze, n: int) -> EnvState:
    """Returns the first `n` of many starts, which are drawn once for each maze."""
    return jax.tree.map(lambda x: x[:n], _drawn(maze))


def moved(before: Any, action: Any) -> EnvState:
    """Steps points at `before` `[N, 4]` in the U-maze once, with `action` `[N, 2]`."""
    state = np.asarray(before, np.float32)
    start = EnvState((), state, np.ones((len(state), 2), np.float32), np.zeros(len(state), bool))
    return jax.jit(jax.vmap(build("point_u_maze").step))(start, np.asarray(action, np.float32))


@cache
def solved(maze: PointMaze) -> tuple[np.ndarray, np.ndarray]:
    """Returns episodes of the controller that follows the shortest path."""
    return episodes(maze, reset_many(maze, 512), shortest_path(maze))


def episodes(maze: PointMaze, start: EnvState, controller: Controller) -> tuple[np.ndarray, np.ndarray]:
    """Returns positions `[T, N, 2]` and distances to the goal `[T, N]` over one episode of each of N starts."""

    def step(env_state: EnvState, _: None) -> tuple[EnvState, tuple[Array, Array]]:
        env_state = jax.vmap(lambda state: maze.step(state, controller(state)))(env_state)
        return env_state, (env_state.state[:, :2], goal_distance(maze.spec, env_state.state, env_state.goal))

    _, (positions, distances) = jax.jit(lambda s: jax.lax.scan(step, s, None, maze.spec.episode_length))(start)
    return np.asarray(positions), np.asarray(distances)


def go_to(env_state: EnvState, target: Array) -> Array:
    return 6.0 * (target - env_state.state[:2]) - 1.5 * env_state.state[2:]


def steps_from(maze: PointMaze, cell: tuple[int, int]) -> np.ndarray:
    """Returns `[rows, columns]`: steps from each cell to `cell` on the shortest path, inf without a path."""
    distance = np.full(maze.maze.walls.shape, np.inf)
    distance[cell] = 0
    queue = deque([cell])
    while queue:
        i, j = queue.popleft()
        for neighbour in ((i + 1, j), (i - 1, j), (i, j + 1), (i, j - 1)):
            if not maze.maze.walls[neighbour] and np.isinf(distance[neighbour]):
                distance[neighbour] = distance[i, j] + 1
                queue.append(neighbour)
    return distance


def shortest_path(maze: PointMaze) -> Controller:
    """Returns a controller that steers to the centre of the next cell, and in the goal's cell to the goal."""
    rows, columns = maze.maze.walls.shape
    following = np.zeros((rows, columns, rows, columns, 2), np.float32)  # [from, to] -> the next cell
    for cell in map(tuple, np.argwhere(~maze.maze.walls)):
        distance = steps_from(maze, cell)
        for i, j in np.argwhere(~maze.maze.walls & (distance > 0)):
            neighbours = [(i + 1, j), (i - 1, j), (i, j + 1), (i, j - 1)]
            following[i, j, *cell] = min(neighbours, key=lambda n: distance[n])

    def controller(env_state: EnvState) -> Array:
        here = jnp.round(env_state.state[:2]).astype(int)
        there = jnp.round(env_state.goal).astype(int)
        waypoint = jnp.asarray(following)[here[0], here[1], there[0], there[1]]
        return go_to(env_state, jnp.where((here == there).all(), env_state.goal, waypoint))

    return controller


def overlaps_wall(maze: PointMaze, positions: np.ndarray) -> np.ndarray:
    """Returns `[...]` bool: a corner of the body at `positions` `[..., 2]` is more than 2e-4 inside a wall."""
    corners = [positions + (RADIUS - 2e-4) * np.array([sx, sy]) for sx in (-1, 1) for sy in (-1, 1)]
    cells = np.round(np.stack(corners)).astype(int)
    return maze.maze.walls[cells[..., 0], cells[..., 1]].any(axis=0)


@mazes
def test_resets_draw_starts_and_goals_uniformly(maze: PointMaze) -> None:
    n = MANY
    drawn = reset_many(maze, n)
    for positions, cells in ((drawn.state[:, :2], maze.maze.starts), (drawn.goal, maze.maze.goals)):
        positions = np.asarray(positions)
        assert len(np.unique(positions, axis=0)) > 0.999 * n
        chosen = np.round(positions)
        counts = (chosen[:, None] == cells).all(-1).sum(axis=0)
        expected = n / len(cells)
        assert counts.sum() == n
        assert abs(counts - expected).max() < 5 * np.sqrt(expected)
        offset = positions - chosen
        assert abs(offset).max() <= START_RANGE + 1e-5
        np.testing.assert_allclose(offset.std(axis=0), START_RANGE / np.sqrt(3), rtol=0.03)
    assert abs(np.corrcoef(drawn.state[:, 0], drawn.goal[:, 0])[0, 1]) < 0.03
    assert (drawn.state[:, 2:] == 0).all()
    assert not drawn.terminated.any()


def test_motion_by_hand() -> None:
    # v' = v + 0.1 s (5 a - 2 v), x' = x + 0.1 s v'; the action is clipped to [-1, 1].
    after = moved([(1.0, 1.0, 0.5, 0.0), (1.0, 1.0, 0.0, 2.5)], [(0.5, 3.0), (0.0, 1.0)])
    np.testing.assert_allclose(after.state[0], [1.065, 1.05, 0.65, 0.5], rtol=1e-6)
    np.testing.assert_allclose(after.state[1], [1.0, 1.25, 0.0, 2.5], rtol=1e-6)  # the top speed
    np.testing.assert_array_equal(after.goal, np.ones((2, 2)))


WALLS = [  # before and after a step
    ((0.7, 1.0, -2.0, 1.0), (0.65, 1.08, 0.0, 0.8)),  # the wall below x = 0.5 stops x, y slides on
    ((1.3, 1.0, 2.0, 1.0), (1.35, 1.08, 0.0, 0.8)),  # the same from the other side
    ((1.0, 0.7, 1.0, -2.0), (1.08, 0.65, 0.8, 0.0)),  # the wall below y = 0.5 stops y, x slides on
    ((0.65, 0.65, -2.0, -2.0), (0.65, 0.65, 0.0, 0.0)),  # both walls stop the point in a corner
    ((1.34, 2.3, 0.5, 2.0), (1.35, 2.46, 0.0, 1.6)),  # slides along the inner wall towards its end ...
    ((1.35, 2.75, 0.5, 0.0), (1.39, 2.75, 0.4, 0.0)),  # ... and past its end turns around the corner
]


def test_points_stop_at_walls_and_slide_along_them() -> None:
    after = moved([before for before, _ in WALLS], np.zeros((len(WALLS), 2)))
    for state, (before, expected) in zip(np.asarray(after.state), WALLS, strict=True):
        np.testing.assert_allclose(state, expected, rtol=1e-6, atol=1e-6, err_msg=str(before))


@mazes
def test_points_stay_out_of_walls(maze: PointMaze) -> None:
    rng = np.random.default_rng(0)
    edge = 0.5 - RADIUS
    offsets = np.array([(a, b) for a in (-edge, 0, edge) for b in (-edge, 0, edge)])
    heading = np.array([(a, b) for a in (-1, 0, 1) for b in (-1, 0, 1)])
    free = np.argwhere(~maze.maze.walls)
    position = (free[:, None, None] + offsets[:, None] + 0 * heading).reshape(-1, 2)
    velocity = (0 * free[:, None, None] + 0 * offsets[:, None] + TOP_SPEED * heading).reshape(-1, 2)
    n, steps = len(position), 60
    # Half of the actions last 10 steps, so that points reach top speed and keep pushing into corners.
    lasting = rng.uniform(-3, 3, (steps // 10, n, 2)).repeat(10, axis=0)
    actions = np.where(rng.random((steps, n, 1)) < 0.5, rng.uniform(-1, 1, (steps, n, 2)), lasting)
    state = np.concatenate([position, velocity], axis=1).astype(np.float32)
    start = EnvState((), state, np.zeros((n, 2), np.float32), np.zeros(n, bool))

    def step(env_state: EnvState, action: Array) -> tuple[EnvState, Array]:
        env_state = jax.vmap(maze.step)(env_state, action)
        return env_state, env_state.state

    states = np.asarray(jax.jit(lambda s, a: jax.lax.scan(step, s, a))(start, actions.astype(np.float32))[1])
    path = np.concatenate([position[None], states[..., :2]])
    assert not overlaps_wall(maze, path).any()
    assert abs(np.diff(path, axis=0)).max() <= TOP_SPEED * SECONDS_PER_STEP + 1e-5
    between = np.stack([path[1:, :, 0], path[:-1, :, 1]], axis=-1)  # after the move along x, before that along y
    assert not overlaps_wall(maze, between).any()
    assert np.isfinite(states).all()
    assert abs(states[..., 2:]).max() <= TOP_SPEED + 1e-5


@mazes
def test_shortest_path_controller_solves_the_maze_and_stays_at_the_goal(maze: PointMaze) -> None:
    positions, distances = solved(maze)
    at_goal = distances < maze.spec.goal_radius
    assert at_goal.any(axis=0).all()
    assert at_goal[-20:].all()
    assert not overlaps_wall(maze, positions).any()


def test_u_maze_is_crossed_in_60_steps() -> None:
    maze = build("point_u_maze")
    _, distances = solved(maze)
    assert (distances < maze.spec.goal_radius).argmax(axis=0).max() < 60


def test_random_actions_spend_little_time_at_the_goal() -> None:
    maze = build("point_u_maze")
    actions = np.random.default_rng(0).uniform(-1, 1, (200, 2048, 2)).astype(np.float32)

    def step(env_state: EnvState, action: Array) -> tuple[EnvState, Array]:
        env_state = jax.vmap(maze.step)(env_state, action)
        return env_state, goal_distance(maze.spec, env_state.state, env_state.goal) < maze.spec.goal_radius

    at_goal = jax.jit(lambda s, a: jax.lax.scan(step, s, a)[1])(reset_many(maze, 2048), actions)
    assert np.asarray(at_goal).mean() < 0.05


def test_a_straight_line_never_solves_the_spiral() -> None:
    maze = build("point_spiral_maze")
    corners = np.array([(a, b) for a in (-0.5, 0, 0.5) for b in (-0.5, 0, 0.5)]) * 0.999
    starts = (maze.maze.starts[:, None] + corners).reshape(-1, 1, 1, 2)
    goals = (maze.maze.goals[:, None] + corners).reshape(-1, 1, 2)
    along = np.linspace(0, 1, 400)[:, None]
    cells = np.round(starts + along * (goals - starts)).astype(int)
    assert maze.maze.walls[cells[..., 0], cells[..., 1]].any(axis=-1).all()

    _, distances = episodes(maze, reset_many(maze, 1024), lambda s: go_to(s, s.goal))
    assert distances.min() > maze.spec.goal_radius


@mazes
def test_cells_cover_the_free_space(maze: PointMaze) -> None:
    assert np.isfinite(steps_from(maze, tuple(maze.maze.starts[0].astype(int)))[~maze.maze.walls]).all()
    axes = [np.linspace(-0.5, size - 0.5, 8 * size, endpoint=False) + 1 / 16 for size in maze.maze.walls.shape]
    points = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1)
    outside = np.array([[-9.0, 99.0], [99.0, -9.0]])
    cells, far = map(np.asarray, jax.jit(lambda: (maze.cell(points), maze.cell(outside)))())
    where = np.round(points).astype(int)
    free = ~maze.maze.walls[where[..., 0], where[..., 1]]
    numbers, counts = np.unique(cells[free], return_counts=True)
    np.testing.assert_array_equal(numbers, np.arange(maze.spec.num_cells))
    assert maze.spec.num_cells == 4 * (~maze.maze.walls).sum()
    assert (counts == 16).all()
    assert cells.dtype == np.int32
    assert ((far >= 0) & (far < maze.spec.num_cells)).all()
    assert ((cells >= 0) & (cells < maze.spec.num_cells)).all()


BODIES = 3


@cache
def _three_bodies() -> tuple[PointMaze, EnvState]:
    """Returns the hardest maze with three points, and 256 starts."""
    maze = build("point_hardest_maze", BODIES)
    return maze, jax.device_get(jax.jit(jax.vmap(maze.reset))(jax.random.split(jax.random.key(1), 256)))


def test_each_of_several_bodies_moves_as_one_alone() -> None:
    (maze, start), alone = _three_bodies(), build("point_hardest_maze")
    actions = np.random.default_rng(0).uniform(-2, 2, (300, 256, 2 * BODIES)).astype(np.float32)

    def path(maze: PointMaze, start: EnvState, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        def step(env_state: EnvState, action: Array) -> tuple[EnvState, tuple[Array, Array]]:
            env_state = jax.vmap(maze.step)(env_state, action)
            return env_state, (env_state.state, jax.vmap(maze.measures)(env_state)["wall_contact"])

        states, touches = jax.jit(lambda s, a: jax.lax.scan(step, s, a)[1])(start, actions)
        return np.asarray(states), np.asarray(touches)

    states, touches = path(maze, start, actions)
    by_body = []
    for body in range(BODIES):
        own = start._replace(state=start.state[:, 4 * body :][:, :4], goal=start.goal[:, 2 * body :][:, :2])
        expected, touching = path(alone, own, actions[..., 2 * body :][..., :2])
        np.testing.assert_array_equal(states[..., 4 * body :][..., :4], expected)
        by_body.append(touching)
    np.testing.assert_array_equal(touches, np.any(by_body, axis=0))
    assert 0.1 < touches.mean() < 0.9


def test_several_bodies_start_at_rest_and_have_goals_of_their_own() -> None:
    maze, start = _three_bodies()
    states, goals = start.state.reshape(-1, BODIES, 4), start.goal.reshape(-1, BODIES, 2)
    assert (np.round(states[..., :2]) == maze.maze.starts[0]).all()
    assert (states[..., 2:] == 0).all()
    for points in (states[..., :2], goals):
        assert len(np.unique(points.reshape(-1, 2), axis=0)) == points.size // 2
    correlations = np.corrcoef(goals[..., 0].T)
    assert abs(correlations - np.eye(BODIES)).max() < 0.2


def test_the_goal_of_several_bodies_is_joint() -> None:
    maze, start = _three_bodies()
    there = np.zeros((256, BODIES, 4), np.float32)
    there[..., :2] = start.goal.reshape(-1, BODIES, 2)

    def distances(*offsets: float) -> np.ndarray:
        moved = there.copy()
        moved[..., 1] += np.array(offsets, np.float32)
        return np.asarray(maze.distance(moved.reshape(256, -1), start.goal))

    np.testing.assert_allclose(distances(0.1, -0.2, 0.2), 0.3, rtol=1e-4)
    alone = build("point_hardest_maze").spec.goal_radius
    for share, reached in ((0.99, True), (1.01, False)):  # as far for each point as for one alone
        assert ((distances(*[share * alone] * BODIES) < maze.spec.goal_radius) == reached).all()
    assert (distances(0, 0, 0.5) > maze.spec.goal_radius).all()  # two points at their goals are not enough


def test_cells_of_several_bodies_are_those_of_the_first_two_together() -> None:
    maze, alone = build("point_u_maze", BODIES), build("point_u_maze", 2)
    free = np.argwhere(~maze.maze.walls).astype(np.float32)
    pairs = np.concatenate([free.repeat(len(free), axis=0), np.tile(free, (len(free), 1))], axis=1)
    cells = np.asarray(alone.cell(pairs))
    np.testing.assert_array_equal(cells, np.arange(49))
    np.testing.assert_array_equal(maze.cell(np.concatenate([pairs, pairs[::-1, :2]], axis=1)), cells)
    assert maze.cell(jnp.ones((2, 3, 6))).shape == (2, 3)
    assert maze.cell(jnp.ones(6)).dtype == np.int32


ADVERSARIES: dict[str, Controller] = {  # actions that press a point into walls and corners at full force
    "to the goal": lambda s: 100 * (s.goal - s.state[:2]),
    "away from the goal": lambda s: 100 * (s.state[:2] - s.goal),
    "to the nearest wall": lambda s: 100 * (s.state[:2] - jnp.round(s.state[:2])),
    "to and fro": lambda s: 1e9 * jnp.sign(jnp.round(s.state[:2]) - s.state[:2] + 0.01 * s.state[2:]),
    "diagonal": lambda s: jnp.where(s.state[2] + s.state[3] >= 0, 1e9, -1e9) * jnp.ones(2),
}


@pytest.mark.parametrize("name", ADVERSARIES)
@pytest.mark.parametrize("env_id", ["point_hardest_maze", "point_labyrinth_13_s1", "point_labyrinth_13_s2_any_start"])
def test_no_controller_enters_a_wall(env_id: str, name: str) -> None:
    maze = build(env_id)
    positions, distances = episodes(maze, reset_many(maze, 128), ADVERSARIES[name])
    assert np.isfinite(distances).all()
    assert not overlaps_wall(maze, positions).any()


@mazes
def test_every_goal_is_free_and_can_be_reached(maze: PointMaze) -> None:
    goals, starts = maze.maze.goals, maze.maze.starts
    assert not maze.maze.walls[tuple(goals.astype(int).T)].any()
    for start in starts[:: max(len(starts) // 4, 1)]:
        lengths = shortest_paths(maze.maze).lengths(np.broadcast_to(start, goals.shape), goals)
        assert np.isfinite(lengths).all()
        assert (lengths <= maze.spec.episode_length * SECONDS_PER_STEP * TOP_SPEED).all()


@pytest.mark.parametrize(
    ("env_id", "steps"),
    [
        ("point_u4_maze", 200),  # 10 cells to the farthest goal
        ("point_u5_maze", 200),  # 16
        ("point_hardest_maze", 400),  # 15, of which random actions see the first few
        ("point_labyrinth_5_s0", 200),  # 6
        ("point_labyrinth_13_s0", 500),  # 46
        ("point_labyrinth_13_s0_any_start", 550),  # 54
    ],
)
def test_episodes_are_long_enough_for_the_farthest_goal(env_id: str, steps: int) -> None:
    assert build(env_id).spec.episode_length == steps
    assert build_env(env_id, EnvOptions(episode_length=70)).spec.episode_length == 70
