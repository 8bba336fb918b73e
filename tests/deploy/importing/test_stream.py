"""Trajectories laid out as unrolls, with counters as data, and the experiment that trains on them."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deploy.importing.stream import Trajectories, choose_layout, lay_out, make_experiment, make_unrolls
from shared.config import EnvOptions
from shared.config_file import parse_experiment
from shared.envs.base import EnvSpec
from shared.errors import ConfigError
from shared.plan import make_plan
from shared.types import CONTINUES, TRUNCATED
from tests.deploy.importing.cases import dataset


def trajectories(lengths: list[int]) -> Trajectories:
    arrays = dataset(lengths)
    steps = np.array(lengths)
    return Trajectories(arrays["observations"], arrays["actions"], np.cumsum(steps + 1) - steps - 1, steps)


def spec(episode_length: int) -> EnvSpec:
    sizes = {"state_size": 2, "goal_size": 1, "action_size": 2, "goal_indices": (1,)}
    return EnvSpec(**sizes, episode_length=episode_length, goal_radius=1.0, num_cells=1)


def test_equal_trajectories_are_dealt_out_in_turn() -> None:
    layout = lay_out(np.full(5, 4), environments=2, unroll_length=3)
    assert [members.tolist() for members in layout.members] == [[0, 2, 4], [1, 3]]
    assert (layout.unrolls, layout.num_steps) == (2, 2 * 2 * 3)  # 8 steps in the shorter one


def test_unequal_trajectories_go_to_the_environment_with_the_fewest_steps() -> None:
    layout = lay_out(np.array([5, 1, 2, 3, 4]), environments=2, unroll_length=2)
    assert [members.tolist() for members in layout.members] == [[0, 4], [1, 2, 3]]
    assert layout.unrolls == 3


def test_unrolls_hold_every_step_in_its_place() -> None:
    """Two environments; trajectories of 3, 4, 2 and 1 steps lie in rows 0 to 3, 4 to 8, 9 to 11 and 12 to 13."""
    data = trajectories([3, 4, 2, 1])
    layout = lay_out(data.steps, environments=2, unroll_length=2)
    assert [members.tolist() for members in layout.members] == [[0, 2], [1, 3]]
    first, second = make_unrolls(data, layout, goal_indices=(1,))  # step 4 of environment 0 begins a third
    rows = [[0, 1, 2, 9], [4, 5, 6, 7]]
    floats, ints = (np.concatenate(each, axis=1) for each in zip(first, second, strict=True))
    np.testing.assert_array_equal(floats[..., 0], rows)
    np.testing.assert_array_equal(floats[..., 1], np.array(rows) + 100)
    np.testing.assert_allclose(floats[..., 2], np.array(rows) / 1000)
    np.testing.assert_array_equal(floats[..., 4], [[0, 0, 103, 0], [0, 0, 0, 108]])  # of the states after row 2 and 7
    np.testing.assert_array_equal(ints[..., 0], [[0, 0, 0, 1], [0, 0, 0, 0]])
    np.testing.assert_array_equal(ints[..., 1], [[0, 1, 2, 3]] * 2)
    assert (ints[..., 2] == 0).all()
    ends = np.full((2, 4), CONTINUES)
    ends[0, 2] = ends[1, 3] = TRUNCATED
    np.testing.assert_array_equal(ints[..., 3], ends)
    assert (floats.dtype, ints.dtype) == (np.float32, np.int32)


@pytest.mark.parametrize(
    ("lengths", "episode_length", "environments", "dropped"),
    [
        ([1000] * 1000, 1000, 50, 0),  # pointmaze-medium-navigate-v0
        ([2000] * 500, 2000, 50, 0),  # pointmaze-giant-navigate-v0
        ([200] * 5000, 1000, 50, 0),  # pointmaze-medium-stitch-v0, with episodes for its evaluation
        ([1000] * 100, 1000, 10, 0),  # pointmaze-medium-navigate-v0-val
        ([1000] * 997, 1000, 62, 5000),
        ([20] * 30, 20, 3, 0),
        ([21] * 30, 20, 3, 30),  # each environment has 210 steps, ten of them behind its last unroll of 20
    ],
)
def test_the_layout_drops_few_steps(lengths: list[int], episode_length: int, environments: int, dropped: int) -> None:
    layout = choose_layout(np.array(lengths), episode_length)
    assert layout.unroll_length == min(50, episode_length)
    assert len(layout.members) == environments
    assert sum(lengths) - layout.num_steps == dropped


def test_too_few_steps_are_refused() -> None:
    with pytest.raises(ConfigError, match="--env: 60 steps in the shortest of 1 environments are too few, windows of"):
        choose_layout(np.full(3, 20), 20)
    with pytest.raises(ConfigError, match="--environments: 20 steps in the shortest of 30 environments are too few"):
        choose_layout(np.full(30, 20), 20, environments=30)


@given(
    lengths=st.lists(st.integers(1, 60), min_size=1, max_size=80),
    episode_length=st.integers(2, 60),
    environments=st.none() | st.integers(1, 9),
    unroll_length=st.none() | st.integers(1, 70),
)
@settings(max_examples=300, deadline=None)
def test_every_layout_can_be_trained_on(
    lengths: list[int], episode_length: int, environments: int | None, unroll_length: int | None
) -> None:
    try:
        layout = choose_layout(np.array(lengths), episode_length, environments, unroll_length)
    except ConfigError:
        return
    values = make_experiment("an_env", EnvOptions(), spec(episode_length), layout, Path("stream"))
    plan = make_plan(parse_experiment(values), spec(episode_length))
    assert plan.env_steps == layout.num_steps == values["budget"]["env_steps"] <= sum(lengths)
    assert plan.unrolls == plan.stored_unrolls == layout.unrolls
    assert plan.updates >= 1
