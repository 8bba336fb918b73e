"""The project's packages are found although the user's folder has others of the same names."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from deploy.scheduling.packages import PACKAGES, module_command

pytestmark = pytest.mark.processes
TAKEN = "import shared; from deploy.cli.__main__ import main; main()"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A working directory with packages of all our names."""
    for name in PACKAGES:
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text(f"print('another {name}')")
    return tmp_path


def run(folder: Path, *command: str, **environ: str) -> tuple[int, str, str]:
    ran = subprocess.run(command, cwd=folder, env=os.environ | environ, capture_output=True, text=True, timeout=60)
    return ran.returncode, ran.stdout, ran.stderr


def test_children_do_not_import_from_the_working_directory(folder: Path) -> None:
    status, output, errors = run(folder, *module_command("deploy.cli", "envs", "--json"), PYTHONPATH=".")
    assert (status, errors) == (0, "")
    assert output.startswith('[{"env"')


def test_a_package_that_was_imported_in_our_place_is_named(folder: Path) -> None:
    (folder / "deploy" / "__init__.py").unlink()
    (folder / "deploy").rmdir()
    status, output, errors = run(folder, sys.executable, "-c", TAKEN, "envs")
    assert (status, output) == (2, "another shared\n")
    assert errors == (
        f"fathom: {folder}/shared is another package named shared, which Fathom needs for itself; rename that folder, "
        "or take the folder around it off PYTHONPATH\n"
    )
