"""The project's own packages, found although the user's folder or PYTHONPATH has others of the same names.

As a script, runs a module of the project as `python -m` does, but without the working directory on its path.
"""

import importlib
import runpy
import sys
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).absolute().parents[2]
PACKAGES = ("collector", "deploy", "learner", "shared")


def module_command(module: str, *arguments: str, python: str = sys.executable) -> list[str]:
    """Returns the command that runs a module of the project in a process of its own, by the program `python`."""
    return [python, "-P", __file__, module, *arguments]


def package_importer(root: str = str(ROOT), packages: tuple[str, ...] = PACKAGES) -> Callable[[], None]:
    """Returns a function that imports the project's packages from `root`, before others are imported in their place.

    The function raises ImportError if that was too late. Ray sends the function itself to its workers: a worker on
    whose path the project does not lie can call it, too.
    """

    def import_packages() -> None:
        sys.path.insert(0, root)
        try:
            files = {name: importlib.import_module(name).__file__ for name in packages}
        finally:
            sys.path.remove(root)
        folders = {name: Path(file or "nowhere").parent for name, file in files.items()}
        for name, folder in folders.items():
            if folder.parent != folders["deploy"].parent:
                raise ImportError(
                    f"{folder} is another package named {name}, which Fathom needs for itself; rename that folder, or "
                    "take the folder around it off PYTHONPATH"
                )

    return import_packages


if __name__ == "__main__":
    package_importer()()
    runpy.run_module(sys.argv.pop(1), run_name="__main__", alter_sys=True)
