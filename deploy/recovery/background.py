"""Writing in the background: one thread, at most two states in memory."""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import jax
import numpy as np


class BackgroundWriter:
    """One thread that writes. An error in the thread is raised by the next call."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="states")
        self._writing: Future[None] | None = None

    @property
    def busy(self) -> bool:
        return self._writing is not None and not self._writing.done()

    @property
    def held(self) -> int:
        """States in memory: at most one, and another while `write` waits."""
        return int(self.busy)

    def write(self, work: Callable[..., None], *arguments: Any) -> None:
        """Starts `work(*arguments)` once the previous work is done, so that at most two states are held."""
        self.wait()
        self._writing = self._thread.submit(work, *arguments)

    def wait(self) -> None:
        """Waits until nothing is being written."""
        if self._writing is not None:
            writing, self._writing = self._writing, None
            writing.result()


def on_host(state: Any) -> Any:
    """Copies a state to the host: the next update takes the device's buffers. Keys stay keys."""
    return jax.tree.map(_copied, state)


def _copied(x: Any) -> Any:
    if jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key):
        return jax.random.wrap_key_data(jax.numpy.array(jax.random.key_data(x)))
    return np.array(x)
