"""Checkpoints of learner states, by Orbax. No pickle: a foreign checkpoint cannot run code."""

import glob
import logging
import os
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

logging.getLogger("absl").setLevel(logging.CRITICAL)  # Orbax logs the tracebacks of errors that it also raises


def save(path: Path, state: Any) -> None:
    """Writes a pytree of arrays to the folder `path`, completely or not at all. Raises OSError on a full disk."""
    parent = Path(path).absolute().parent
    parent.mkdir(parents=True, exist_ok=True)
    tempfile.TemporaryDirectory(dir=parent).cleanup()  # without room for it, Orbax would wait for minutes
    try:
        with _without_wildcards(path) as plain, ocp.StandardCheckpointer() as checkpointer:
            checkpointer.save(plain, _keys_as_data(state), force=True)
    except ValueError as error:
        if code := re.search(r"os_error_code='(\d+)'", str(error)):
            raise OSError(int(code[1]), os.strerror(int(code[1])), str(path)) from error
        raise


def load(path: Path, like: Any) -> Any:
    """Returns the pytree saved in `path`, shaped like `like` (arrays or their shapes); all but random keys on the host.

    Raises FileNotFoundError if there is no checkpoint.
    """
    if not Path(path).is_dir():
        raise FileNotFoundError(f"{path}: no checkpoint here; the run ended before it was written")
    with _without_wildcards(path) as plain, ocp.StandardCheckpointer() as checkpointer:
        restored = checkpointer.restore(plain, jax.eval_shape(_keys_as_data, like))
    # Orbax restores arrays committed to a device; code that uses them would be compiled for it. So copy to the host.
    host = jax.tree.map(np.asarray, restored)
    return jax.tree.map(lambda x, y: jax.random.wrap_key_data(y) if _is_key(x) else y, like, host)


@contextmanager
def _without_wildcards(path: Path) -> Iterator[Path]:
    """An absolute path of `path` without `[`, `*` and `?`: through a symbolic link, if it has any in its folders.

    Orbax searches a checkpoint's folder by a pattern that begins with the folder's own path. With a wildcard there it
    finds nothing, and writes a checkpoint that cannot be read.
    """
    path = Path(path).absolute()
    if not glob.has_magic(str(path)):
        yield path
        return
    with tempfile.TemporaryDirectory(prefix="fathom-") as folder:
        link = Path(folder) / "link"
        link.symlink_to(path.parent)
        yield link / path.name


def _is_key(x: Any) -> bool:
    return jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key)


def _keys_as_data(tree: Any) -> Any:
    return jax.tree.map(lambda x: jax.random.key_data(x) if _is_key(x) else x, tree)
