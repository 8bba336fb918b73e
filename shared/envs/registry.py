"""Every environment by its id."""

import difflib
import importlib

from shared.envs.base import GoalEnv

# A module holds a family: `build(env_id, episode_length)` makes each of its ids. It is imported on first use,
# so that nobody waits for, or must install, the physics of a family that they do not run.
_FAMILIES: dict[str, dict[str, str]] = {
    "shared.envs.point_maze": {
        "point_u_maze": "a point with velocity in a U-shaped corridor of 7 cells; starts and goals anywhere",
        "point_big_maze": "a point with velocity in a maze of 26 cells with loops; starts and goals anywhere",
        "point_spiral_maze": "a point with velocity in a spiral of 31 cells; goals are 21 to 30 cells away",
    },
}
_MODULES = {env_id: module for module, family in _FAMILIES.items() for env_id in family}


def env_ids() -> tuple[str, ...]:
    """Every environment id, in the order in which `fathom envs` lists them."""
    return tuple(_MODULES)


def describe(env_id: str) -> str:
    """One line on what the environment is. Raises ValueError for an unknown id."""
    return _FAMILIES[_module(env_id)][env_id]


def make_env(env_id: str, episode_length: int | None = None) -> GoalEnv:
    """The environment, with its own `episode_length` (environment steps) unless one is given.

    Raises ValueError for an unknown id and for an episode length below 1.
    """
    module = _module(env_id)
    if episode_length is not None and episode_length < 1:
        raise ValueError(f"episode_length must be at least 1, not {episode_length}")
    return importlib.import_module(module).build(env_id, episode_length)


def _module(env_id: str) -> str:
    if env_id not in _MODULES:
        nearest = difflib.get_close_matches(env_id, _MODULES, n=1, cutoff=0.0)[0]
        raise ValueError(f"unknown environment {env_id!r}; did you mean {nearest!r}? `fathom envs` lists all of them")
    return _MODULES[env_id]
