import os
import re
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import pytest

import shared
from shared.config import EnvOptions, Experiment
from shared.envs.base import EnvState
from shared.envs.brax_env import BraxEnv, compile_model
from shared.envs.check import check_env
from shared.envs.registry import PAPER_TASKS, env_entries, make_env, make_envs
from shared.envs.space import Maze
from shared.errors import ConfigError

IDS = tuple(entry.env_id for entry in env_entries())
SIZES = {  # state, goal and action size by pattern; the first pattern that fits counts
    "point_": (4, 2, 2),
    "reacher": (10, 3, 2),
    "pusher_": (20, 3, 7),
    "cheetah": (18, 1, 6),
    "ant_(ball|push)": (31, 2, 8),
    "ant": (29, 2, 8),
    "humanoid": (246, 3, 17),  # the reference's 268 include the body of its target
    "arm_reach": (13, 3, 4),
    "arm_grasp": (23, 7, 5),
    "arm_": (17, 3, 5),
}
EPISODES = {"point_hardest_maze": 400, "point_labyrinth_13_s0": 500, "point_labyrinth_13_s0_any_start": 550}
ONE_PER_FAMILY = ("point_u_maze", "point_labyrinth_13_s0", "ant_ball", "humanoid_u_maze", "reacher", "arm_grasp")
USER_MODULE = '''
import jax.numpy as jnp
from shared.config import EnvOptions
from shared.envs.base import EnvSpec, EnvState, GoalEnv

class Line(GoalEnv):
    """A point on a line."""
    def __init__(self, options: EnvOptions) -> None:
        self.spec = EnvSpec(1, 1, 1, (0,), options.episode_length or 30, 0.1, 10)

    def reset(self, key):
        return EnvState((), jnp.zeros(1), jnp.ones(1), jnp.zeros((), bool))

    def step(self, env_state, action):
        return env_state._replace(state=env_state.state + 0.1 * action)

    def cell(self, goal):
        return jnp.clip(jnp.floor(5 * goal[..., 0]), 0, 9).astype(jnp.int32)

class Wide(Line):
    def reset(self, key):
        return super().reset(key)._replace(state=jnp.zeros(2))

class Half(Line):
    def step(self, env_state, action):
        return env_state._replace(state=env_state.state.astype(jnp.float16))

class Growing(Line):
    def step(self, env_state, action):
        return env_state._replace(physics=(env_state.state,))

class Alone(Line):
    """Its distance is right for one state, but sums over a batch."""
    def distance(self, state, goal):
        return jnp.linalg.norm(state - goal)

class Measured(Line):
    def measures(self, env_state):
        return {"position": env_state.state}

class Unnamed(Line):
    def measures(self, env_state):
        return env_state.state[0]

class FirstCell(Line):
    """Its cell is right for one goal, but takes the first goal of a batch."""
    def cell(self, goal):
        return jnp.clip(jnp.floor(5 * goal[0]), 0, 9).astype(jnp.int32)

class NoCells(Line):
    def __init__(self, options):
        self.spec = EnvSpec(1, 1, 1, (0,), 30, 0.1, num_cells=0)

class Unreachable(Line):
    def __init__(self, options):
        self.spec = EnvSpec(1, 1, 1, (0,), 30, goal_radius=float("nan"), num_cells=1)

class Lazy:
    def __init__(self, options):
        pass

class Alien(Line):
    def __init__(self):
        pass

class Faulty(Line):
    def __init__(self, options):
        raise TypeError("sizes are whole numbers")
'''


SLOW = re.compile("arm_|ant_push")  # seconds each to trace


def shapes(tree: Any) -> list[tuple[int, ...]]:
    return [leaf.shape for leaf in jax.tree.leaves(tree)]


@cache
def first_maze(kind: type, backend: str) -> tuple[list[tuple[int, ...]], EnvState]:
    """Returns the start's shapes and the reset's state in the first maze of this kind."""
    env = next(
        env
        for env in map(make_env, IDS)
        if type(env) is kind and isinstance(env.space, Maze) and env.backend == backend
    )
    key = jax.random.key(0)
    model = compile_model(env.model_spec())
    started = shapes(jax.eval_shape(env.start, key))
    assert started[:2] == [(model.nq,), (model.nv,)]
    return started, jax.eval_shape(env.reset, key)


@pytest.mark.parametrize(
    "env_id", [pytest.param(env_id, marks=[pytest.mark.slow] * bool(SLOW.match(env_id))) for env_id in IDS]
)
def test_sizes_equal_the_published_sizes(env_id: str) -> None:
    env = make_env(env_id)
    spec = env.spec
    expected = next(sizes for pattern, sizes in SIZES.items() if re.match(pattern, env_id))
    assert (spec.state_size, spec.goal_size, spec.action_size) == expected
    if "maze" in env_id and isinstance(env, BraxEnv):  # walls add nothing to a state, so one reset serves all mazes
        started, fresh = first_maze(type(env), env.backend)
        model = compile_model(env.model_spec())
        assert shapes(jax.eval_shape(env.start, jax.random.key(0))) == started
        assert [(model.nq,), (model.nv,)] == started[:2]
    else:
        fresh = jax.eval_shape(env.reset, jax.random.key(0))
    assert (fresh.state.shape, fresh.goal.shape) == ((spec.state_size,), (spec.goal_size,))
    assert spec.episode_length == EPISODES.get(env_id, 200 if env_id.startswith("point") else 1000)
    radii = [radius for radius in (spec.hard_radius, spec.goal_radius, spec.easy_radius) if radius is not None]
    assert radii == sorted(radii)
    assert min(radii) > 0


@pytest.mark.parametrize(
    "env_id", [pytest.param(env_id, marks=[pytest.mark.slow] * bool(SLOW.match(env_id))) for env_id in ONE_PER_FAMILY]
)
def test_each_family_implements_the_interface(env_id: str) -> None:
    check_env(env_id, make_env(env_id))


def test_registry_marks_the_ten_tasks_of_the_paper() -> None:
    assert len(IDS) == len(set(IDS)) >= 40
    assert {entry.env_id for entry in env_entries() if entry.paper} == PAPER_TASKS
    assert len(PAPER_TASKS) == 10
    assert all(len(entry.description.splitlines()) == 1 for entry in env_entries())


def test_short_hops_of_any_length_are_made() -> None:
    assert make_env("ant_u5_maze_gen_4f12f").spec.state_size == 29
    with pytest.raises(ValueError, match="corridor is 7 cells long, too short for 9 hops"):
        make_env("ant_u_maze_gen_9f")


def test_labyrinths_of_any_size_and_seed_are_made() -> None:
    assert make_env("point_labyrinth_7_s12").spec.state_size == 4
    with pytest.raises(ValueError, match="cannot be of size 12; choose an odd size from 5 to 31"):
        make_env("point_labyrinth_12_s0")
    with pytest.raises(ValueError, match="did you mean 'point_labyrinth_13_s0'"):
        make_env("point_labyrinth_13")


@pytest.mark.parametrize("env_id", ["ant", "humanoid_u_maze", "reacher", "arm_reach"])
def test_only_points_have_several_bodies(env_id: str) -> None:
    with pytest.raises(ConfigError, match=r"^env_options.bodies: this environment has no such option; leave it out$"):
        make_envs(experiment(env_id, bodies=2))


@pytest.mark.parametrize("bodies", [2, 3])
def test_several_bodies_implement_the_interface(bodies: int) -> None:
    env = make_env("point_hardest_maze", EnvOptions(bodies=bodies))
    check_env("point_hardest_maze", env)
    sizes = 4 * bodies, 2 * bodies, 2 * bodies, 46**2
    assert (env.spec.state_size, env.spec.goal_size, env.spec.action_size, env.spec.num_cells) == sizes


def test_unknown_id_suggests_the_nearest_id() -> None:
    with pytest.raises(ValueError) as error:  # noqa: PT011 (the whole text is compared)
        make_env("point_bigmaze")
    assert str(error.value) == (
        "unknown environment 'point_bigmaze'; did you mean 'point_big_maze'? `fathom envs` lists all of them"
    )


def test_options_of_other_environments_are_refused() -> None:
    assert make_env("point_u_maze", EnvOptions(episode_length=50)).spec.episode_length == 50
    for option in ({"backend": "mjx"}, {"physics_dt": 0.1}, {"reference_state": True}, {"separate_walls": True}):
        with pytest.raises(ValueError, match=f"env_options.{next(iter(option))}: this environment has no such option"):
            make_env("point_u_maze", EnvOptions(**option))


def experiment(env: str, evaluation: str | list[str] | None = None, **options: object) -> Experiment:
    return Experiment.model_validate({"env": env, "env_options": options, "evaluation": {"envs": evaluation}})


def test_evaluation_may_use_another_environment() -> None:
    envs = make_envs(experiment("ant_u4_maze", "ant_u4_maze_eval", episode_length=300))
    assert [env.spec.episode_length for env in (envs.training, envs.evaluation)] == [300, 300]
    assert len(envs.training.space.goals) == 10  # type: ignore[attr-defined]
    assert len(envs.evaluation.space.goals) == 4  # type: ignore[attr-defined]
    alone = make_envs(experiment("point_u_maze"))
    assert alone.training is alone.evaluation
    several = make_envs(experiment("point_u_maze", ["point_u_maze_eval", "point_u_maze"]))
    assert [*several.evaluations] == ["point_u_maze_eval", "point_u_maze"]
    assert several.training is several.evaluations["point_u_maze"] is not several.evaluation


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (
            experiment("ant_u4_maze", "ant_ball"),
            "evaluation.envs: ant_ball has state_size 31, ant_u4_maze has 29; policies",
        ),
        (
            experiment("point_labyrinth_4_s0"),
            "env: point_labyrinth_4_s0: a labyrinth cannot be of size 4; choose an odd",
        ),
        (experiment("ant", "antt"), "evaluation.envs: unknown environment 'antt'; did you mean 'ant'"),
        (experiment("ant_pull"), "env: unknown environment 'ant_pull'; did you mean 'ant_push'"),
        (experiment("ant_push", backend="spring"), "env_options.backend: this environment has no 'spring'; it has mjx"),
        (experiment("no.such:Env"), "env: no.such:Env: cannot be imported"),
    ],
)
def test_errors_name_their_key(wrong: Experiment, message: str) -> None:
    with pytest.raises(ConfigError) as error:
        make_envs(wrong)
    assert str(error.value).startswith(message)
    assert len(str(error.value).splitlines()) == 1


@pytest.mark.processes
def test_no_family_is_imported_before_it_is_used() -> None:
    probe = (
        "import sys, shared.envs.registry as r; r.env_entries(); r.make_env('point_u_maze')\n"
        "assert not {'brax', 'mujoco'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", probe], check=True, timeout=60)


@pytest.mark.processes
def test_a_compiled_start_holds_nothing_that_differs_between_processes() -> None:
    """Or the compilation cache would never hit. Freed memory is filled, with another byte in each process."""
    probe = (
        "import jax; from shared.envs.registry import make_env\n"
        f"for env in map(make_env, {('ant', 'humanoid', 'reacher', 'pusher_easy')}):\n"
        "    print(jax.jit(env.reset).lower(jax.random.key(0)).as_text())"
    )
    programs = [
        subprocess.run(
            [sys.executable, "-c", probe],
            env=os.environ | {"MALLOC_PERTURB_": fill},
            capture_output=True,
            check=True,
            timeout=120,
        ).stdout
        for fill in ("165", "90")
    ]
    assert programs[0] == programs[1]


@pytest.fixture
def user_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Returns the name of a module with a user's environments that lies in the working directory only."""
    name = f"line_{tmp_path.name.replace('-', '_')}"
    (tmp_path / f"{name}.py").write_text(USER_MODULE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    return name


def test_dotted_path_names_an_environment(user_module: str) -> None:
    env = make_env(f"{user_module}:Line", EnvOptions(episode_length=7))
    assert env.spec.episode_length == 7
    assert float(env.distance(jnp.zeros((1,)), jnp.ones((1,)))) == 1
    for name, message in (
        ("Wide", f"{user_module}:Wide.reset: state is float32[2], spec says float32[1]"),
        ("Half", f"{user_module}:Half.step: state is float16[1], spec says float32[1]"),
        ("Growing", f"{user_module}:Growing.step: its EnvState differs in structure, shapes or types from that of res"),
        ("Alone", f"{user_module}:Alone.distance: must return float32[2, 3] for a batch of goals [2, 3, 1], not floa"),
        ("FirstCell", f"{user_module}:FirstCell.cell: must return int32[2, 3] for a batch of goals [2, 3, 1], not int"),
        ("Measured", f"{user_module}:Measured.measures: position must be a bool[] or float32[], not float32[1]"),
        ("Unnamed", f"{user_module}:Unnamed.measures: must return a dict of measures by name, not "),
        ("NoCells", f"{user_module}:NoCells.spec.num_cells: input should be greater than or equal to 1, got 0"),
        ("Unreachable", f"{user_module}:Unreachable.spec.goal_radius: input should be a finite number, got nan"),
        ("Lazy", f"{user_module}:Lazy: not a GoalEnv, it has no spec, reset, step, cell, distance"),
        ("Nothing", "cannot be imported"),
        ("Alien", f"{user_module}:Alien: it must take one argument, EnvOptions (too many positional arguments)"),
        ("Faulty", f"{user_module}:Faulty: TypeError: sizes are whole numbers ("),
    ):
        with pytest.raises(ValueError, match=re.escape(message)):
            make_env(f"{user_module}:{name}")


def test_a_package_of_the_working_directory_that_another_hides_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "shared").mkdir()
    (tmp_path / "shared" / "line.py").write_text(USER_MODULE)
    (tmp_path / "line_of_shared.py").write_text("from shared.line import Line")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    for path in ("shared.line:Line", "line_of_shared:Line"):
        with pytest.raises(ValueError, match="cannot be imported") as error:
            make_env(path)
        hidden = f"{tmp_path}/shared is hidden by another package named shared, {Path(shared.__file__).parent}"
        assert str(error.value).endswith(f"; {hidden}: rename yours")


def test_documented_environment_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = Path(__file__).parents[3] / "docs" / "own_environment.md"
    code = re.search(r"```python\n(.*?)```", page.read_text(), flags=re.S)
    assert code
    (tmp_path / "documented_slope.py").write_text(code[1])
    monkeypatch.syspath_prepend(str(tmp_path))
    env = make_env("documented_slope:Slope", EnvOptions(episode_length=20))
    after = jax.jit(lambda key: env.step(env.reset(key), jnp.ones(1)))(jax.random.key(0))
    assert bool(jnp.isfinite(after.state).all())
    with pytest.raises(ValueError, match=r"env_options\.backend"):
        make_env("documented_slope:Slope", EnvOptions(backend="mjx"))


def test_entry_point_names_an_environment(user_module: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "lines-1.0.dist-info"
    package.mkdir()
    (package / "METADATA").write_text("Metadata-Version: 2.1\nName: lines\nVersion: 1.0\n")
    (package / "entry_points.txt").write_text(f"[fathom.envs]\nline = {user_module}:Line\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert make_env("line").spec.num_cells == 10
    assert env_entries()[-1].env_id == "line"
    with pytest.raises(ValueError, match="did you mean 'line'"):
        make_env("lime")
