"""Users' own classes: found by the dotted path `package.module:Class`, and their errors, each as one line."""

import importlib
import os
import re
import sys
import traceback
from pathlib import Path
from typing import Any

DOTTED = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")


def load_object(path: str) -> Any:
    """Returns the object that a dotted path names. Raises ValueError with one line that has a remedy."""
    module, name = path.split(":")
    if os.getcwd() not in sys.path:  # Python puts a command's own folder there, not the user's
        sys.path.append(os.getcwd())
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        missing = error.name if isinstance(error, ImportError) and error.name else module
        remedy = _find_hidden(missing.partition(".")[0]) or "name it as package.module:Class"
        raise ValueError(f"{path}: cannot be imported ({error}); {remedy}") from error
    except (Exception, SystemExit) as error:
        raise ValueError(f"{path}: cannot be imported: {explain(error)}") from error


def _find_hidden(package: str) -> str:
    """Returns a remedy if the working directory's `package` is hidden by an installed one, such as `shared`."""
    own, found = Path.cwd() / package, getattr(sys.modules.get(package), "__file__", None)
    if own.is_dir() and found and own not in Path(found).parents:
        return f"{own} is hidden by another package named {package}, {Path(found).parent}: rename yours"
    return ""


def explain(error: BaseException, raised_by: Any = None) -> str:
    """Returns one line: the error, and where in the module of `raised_by`, or else anywhere, it was raised."""
    file = getattr(sys.modules.get(getattr(raised_by, "__module__", "")), "__file__", None)
    frames = traceback.extract_tb(error.__traceback__)
    place = [*frames[-1:], *(frame for frame in frames if frame.filename == file)][-1]
    return f"{type(error).__name__}: {' '.join(str(error).split()):.300} ({place.filename}, line {place.lineno})"
