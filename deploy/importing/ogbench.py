"""OGBench's data sets: an .npz file, checked, as trajectories.

Three arrays of the file have a row for each state: `observations` `[M, S]`, `actions` `[M, A]` and `terminals` `[M]`,
which is 1 at the last state of each trajectory. The action beside such a state leads nowhere, and is not read. All
other arrays of the file (`qpos`, `qvel`, `button_states`) are ignored.

Source: Park et al., "OGBench: Benchmarking Offline Goal-Conditioned RL" (2025), and its `ogbench/utils.py`.
"""

import tokenize
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from deploy.importing.stream import Trajectories
from shared.envs.base import EnvSpec
from shared.errors import ConfigError

ARRAYS = ("observations", "actions", "terminals")
_OF_LOADED = ("next_observations", "valids")  # arrays that OGBench's loader adds
_HEADERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
_BLOCK = 2**20  # rows checked at once, so that a check needs no second copy of an array
_DAMAGED = (  # errors of a zip file and of an array's header
    *(OSError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error),
    *(ValueError, SyntaxError, tokenize.TokenError),
)


class _Header(NamedTuple):
    """Shape and type of an array in the file, known before its values are read."""

    shape: tuple[int, ...]
    dtype: np.dtype

    def __str__(self) -> str:
        return f"{self.dtype} [{', '.join(map(str, self.shape))}]"


def read(path: Path, env_id: str, spec: EnvSpec) -> Trajectories:
    """Returns the trajectories in the file `path`, which fit the environment `env_id` with `spec`.

    Raises ConfigError, one line with the array and the remedy, if the file is not OGBench's or does not fit. Shapes are
    checked before any values are read.
    """
    headers = _read_headers(path)
    _check_headers(path, headers, env_id, spec)
    ends = _read_array(path, "terminals")
    first, steps = _find_trajectories(path, ends)
    if steps.max() > spec.episode_length:
        raise ConfigError(
            f"{path}: trajectories have up to {steps.max()} steps, an episode of {env_id} has {spec.episode_length}; "
            f"add --env-options.episode-length {steps.max()}"
        )
    states = _read_array(path, "observations").astype(np.float32, copy=False)
    if (row := _find(states, lambda block: ~np.isfinite(block))) is not None:
        raise ConfigError(f"{path}: observations: row {row} is not finite; leave its trajectory out of the file")
    actions = _read_array(path, "actions").astype(np.float32, copy=False)
    acted = ends == 0
    if (row := _find(actions, lambda block: ~(np.abs(block) <= 1), acted)) is not None:
        worst = actions[row][np.argmax(~(np.abs(actions[row]) <= 1))]
        raise ConfigError(
            f"{path}: actions: {worst:g} in row {row}, policies act in [-1, 1]; scale the file's actions to this range"
        )
    return Trajectories(states, actions, first, steps)


def _read_headers(path: Path) -> dict[str, _Header]:
    try:
        with zipfile.ZipFile(path) as archive:
            names = [name.removesuffix(".npy") for name in archive.namelist() if name.endswith(".npy")]
            return {name: _read_header(archive, name) for name in names}
    except _DAMAGED as error:
        raise ConfigError(_explain(path, error)) from error


def _read_header(archive: zipfile.ZipFile, name: str) -> _Header:
    with archive.open(f"{name}.npy") as member:
        version = np.lib.format.read_magic(member)
        if version not in _HEADERS:
            raise ValueError(f"array format {version}")
        shape, _, dtype = _HEADERS[version](member)
    return _Header(shape, dtype)


def _read_array(path: Path, name: str) -> np.ndarray:
    try:
        with np.load(path) as file:
            return file[name]
    except MemoryError as error:
        raise ConfigError(f"{path}: {name} do not fit into the memory; split the file by trajectories") from error
    except _DAMAGED as error:
        raise ConfigError(_explain(path, error)) from error


def _explain(path: Path, error: Exception) -> str:
    cause = (error.strerror if isinstance(error, OSError) else None) or "not a whole .npz file"
    return f"{path}: cannot be read ({cause}); name a file that OGBench has downloaded or made"


def _check_headers(path: Path, headers: dict[str, _Header], env_id: str, spec: EnvSpec) -> None:
    if missing := [name for name in ARRAYS if name not in headers]:
        has = ", ".join(headers) or "no arrays"
        raise ConfigError(f"{path}: {missing[0]} are missing, it has {has}; name a data set of OGBench")
    if loaded := [name for name in _OF_LOADED if name in headers]:
        raise ConfigError(
            f"{path}: has {loaded[0]}, so it is what OGBench's loader returns; name the file that the loader reads"
        )
    states, actions, ends = (headers[name] for name in ARRAYS)
    if len(states.shape) != 2 or states.dtype.kind != "f":
        raise ConfigError(
            f"{path}: observations are {states}, numbers [M, S] of type float are needed; networks take states, not "
            "pictures, so name a state-based data set"
        )
    if len(actions.shape) != 2 or actions.dtype.kind != "f":
        raise ConfigError(
            f"{path}: actions are {actions}, numbers [M, A] of type float are needed; policies act continuously, so "
            "name a data set with such actions"
        )
    if len(ends.shape) != 1 or ends.dtype.kind not in "bfiu":
        raise ConfigError(f"{path}: terminals are {ends}, a number or bool for each state is needed; make it again")
    if len({header.shape[0] for header in (states, actions, ends)}) > 1:
        rows = ", ".join(f"{headers[name].shape[0]} {name}" for name in ARRAYS)
        raise ConfigError(f"{path}: {rows}: each state needs one of each; make the file again")
    for name, size, key in (("observations", spec.state_size, "state"), ("actions", spec.action_size, "action")):
        held = headers[name].shape[1]
        if held != size:
            raise ConfigError(
                f"{path}: {name} have {held} numbers, the {key} of {env_id} has {size}; name an --env of the data's "
                "sizes, your own if need be (docs/import.md)"
            )


def _find_trajectories(path: Path, ends: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns the row of each trajectory's first state `[J]`, and the number of its steps `[J]`."""
    if not np.isin(ends, (0, 1)).all():
        raise ConfigError(f"{path}: terminals: other numbers than 0 and 1; name a data set of OGBench")
    last = np.flatnonzero(ends)
    if not len(last):
        raise ConfigError(f"{path}: terminals: no trajectory ends; it needs a 1 at the last state of each")
    if last[-1] != len(ends) - 1:
        raise ConfigError(
            f"{path}: terminals: the last 1 is in row {last[-1]}, of {len(ends)} rows; the last trajectory is not "
            "whole, leave it out of the file"
        )
    first = np.concatenate([[0], last[:-1] + 1])
    if (short := np.flatnonzero(last == first)).size:
        raise ConfigError(
            f"{path}: terminals: the trajectory in row {first[short[0]]} has one state and no step; mark the last "
            "state of each trajectory alone, and leave such trajectories out"
        )
    return first, last - first


def _find(array: np.ndarray, is_bad: Callable[[np.ndarray], np.ndarray], among: np.ndarray | None = None) -> int | None:
    """Returns the first row of `array` `[M, E]`, of those `among` `[M]` bool, with an entry that `is_bad`."""
    for begin in range(0, len(array), _BLOCK):
        bad = is_bad(array[begin : begin + _BLOCK]).any(axis=1)
        if among is not None:
            bad &= among[begin : begin + _BLOCK]
        if bad.any():
            return begin + int(np.argmax(bad))
    return None
