import subprocess
import sys

import jax
import pytest

from shared.envs.registry import describe, env_ids, make_env


@pytest.mark.parametrize("env_id", env_ids())
def test_sizes_are_what_the_spec_says(env_id: str) -> None:
    env = make_env(env_id)
    spec = env.spec
    before = env.reset(jax.random.key(0))
    after = env.step(before, jax.numpy.ones(spec.action_size))
    assert before.state.shape == after.state.shape == (spec.state_size,)
    assert before.goal.shape == (spec.goal_size,) == (len(spec.goal_indices),)
    assert before.terminated.shape == ()
    assert before.terminated.dtype == bool
    assert jax.tree.map(lambda x: (x.shape, x.dtype), before) == jax.tree.map(lambda x: (x.shape, x.dtype), after)
    assert (after.goal == before.goal).all()
    assert 0 <= env.cell(before.goal) < spec.num_cells
    assert min(spec.episode_length, spec.goal_radius) > 0
    assert len(describe(env_id).splitlines()) == 1


def test_episode_length_is_the_environments_own_unless_given() -> None:
    assert make_env("point_u_maze").spec.episode_length == 200
    assert make_env("point_u_maze", 50).spec.episode_length == 50
    with pytest.raises(ValueError, match="at least 1, not 0"):
        make_env("point_u_maze", 0)


@pytest.mark.parametrize("lookup", [make_env, describe])
def test_unknown_id_names_the_nearest(lookup: object) -> None:
    assert callable(lookup)
    with pytest.raises(ValueError) as error:  # noqa: PT011 (the whole text is compared)
        lookup("point_bigmaze")
    assert str(error.value) == (
        "unknown environment 'point_bigmaze'; did you mean 'point_big_maze'? `fathom envs` lists all of them"
    )


def test_no_family_is_imported_before_it_is_used() -> None:
    probe = (
        "import sys, shared.envs.registry as r; r.env_ids(); r.describe('point_u_maze')\n"
        "assert 'shared.envs.point_maze' not in sys.modules and 'brax' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", probe], check=True, timeout=60)
