"""Small data sets in OGBench's format."""

from pathlib import Path
from typing import Any

import numpy as np


def dataset(lengths: list[int], state_size: int = 2, action_size: int = 2) -> dict[str, Any]:
    """Returns the arrays of trajectories of so many steps, in the types of OGBench's files.

    A state's first number is its row, its second one 100 more, and so on; an action is a thousandth of the row.
    """
    rows = np.arange(sum(lengths) + len(lengths), dtype=np.float32)[:, None]
    terminals = np.zeros(len(rows), bool)
    terminals[np.cumsum(np.array(lengths) + 1) - 1] = True
    return {
        "observations": rows + 100 * np.arange(state_size, dtype=np.float32),
        "actions": np.repeat(rows / 1000, action_size, axis=1),
        "terminals": terminals,
    }


def save(path: Path, **arrays: Any) -> Path:
    np.savez_compressed(path, **arrays)
    return path
