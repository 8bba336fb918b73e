"""Unrolls that count their steps, copies of batches, and a wait, for tests with a real replay server."""

import time
from collections.abc import Callable

import numpy as np

from shared.replay.codec import INT_COLUMNS, Columns

T, F = 4, INT_COLUMNS


def unroll(number: int, environments: int, steps: int = T) -> Columns:
    """Returns rows of (environment, step of the environment, unroll, end) as `ints`, and the same as `floats`."""
    environment, row = np.indices((environments, steps), np.int32)
    step = number * steps + row
    ints = np.stack([environment, step, np.full_like(step, number), step % 3], axis=-1)
    return Columns(ints.astype(np.float32), ints)


def copied(columns: Columns) -> Columns:
    """Returns a batch that stays valid after a sampler reuses its own arrays."""
    return Columns(np.copy(columns.floats), np.copy(columns.ints))


def wait_until(condition: Callable[[], bool], seconds: float = 30) -> bool:
    """Returns True as soon as `condition` is true, or False after `seconds`."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True
