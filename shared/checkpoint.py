"""Checkpoints of learner states, by Orbax. No pickle: a foreign checkpoint cannot run code."""

from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp


def save(path: Path, state: Any) -> None:
    """Writes a pytree of arrays to the folder `path`, completely or not at all. Raises OSError on a full disk."""
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(Path(path).absolute(), _keys_as_data(state), force=True)


def load(path: Path, like: Any) -> Any:
    """Returns the pytree saved in `path`, shaped like `like` (arrays or their shapes); all but random keys on the host.

    Raises FileNotFoundError if there is no checkpoint.
    """
    if not Path(path).is_dir():
        raise FileNotFoundError(f"{path}: no checkpoint here; the run ended before it was written")
    with ocp.StandardCheckpointer() as checkpointer:
        restored = checkpointer.restore(Path(path).absolute(), jax.eval_shape(_keys_as_data, like))
    # Orbax restores arrays committed to a device; code that uses them would be compiled for it. So copy to the host.
    host = jax.tree.map(np.asarray, restored)
    return jax.tree.map(lambda x, y: jax.random.wrap_key_data(y) if _is_key(x) else y, like, host)


def _is_key(x: Any) -> bool:
    return jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key)


def _keys_as_data(tree: Any) -> Any:
    return jax.tree.map(lambda x: jax.random.key_data(x) if _is_key(x) else x, tree)
