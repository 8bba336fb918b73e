"""Every environment by its id, and how to bring one's own.

An id of one's own is a Python entry point of the group `fathom.envs`, or the dotted path
`package.module:Class`; either names something that takes `EnvOptions` and gives a `GoalEnv`.
"""

import difflib
import importlib
import os
import re
import sys
import traceback
from collections.abc import Callable
from importlib.metadata import EntryPoint, entry_points
from typing import Any, NamedTuple

from shared.config import EnvOptions, Experiment
from shared.envs.base import GoalEnv
from shared.errors import ConfigError

ENTRY_POINTS = "fathom.envs"

PAPER_TASKS = frozenset(
    {
        "ant_big_maze",
        "ant_hardest_maze",
        "ant_u4_maze",
        "ant_u5_maze",
        "arm_binpick_hard",
        "arm_push_easy",
        "arm_push_hard",
        "humanoid",
        "humanoid_big_maze",
        "humanoid_u_maze",
    }
)
"""The ten tasks of the paper (arXiv 2503.14858)."""

_ANT_MAZES = {
    "ant_u_maze": "a U of 7 cells, 4 m each; goals in all of them but the start",
    "ant_u_maze_eval": "the U; goals at its far side only",
    "ant_u_maze_single_eval": "the U; its end is the only goal",
    "ant_u_maze_eval_1f2f3f4f5f": "the U; goals 1 to 5 cells away",
    "ant_u_maze_eval_1f2f3f4f": "the U; goals 1 to 4 cells away",
    "ant_u_maze_eval_1f2f3f": "the U; goals 1 to 3 cells away",
    "ant_u_maze_eval_5f6f": "the U; goals 5 and 6 cells away",
    "ant_u2_maze": "a U of 9 cells",
    "ant_u2_maze_eval": "the U of 9 cells; goals at its far side only",
    "ant_u3_maze": "a U of 11 cells",
    "ant_u3_maze_eval": "the U of 11 cells; goals at its far side only",
    "ant_u3_maze_single_eval": "the U of 11 cells; its end is the only goal",
    "ant_u4_maze": "a C of 11 cells",
    "ant_u4_maze_eval": "the C of 11 cells; goals at its far side only",
    "ant_u5_maze": "a C of 17 cells",
    "ant_u5_maze_eval": "the C of 17 cells; goals at its far side only",
    "ant_u5_maze_single_eval": "the C of 17 cells; one goal near its end",
    "ant_u6_maze": "a C of 15 cells",
    "ant_u6_maze_eval": "the C of 15 cells; goals at its far side only",
    "ant_u7_maze": "a C of 13 cells",
    "ant_u7_maze_eval": "the C of 13 cells; goals at its far side only",
    "ant_big_maze": "26 cells with loops",
    "ant_big_maze_eval": "the big maze; 9 goals away from the start",
    "ant_hardest_maze": "46 cells with loops and dead ends",
}
_SHORT_HOPS = {
    f"ant_{maze}_maze_gen_{hops}": f"short hops in ant_{maze}_maze: goals {words} from the start, which may be any cell"
    for maze in ("u", "u2", "u3", "u4", "u5")
    for hops, words in (("1f", "1 cell"), ("1f2f", "1 or 2 cells"), ("1f2f3f", "1 to 3 cells"))
}
# A module holds a family: `build(env_id, options)` makes each of its ids. It is imported on first use, so that
# nobody waits for the physics of a family that they do not run.
_FAMILIES: dict[str, dict[str, str]] = {
    "shared.envs.point_maze": {
        "point_u_maze": "a point with velocity in a U-shaped corridor of 7 cells; starts and goals anywhere",
        "point_big_maze": "a point with velocity in a maze of 26 cells with loops; starts and goals anywhere",
        "point_spiral_maze": "a point with velocity in a spiral of 31 cells; goals are 21 to 30 cells away",
    },
    "shared.envs.classic": {
        "reacher": "a planar arm of two links; its tip at a point",
        "pusher_easy": "a planar arm of 7 joints pushes a puck; goals near where it starts",
        "pusher_hard": "the same; goals all over the table",
        "cheetah": "brax's half-cheetah; 5 m ahead",
    },
    "shared.envs.ant": {
        "ant": "brax's ant on a plane; goals 10 m away in any direction",
        "ant_ball": "the ant moves a ball; goals 5 m away",
        "ant_push": "the ant moves a block out of its way to get to the goal behind it",
        **_ANT_MAZES,
        **_SHORT_HOPS,
    },
    "shared.envs.humanoid": {
        "humanoid": "brax's humanoid on a plane; goals 1 to 5 m away",
        "humanoid_u_maze": "a U of 7 cells, 2 m each",
        "humanoid_u_maze_eval": "the U; goals at its far side only",
        "humanoid_big_maze": "26 cells with loops",
        "humanoid_big_maze_eval": "the big maze; 10 goals away from the start",
        "humanoid_hardest_maze": "46 cells with loops and dead ends",
    },
    "shared.envs.arm": {
        "arm_reach": "a Franka Panda; its end effector at a point",
        "arm_grasp": "the arm closes its fingers around a cube",
        "arm_push_easy": "the arm moves a cube to where it can push it",
        "arm_push_hard": "the same, from farther away and to farther away",
        "arm_binpick_easy": "the arm moves a cube from one bin to the next",
        "arm_binpick_hard": "the same with larger bins, farther apart",
    },
}
_MODULES = {env_id: module for module, family in _FAMILIES.items() for env_id in family}
_HOPS = re.compile(r"ant_(u|u2|u3|u4|u5)_maze_gen_(?:[1-9][0-9]?f)+")
_DOTTED = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")


class EnvEntry(NamedTuple):
    """What `fathom envs` knows of an environment before it is made. `module`: which file makes it."""

    env_id: str
    module: str
    description: str
    paper: bool


def env_entries() -> tuple[EnvEntry, ...]:
    """Every environment, in the order in which `fathom envs` lists them; entry points come last."""
    ours = [
        EnvEntry(env_id, module, description, env_id in PAPER_TASKS)
        for module, family in _FAMILIES.items()
        for env_id, description in family.items()
    ]
    foreign = [EnvEntry(point.name, point.module, f"from {point.value}", False) for point in _installed().values()]
    return (*ours, *foreign)


def make_env(env_id: str, options: EnvOptions = EnvOptions()) -> GoalEnv:  # noqa: B008 - frozen
    """The environment named `env_id`, changed by `options`.

    Raises ValueError for an unknown id, for options that this environment does not have, and for an
    environment of one's own that does not do what `GoalEnv` asks for.
    """
    module = _MODULES.get(env_id) or ("shared.envs.ant" if _HOPS.fullmatch(env_id) else None)
    if module:
        return importlib.import_module(module).build(env_id, options)
    if _DOTTED.fullmatch(env_id):
        return _own(env_id, lambda: _import(env_id), options)
    installed = _installed()
    if env_id in installed:
        return _own(env_id, installed[env_id].load, options)
    nearest = difflib.get_close_matches(env_id, [*_MODULES, *installed], n=1, cutoff=0.0)[0]
    raise ValueError(f"unknown environment {env_id!r}; did you mean {nearest!r}? `fathom envs` lists all of them")


class Envs(NamedTuple):
    """The environments of a run; both are the same unless the experiment says otherwise."""

    training: GoalEnv
    evaluation: GoalEnv


def make_envs(experiment: Experiment) -> Envs:
    """An experiment's environments. Raises ConfigError that names the key."""
    training = _make(experiment.env, experiment.env_options, "env")
    if experiment.evaluation.env is None:
        return Envs(training, training)
    evaluation = _make(experiment.evaluation.env, experiment.env_options, "evaluation.env")
    for name in ("state_size", "goal_size", "action_size", "goal_indices"):
        ours, theirs = getattr(training.spec, name), getattr(evaluation.spec, name)
        if ours != theirs:
            raise ConfigError(
                f"evaluation.env: {experiment.evaluation.env} has {name} {theirs}, {experiment.env} has {ours}; "
                "policies fit only one of the two, choose environments with equal sizes"
            )
    return Envs(training, evaluation)


def _make(env_id: str, options: EnvOptions, field: str) -> GoalEnv:
    try:
        return make_env(env_id, options)
    except ValueError as error:
        text = " ".join(str(error).split())
        raise ConfigError(text if text.startswith("env_options.") else f"{field}: {text}") from error


def _installed() -> dict[str, EntryPoint]:
    return {point.name: point for point in entry_points(group=ENTRY_POINTS) if point.name not in _MODULES}


def _import(path: str) -> Callable[[EnvOptions], Any]:
    module, name = path.split(":")
    if os.getcwd() not in sys.path:  # a command's own folder is in there, the user's is not
        sys.path.append(os.getcwd())
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"{path}: cannot be imported ({error}); name it as package.module:Class") from error


def _own(env_id: str, load: Callable[[], Callable[[EnvOptions], Any]], options: EnvOptions) -> GoalEnv:
    from shared.envs.check import check_env

    try:
        make = load()
        env = _made(env_id, make, options)
        check_env(env_id, env)
    except ValueError:
        raise
    except (Exception, SystemExit) as error:
        raise ValueError(
            f"{env_id}: {type(error).__name__}: {' '.join(str(error).split())} ({_where(error)})"
        ) from error
    return env


def _made(env_id: str, make: Callable[[EnvOptions], Any], options: EnvOptions) -> Any:
    try:
        return make(options)
    except TypeError as error:
        raise ValueError(f"{env_id}: it must take one argument, EnvOptions ({error})") from error


def _where(error: BaseException) -> str:
    """The innermost line that raised it."""
    place = traceback.extract_tb(error.__traceback__)[-1]
    return f"{place.filename}, line {place.lineno}"
