"""Matrices whose runs are real, trained once for all tests of galleries."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from deploy.cli.main import run_command
from tests.deploy.report.gallery.cases import LongSlider, train

CopyMatrix = Callable[..., Path]


@pytest.fixture(scope="session")
def maze(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a matrix in a maze: two collector depths, two learner depths, two seeds. Tests only read it.

    A run of the first seed is missing, so galleries show the second one.
    """
    return train(tmp_path_factory.mktemp("maze") / "matrix", ["point_u_maze-c8-s0"], collector_depths=[4, 8])


@pytest.fixture(scope="session")
def report(maze: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of the maze's matrix, as `fathom report` writes it. Tests only read it."""
    folder = Path(shutil.copytree(maze, tmp_path_factory.mktemp("report") / "matrix"))
    assert run_command(["report", str(folder)]) == 0
    return folder / "report.html"


@pytest.fixture
def copy_maze(maze: Path, tmp_path: Path) -> CopyMatrix:
    """Returns `copy_maze(*without)`, which copies the matrix without the files and folders of these names."""

    def copy(*without: str) -> Path:
        return Path(shutil.copytree(maze, tmp_path / "matrix", ignore=shutil.ignore_patterns(*without)))

    return copy


@pytest.fixture(scope="session")
def own(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a matrix in environments of one's own: a body, and a line that cannot be drawn. Tests only read it."""
    envs = [f"{LongSlider.__module__}:{name}" for name in ("LongSlider", "Line")]
    return train(tmp_path_factory.mktemp("own") / "matrix", envs=envs, learner_depths=None, seeds=[0])
