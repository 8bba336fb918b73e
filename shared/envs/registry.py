"""Registry of all environments by id, including users' own.

A user's environment has as id a Python entry point of the group `fathom.envs`, or the dotted path
`package.module:Class`. Either names a callable that takes `EnvOptions` and returns a `GoalEnv`.
"""

import difflib
import importlib
import inspect
from collections.abc import Callable, Mapping
from functools import partial
from importlib.metadata import EntryPoint, entry_points
from typing import Any, NamedTuple

from pydantic import ValidationError

from shared.config import EnvOptions, Experiment
from shared.envs.base import GoalEnv
from shared.envs.labyrinth import LABYRINTH
from shared.envs.space import HOPS
from shared.errors import ConfigError
from shared.mistakes import describe
from shared.own_code import DOTTED, explain, load_object
from shared.programs import identify

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
"""Ten tasks of the paper (arXiv 2503.14858)."""

_ANT_MAZES = {
    "ant_u_maze": "a U of 7 cells, 4 m each; goals in all cells but the start's",
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
    "ant_big_maze": "a maze of 26 cells with loops",
    "ant_big_maze_eval": "the big maze; 9 goals away from the start",
    "ant_hardest_maze": "a maze of 46 cells with loops and dead ends",
}
_SHORT_HOPS = {
    f"ant_{maze}_maze_gen_{hops}": f"short hops in ant_{maze}_maze: goals {words} from the start, which may be any cell"
    for maze in ("u", "u2", "u3", "u4", "u5")
    for hops, words in (("1f", "1 cell"), ("1f2f", "1 or 2 cells"), ("1f2f3f", "1 to 3 cells"))
}
# A module holds a family: its `build(env_id, options)` makes each of the ids. The first use of a family imports its
# module, so that no command waits for physics that it does not run.
_FAMILIES: dict[str, dict[str, str]] = {
    "shared.envs.point_maze": {
        "point_u_maze": "a point with velocity in a U-shaped corridor of 7 cells; starts and goals anywhere",
        "point_u_maze_eval": "the U; starts at one end, goals at its far side only",
        "point_big_maze": "a point with velocity in a maze of 26 cells with loops; starts and goals anywhere",
        "point_big_maze_eval": "the big maze; starts in one corner, 9 goals away from it",
        "point_spiral_maze": "a point with velocity in a spiral of 31 cells; goals are 21 to 30 cells away",
        "point_u4_maze": "ant_u4_maze's layout for a point: a C of 11 cells; starts at one end",
        "point_u4_maze_eval": "the C of 11 cells; goals at its far side only",
        "point_u5_maze": "ant_u5_maze's layout for a point: a C of 17 cells; starts at one end",
        "point_u5_maze_eval": "the C of 17 cells; goals at its far side only",
        "point_hardest_maze": (
            "ant_hardest_maze's layout for a point: 46 cells with loops and dead ends; starts in one corner"
        ),
        "point_labyrinth_13_s0": "a generated maze of 13 x 13 cells without loops; starts in one corner",
        "point_labyrinth_13_s0_any_start": "the same maze; starts and goals anywhere",
    },
    "shared.envs.classic": {
        "reacher": "a planar arm of two links moves its tip to a point",
        "pusher_easy": "a planar arm of 7 joints pushes a puck; goals near the puck's start",
        "pusher_hard": "a planar arm of 7 joints pushes a puck; goals all over the table",
        "cheetah": "brax's half-cheetah; the goal is 5 m ahead",
    },
    "shared.envs.ant": {
        "ant": "brax's ant on a plane; goals 10 m away in any direction",
        "ant_ball": "the ant moves a ball; goals 5 m away",
        "ant_push": "the ant pushes a block aside to get to the goal behind the block",
        **_ANT_MAZES,
        **_SHORT_HOPS,
    },
    "shared.envs.humanoid": {
        "humanoid": "brax's humanoid on a plane; goals 1 to 5 m away",
        "humanoid_u_maze": "a U of 7 cells, 2 m each",
        "humanoid_u_maze_eval": "the U; goals at its far side only",
        "humanoid_big_maze": "a maze of 26 cells with loops",
        "humanoid_big_maze_eval": "the big maze; 10 goals away from the start",
        "humanoid_hardest_maze": "a maze of 46 cells with loops and dead ends",
    },
    "shared.envs.arm": {
        "arm_reach": "a Franka Panda moves its end effector to a point",
        "arm_grasp": "the arm closes its fingers around a cube",
        "arm_push_easy": "the arm moves a cube on the table from a square of 20 cm into the square beside it",
        "arm_push_hard": "the arm moves a cube on the table from a square of 50 cm into the square beside it",
        "arm_binpick_easy": "the arm moves a cube from a bin of 27 cm into another, centres 34 cm apart",
        "arm_binpick_hard": "the arm moves a cube from a bin of 37 cm into another, centres 60 cm apart",
    },
}
_MODULES = {env_id: module for module, family in _FAMILIES.items() for env_id in family}


class EnvEntry(NamedTuple):
    """Facts about an environment that is not made yet. `module` makes it; `paper` marks the paper's tasks."""

    env_id: str
    module: str
    description: str
    paper: bool


def env_entries() -> tuple[EnvEntry, ...]:
    """Returns all environments in the order of `fathom envs`; entry points come last."""
    ours = [
        EnvEntry(env_id, module, description, env_id in PAPER_TASKS)
        for module, family in _FAMILIES.items()
        for env_id, description in family.items()
    ]
    foreign = [EnvEntry(point.name, point.module, f"from {point.value}", False) for point in _installed().values()]
    return (*ours, *foreign)


def find_module(env_id: str) -> str | None:
    """Returns the name of the module that makes a built-in environment; none for all others."""
    if LABYRINTH.fullmatch(env_id):
        return "shared.envs.point_maze"
    return _MODULES.get(env_id) or ("shared.envs.ant" if HOPS.fullmatch(env_id) else None)


def make_env(env_id: str, options: EnvOptions = EnvOptions()) -> GoalEnv:  # noqa: B008 - frozen
    """Returns the environment named `env_id`, changed by `options`.

    Raises:
        ValueError: The id is unknown, the environment does not have one of the options, or a user's own environment
            does not do what `GoalEnv` asks for.
    """
    module = find_module(env_id)
    if module:
        env: GoalEnv = importlib.import_module(module).build(env_id, options)
        identify(env, f"{env_id} {options!r}")
        return env
    if DOTTED.fullmatch(env_id):
        return _make_own(env_id, partial(load_object, env_id), options)
    installed = _installed()
    if env_id in installed:
        return _make_own(env_id, installed[env_id].load, options)
    nearest = difflib.get_close_matches(env_id, [*_MODULES, *installed], n=1, cutoff=0.0)[0]
    raise ValueError(f"unknown environment {env_id!r}; did you mean {nearest!r}? `fathom envs` lists all of them")


class Envs(NamedTuple):
    """Environments of a run; those of the evaluation by name, the first one that of results without a name."""

    training: GoalEnv
    evaluations: Mapping[str, GoalEnv]

    @property
    def evaluation(self) -> GoalEnv:
        return next(iter(self.evaluations.values()))


def make_envs(experiment: Experiment) -> Envs:
    """Returns an experiment's environments. Raises ConfigError that names the key."""
    training = _make(experiment.env, experiment.env_options, "env")
    evaluations = {
        name: training if name == experiment.env else _make(name, experiment.env_options, "evaluation.envs")
        for name in experiment.evaluation.envs or (experiment.env,)
    }
    for env, evaluation in evaluations.items():
        for name in ("state_size", "goal_size", "action_size", "goal_indices"):
            ours, theirs = getattr(training.spec, name), getattr(evaluation.spec, name)
            if ours != theirs:
                raise ConfigError(
                    f"evaluation.envs: {env} has {name} {theirs}, {experiment.env} has {ours}; "
                    "policies fit only one of the two, choose environments with equal sizes"
                )
    return Envs(training, evaluations)


def _make(env_id: str, options: EnvOptions, field: str) -> GoalEnv:
    try:
        return make_env(env_id, options)
    except ValueError as error:
        text = " ".join(str(error).split())
        raise ConfigError(text if text.startswith("env_options.") else f"{field}: {text}") from error


def _installed() -> dict[str, EntryPoint]:
    return {point.name: point for point in entry_points(group=ENTRY_POINTS) if point.name not in _MODULES}


def _make_own(env_id: str, load: Callable[[], Callable[[EnvOptions], Any]], options: EnvOptions) -> GoalEnv:
    from shared.envs.check import check_env

    make = None
    try:
        make = load()
        try:
            inspect.signature(make).bind(options)
        except TypeError as error:
            raise ValueError(f"{env_id}: it must take one argument, EnvOptions ({error})") from error
        env = make(options)
        check_env(env_id, env)
    except ValidationError as error:  # of an EnvSpec
        field, message = describe(error.errors()[0])
        raise ValueError(f"{env_id}.spec.{field}: {message}") from error
    except ValueError:
        raise
    except (Exception, SystemExit) as error:
        raise ValueError(f"{env_id}: {explain(error, make)}") from error
    return env
