"""Files of OGBench's format as trajectories; `tests/deploy/cli/test_import.py` has the files that are refused."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from deploy.importing.ogbench import read
from shared.envs.base import EnvSpec
from shared.errors import ConfigError
from tests.deploy.importing.cases import dataset, save

SPEC = EnvSpec(
    state_size=2, goal_size=1, action_size=2, goal_indices=(0,), episode_length=4, goal_radius=1.0, num_cells=1
)


def load(folder: Path, **arrays: Any) -> Any:
    return read(save(folder / "data.npz", **arrays), "an_env", SPEC)


@pytest.mark.parametrize("terminals", [bool, np.float32, np.uint8])
@pytest.mark.parametrize("numbers", [np.float32, np.float64])
def test_the_documented_file_is_read(terminals: type, numbers: type, tmp_path: Path) -> None:
    """Two trajectories of four steps, as in the comments of OGBench's loader, and arrays that are not needed."""
    arrays = dataset([4, 4])
    assert arrays["terminals"].tolist() == [0, 0, 0, 0, 1] * 2
    types = {"observations": numbers, "actions": numbers, "terminals": terminals}
    data = load(
        tmp_path, **{name: arrays[name].astype(kind) for name, kind in types.items()}, qpos=np.zeros(3), qvel=["x"]
    )
    assert data.first.tolist() == [0, 5]
    assert data.steps.tolist() == [4, 4]
    np.testing.assert_array_equal(data.states, arrays["observations"])
    np.testing.assert_array_equal(data.actions, arrays["actions"])
    assert data.states.dtype == data.actions.dtype == np.float32


def test_trajectories_may_be_shorter_than_an_episode(tmp_path: Path) -> None:
    data = load(tmp_path, **dataset([1, 4, 2]))
    assert data.first.tolist() == [0, 2, 7]
    assert data.steps.tolist() == [1, 4, 2]


def test_an_action_that_leads_nowhere_may_be_any_number(tmp_path: Path) -> None:
    arrays = dataset([2, 2])
    arrays["actions"][2] = np.nan
    arrays["actions"][0] = 1.0  # at the limit
    assert load(tmp_path, **arrays).num_steps == 4


def test_a_damaged_file_is_refused_wherever_the_damage_is(tmp_path: Path) -> None:
    whole = save(tmp_path / "whole.npz", **dataset([4, 4])).read_bytes()
    good, damaged = read(tmp_path / "whole.npz", "an_env", SPEC), tmp_path / "damaged.npz"
    refused = []
    for place in range(0, len(whole), 3):
        for data in (whole[:place], whole[:place] + bytes([whole[place] ^ 0xFF]) + whole[place + 1 :]):
            damaged.write_bytes(data)
            try:
                got = read(damaged, "an_env", SPEC)
            except ConfigError as error:
                refused.append(str(error))
            else:  # such as in the zip file's dates
                np.testing.assert_array_equal(got.states, good.states)
                np.testing.assert_array_equal(got.steps, good.steps)
    assert len(refused) > len(whole) / 3
    assert all(line.startswith(f"{damaged}: ") for line in refused)
