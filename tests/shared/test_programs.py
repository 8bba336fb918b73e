"""Programs on disk, each found by a process that has never traced it; JAX's own caches are cleared in its place."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from learner.devices import make_layout
from learner.learner import Learner, _jitted_init, _jitted_update, _Kind
from learner.objectives.registry import make_objective
from shared import programs
from shared.config import Experiment
from shared.envs.registry import make_env
from shared.plan import make_plan
from shared.programs import identify, keep_program
from shared.replay.codec import Columns
from shared.types import Array

X = jnp.arange(3.0)
SMALL = Experiment.model_validate(
    {
        "env": "point_u_maze",
        "env_options": {"episode_length": 10},
        "collector": {"depth": 4, "width": 8, "environments": 4, "unroll_length": 5},
        "algorithm": {"batch_size": 4, "windows_per_update": 4, "minibatches_per_update": 2},
        "replay": {"steps_per_environment": 100, "prefill_steps": 10},
        "budget": {"env_steps": 2000},
    }
)


class Pair(NamedTuple):
    first: Array
    second: tuple[Array, ...]


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Callable[[], list[Path]]]:
    """Files of all programs kept in a cache of the test's own."""
    before = jax.config.values["jax_compilation_cache_dir"]
    jax.config.update("jax_compilation_cache_dir", str(tmp_path))
    yield lambda: sorted(tmp_path.glob("programs/*/*"))
    jax.config.update("jax_compilation_cache_dir", before)


@pytest.fixture
def traces() -> list[str]:
    return []


def make(traces: list[str], *parts: object, factor: float = 2.0) -> Callable[[Array], Pair]:
    """Returns what a new process would have: the jitted function, not traced yet."""

    def double(x: Array) -> Pair:
        traces.append("double")
        return Pair(factor * jnp.asarray(x), (jnp.sum(jnp.asarray(x)), jnp.asarray(x) > 1))

    return jax.jit(keep_program(double, *parts))


def test_a_function_is_traced_once(folder: Callable[[], list[Path]], traces: list[str]) -> None:
    for _ in range(3):
        result = make(traces, 2.0, "point")(X)
        assert isinstance(result, Pair)
        assert isinstance(result.second, tuple)
        assert [*np.asarray(result.first)] == [0, 2, 4]
        assert float(result.second[0]) == 3
    assert traces == ["double"]
    assert len(folder()) == 1


def test_other_parts_shapes_and_settings_are_other_programs(
    folder: Callable[[], list[Path]], traces: list[str]
) -> None:
    make(traces, 2.0)(X)
    assert float(make(traces, 3.0, factor=3.0)(X).first[1]) == 3
    make(traces, 2.0)(jnp.arange(4.0))
    make(traces, 2.0)(jnp.arange(3))
    with jax.default_matmul_precision("highest"):
        make(traces, 2.0)(X)
    assert len(traces) == len(folder()) == 5


def test_what_a_users_code_made_is_traced_in_every_process(folder: Callable[[], list[Path]], traces: list[str]) -> None:
    class Mine:
        pass

    mine = Mine()
    identify(mine, "its source may change")
    for part in (mine, len, [mine], {"x": mine}, (1, Mine)):
        make(traces, part)(X)
        make(traces, part)(X)
    assert len(traces) == 10
    assert not folder()


def test_a_damaged_program_is_made_again(folder: Callable[[], list[Path]], traces: list[str]) -> None:
    make(traces, 2.0)(X)
    (path,) = folder()
    whole = path.read_bytes()
    for content in (b"", whole[: len(whole) // 2], b"not a program"):
        path.write_bytes(content)
        assert float(make(traces, 2.0)(X).first[1]) == 2
    make(traces, 2.0)(X)
    assert len(traces) == 4
    assert folder() == [path]


def test_a_callback_to_python_stays_in_its_process(folder: Callable[[], list[Path]]) -> None:
    def ask(x: Array) -> Array:
        return jax.pure_callback(lambda x: np.asarray(x) + 1, jax.ShapeDtypeStruct((3,), jnp.float32), x)

    for _ in range(2):
        assert float(jax.jit(keep_program(ask, 1))(X)[0]) == 1
    assert not folder()


def test_nothing_is_kept_without_a_cache(folder: Callable[[], list[Path]], traces: list[str]) -> None:
    for place in (None, "/proc/none"):
        jax.config.update("jax_compilation_cache_dir", place)
        assert float(make(traces, 2.0)(X).first[1]) == 2
    assert len(traces) == 2
    assert not folder()


@pytest.mark.parametrize("option", ["jax_disable_jit", "jax_debug_nans"])
def test_debugging_sees_the_function_itself(folder: Callable[[], list[Path]], traces: list[str], option: str) -> None:
    jax.config.update(option, True)
    try:
        for _ in range(2):
            assert float(make(traces, 2.0)(X).first[1]) == 2
    finally:
        jax.config.update(option, False)
    assert len(traces) == 2
    assert not folder()


def test_folders_of_old_versions_are_deleted(
    folder: Callable[[], list[Path]], tmp_path: Path, traces: list[str]
) -> None:
    for number in range(20):
        (tmp_path / "programs" / str(number)).mkdir(parents=True)
    make(traces, 2.0)(X)
    assert len(folder()) == 1
    assert len([*(tmp_path / "programs").iterdir()]) == programs.KEPT_VERSIONS


def trace(experiment: Experiment) -> None:
    """Traces a learner's initialisation and update as a new process does."""
    _jitted_init.cache_clear()
    _jitted_update.cache_clear()
    spec = make_env(experiment.env, experiment.env_options).spec
    plan = make_plan(experiment, spec)
    kind = _Kind(make_objective(experiment, "active", spec), plan, make_layout())
    state = jax.eval_shape(lambda: Learner.initial_state(experiment, spec, "active"))
    windows = (plan.windows_per_update, plan.window_rows)
    floats = jax.ShapeDtypeStruct((*windows, spec.row_floats), jnp.float32)
    jax.eval_shape(_jitted_update(kind), state, Columns(floats, jax.ShapeDtypeStruct((*windows, 4), jnp.int32)))  # type: ignore[arg-type]


def test_learners_that_differ_by_their_seeds_share_programs(folder: Callable[[], list[Path]]) -> None:
    trace(SMALL)
    assert len(folder()) == 2
    trace(SMALL.model_copy(update={"seed": 1}))
    assert len(folder()) == 2


CHANGES: list[tuple[str, dict[str, object]]] = [
    ("collector", {"depth": 8}),
    ("collector", {"width": 16}),
    ("collector", {"activation": "relu"}),
    ("algorithm", {"discount": 0.9}),
    ("algorithm", {"energy": "cosine"}),
    ("algorithm", {"critic_learning_rate": 1e-3}),
    ("algorithm", {"objective": "cloning"}),
    ("algorithm", {"minibatches_per_update": 4}),
    ("env_options", {"episode_length": 12}),
]


def test_learners_that_compute_otherwise_have_programs_of_their_own(folder: Callable[[], list[Path]]) -> None:
    trace(SMALL)
    values = SMALL.model_dump()
    for section, change in CHANGES:
        before = folder()
        trace(Experiment.model_validate(values | {section: values[section] | change}))
        assert len(folder()) > len(before), change
