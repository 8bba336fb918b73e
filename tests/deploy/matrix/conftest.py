"""Matrices whose runs take a few seconds each."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from deploy.matrix.expand import MatrixConfig
from tests.deploy.matrix.cases import MATRIX

MakeMatrix = Callable[..., MatrixConfig]
WriteMatrix = Callable[..., Path]


@pytest.fixture(scope="session")
def make_matrix() -> MakeMatrix:
    """Returns `make_matrix(axis=..., experiment_key=...)`, which replaces the named keys of `MATRIX`."""

    def make(**changes: Any) -> MatrixConfig:
        return MatrixConfig.model_validate(_apply(changes))

    return make


@pytest.fixture
def write_matrix(tmp_path: Path) -> WriteMatrix:
    """Returns `write_matrix(**changes)`, which writes a matrix as YAML and returns its path."""

    def write(**changes: Any) -> Path:
        path = tmp_path / "matrix.yaml"
        path.write_text(yaml.safe_dump(_apply(changes)))
        return path

    return write


def _apply(changes: dict[str, Any]) -> dict[str, Any]:
    axes = {key: value for key, value in changes.items() if key in MatrixConfig.model_fields}
    keys = {key: value for key, value in changes.items() if key not in axes}
    values = copy.deepcopy(MATRIX) | axes
    return values | {"experiment": values["experiment"] | keys}
