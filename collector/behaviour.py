"""Behaviour of a policy: measures of each episode of an evaluation, and their means.

Plain numpy: an evaluation's rollout is small, and a maze's shortest paths are found on the host.
"""

from typing import Any, NamedTuple

import numpy as np

from shared.envs.base import EnvSpec, GoalEnv
from shared.envs.geodesic import shortest_paths
from shared.envs.space import Maze
from shared.types import Array, Metrics

STUCK_STEPS = 20  # time in which a body that is not stuck gets away
STUCK_CELLS = 0.1  # and the least distance that it then moves
PREFIX = "behaviour/"  # of the columns that hold measures of behaviour, and of their means
BAND_RADII = 4  # goal radii: width of the nearest band of distances; each further band is twice as wide
_DIGITS = 4  # of a number in the table of episodes

Episodes = dict[str, np.ndarray]
"""Columns of E episodes by name, `[E]` or `[E, G]`, in the order of `measure_episodes`."""


class Trajectories(NamedTuple):
    """E episodes of at most T steps, from one rollout.

    `points` `[T + 1, E, G]`: points of goal space before each step and after the last one; they mean nothing after an
    episode's end. `goals` `[E, G]`: goals at the start. `distances` `[T, E]`: distance to the goal after each step.
    `within` `[T, E]` bool: the step belongs to the episode. `broken` `[T, E]` bool: the step broke. `measures`: the
    environment's own measures `[T, E]` after each step.
    """

    points: Array
    goals: Array
    distances: Array
    within: Array
    broken: Array
    measures: dict[str, Array]


def measure_episodes(env: GoalEnv, trajectories: Trajectories) -> Episodes:
    """Returns one row for each episode. Lengths are in the goal's units, in a maze those of x and y; NaN is unknown.

    Several bodies in a maze (`bodies` of the environment) are one point in the space of all their coordinates: lengths
    are Euclidean over the bodies.

    start, goal: points of goal space `[E, G]`. steps: length of the episode. time_at_goal: steps within the goal
    radius, also for the easy and the hard radius. final_distance: last finite distance. broken: the episode ended
    because a number was not finite. shortest_path: way from the start to the goal, around walls. Then measures of
    behaviour, whose names begin with `PREFIX`:

    first_reach: steps until the goal is reached. path_length: way made until then, or until the episode ends. detour:
    path_length over the shortest path to the point at which the goal was reached; below 1 for a way over walls. stuck:
    steps of contact with a wall, away from the goal, after less than `STUCK_CELLS` of way in `STUCK_STEPS`. And the
    environment's own measures: steps in which a bool is true, means of floats.

    `trajectories` are on the host.
    """
    points, goals, distances, within, broken = map(np.asarray, trajectories[:-1])
    measures = trajectories.measures
    spec, maze, bodies = env.spec, getattr(env, "maze", None), getattr(env, "bodies", 1)
    every, steps, valid = np.arange(len(goals)), within.sum(axis=0), within & ~broken
    at_goal = valid & (distances < spec.goal_radius)
    reached = at_goal.any(axis=0)
    ends = np.where(reached, at_goal.argmax(axis=0) + 1, steps)
    finite = within & np.isfinite(distances)
    last_finite = len(distances) - 1 - finite[::-1].argmax(axis=0)
    episodes: Episodes = {"start": points[0], "goal": goals, "steps": steps}
    for suffix, radius in _radii(spec).items():
        episodes[f"time_at_goal{suffix}"] = np.sum(valid & (distances < radius), axis=0)
    episodes |= {
        "final_distance": np.where(finite.any(axis=0), distances[last_finite, every], np.nan),
        "broken": (within & broken).any(axis=0),
        "shortest_path": _shortest(maze, bodies, points[0], goals),
    }
    places = _by_body(points, bodies)[..., :2].reshape(*points.shape[:-1], -1) if maze else points
    moved = np.linalg.norm(np.diff(places, axis=0), axis=-1)
    path_length = np.sum(moved, axis=0, where=np.arange(len(moved))[:, None] < ends)
    with np.errstate(divide="ignore", invalid="ignore"):
        detour = path_length / _shortest(maze, bodies, points[0], points[ends, every])
    behaviour = {
        "first_reach": np.where(reached, ends, np.nan),
        "path_length": path_length,
        "detour": np.where(reached & np.isfinite(detour), detour, np.nan),
    }
    if maze and "wall_contact" in measures:
        stuck = valid & ~at_goal & measures["wall_contact"] & _is_still(places, maze)
        behaviour["stuck"] = stuck.sum(axis=0)
    for name, values in measures.items():
        values = np.asarray(values)
        behaviour[name] = np.sum(values & valid, axis=0) if values.dtype == bool else _mean(values, valid)
    return episodes | {PREFIX + name: column for name, column in behaviour.items()}


def summarise(spec: EnvSpec, episodes: Episodes) -> Metrics:
    """Returns means over the rows of `measure_episodes`.

    success_rate: share of episodes that reach the goal, also for the easy and the hard radius. final_distance is NaN if
    no episode has one. `behaviour/...`: means over the episodes that have the measure, if any has. `reached/LOW-HIGH`:
    success rate of the goals whose shortest path is that long, for each band that any episode is in.
    """
    metrics: Metrics = {}
    for suffix in _radii(spec):
        times = episodes[f"time_at_goal{suffix}"]
        metrics |= {f"time_at_goal{suffix}": _mean(times), f"success_rate{suffix}": _mean(times > 0)}
    metrics |= {
        "final_distance": _mean(episodes["final_distance"]),
        "episode_length": _mean(episodes["steps"]),
        "broken_episodes": int(episodes["broken"].sum()),
    }
    behaviour = {name: column for name, column in episodes.items() if name.startswith(PREFIX)}
    metrics |= {name: _mean(column) for name, column in behaviour.items() if np.isfinite(column).any()}
    bands = band_of(spec, episodes["shortest_path"])
    for band in sorted(set(bands[np.isfinite(bands)].tolist())):
        metrics[f"reached/{band_name(spec, band)}"] = _mean(episodes["time_at_goal"][bands == band] > 0)
    return metrics


def band_of(spec: EnvSpec, lengths: np.ndarray) -> np.ndarray:
    """Returns the number `[...]` of the band of each of `lengths` `[...]`: 0 for the nearest; NaN for NaN."""
    with np.errstate(divide="ignore"):
        return np.maximum(np.floor(np.log2(lengths / (BAND_RADII * spec.goal_radius))) + 1, 0)


def band_name(spec: EnvSpec, band: float) -> str:
    """Returns the ends of a band in the goal's units, such as 2-4."""
    nearest = BAND_RADII * spec.goal_radius
    return f"{nearest * 2 ** (band - 1) if band else 0:.4g}-{nearest * 2**band:.4g}"


def as_lists(episodes: Episodes) -> dict[str, list[Any]]:
    """Returns the columns as lists of few digits, for a row of metrics. None stands for NaN."""
    return {name: _as_list(column) for name, column in episodes.items()}


def _as_list(column: np.ndarray) -> list[Any]:
    if not np.issubdtype(column.dtype, np.floating):
        return column.tolist()
    rounded = column.astype(np.float64).round(_DIGITS).astype(object)
    rounded[np.isnan(column)] = None
    return rounded.tolist()


def _radii(spec: EnvSpec) -> dict[str, float]:
    named = {"": spec.goal_radius, "_easy": spec.easy_radius, "_hard": spec.hard_radius}
    return {suffix: radius for suffix, radius in named.items() if radius is not None}


def _shortest(maze: Maze | None, bodies: int, starts: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """Returns the lengths `[E]` of the shortest paths from `starts` to `ends`, both `[E, G]`."""
    if maze is None:
        return np.linalg.norm(ends - starts, axis=-1)
    # Bodies that do not collide walk their own shortest paths, all at once and each at a constant speed.
    first, last = (_by_body(points, bodies) for points in (starts, ends))
    own = [shortest_paths(maze).lengths(first[:, body], last[:, body]) for body in range(bodies)]
    return np.linalg.norm(own, axis=0)


def _by_body(points: np.ndarray, bodies: int) -> np.ndarray:
    """Returns `points` `[..., G]` as `[..., bodies, G / bodies]`."""
    return points.reshape(*points.shape[:-1], bodies, -1)


def _is_still(places: np.ndarray, maze: Maze) -> np.ndarray:
    """Returns `[T, E]` bool: in `STUCK_STEPS` steps up to this one, no body got anywhere.

    `places`: `[T + 1, E, 2 * bodies]`.
    """
    still = np.zeros((len(places) - 1, places.shape[1]), bool)
    way = np.linalg.norm(places[STUCK_STEPS:] - places[:-STUCK_STEPS], axis=-1)
    still[STUCK_STEPS - 1 :] = way < STUCK_CELLS * maze.scale
    return still


def _mean(values: np.ndarray, valid: np.ndarray | bool = True) -> Any:
    """Returns the means `[...]` of the known and valid values along the first axis of `[T, ...]`; NaN without any."""
    known = np.isfinite(values) & valid
    with np.errstate(invalid="ignore"):
        return np.sum(values, axis=0, where=known, dtype=np.float64) / known.sum(axis=0)
