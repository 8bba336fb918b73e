"""Resident memory while a learner is initialised on the CPU, measured in a process of its own."""

import threading
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import jax
import psutil

from learner.learner import Learner, _jitted_init
from learner.objectives.registry import make_objective
from learner.state import LearnerState
from shared.config import ACTIVE, Experiment
from shared.envs.base import EnvSpec
from shared.plan import make_plan

_EVERY_S = 0.002
_LEAST_BYTES = 100e6  # of a smaller state, memory that is not the state's is most of the peak


def init_memory_ratio(experiment: Experiment, spec: EnvSpec) -> float | None:
    """Returns the peak of the memory that initialising the collector learner takes, relative to the learner's state.

    Compilation does not count. None for a small state, and on an accelerator, which has a memory of its own.
    """
    if jax.default_backend() != "cpu":
        return None
    state = jax.eval_shape(lambda: Learner.initial_state(experiment, spec, ACTIVE))
    if _num_bytes(state) < _LEAST_BYTES:
        return None
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
        return process.submit(_measure, experiment, spec).result()


def _measure(experiment: Experiment, spec: EnvSpec) -> float:
    jax.config.update("jax_platforms", "cpu")
    _jitted_init(make_objective(experiment, ACTIVE, spec)).lower(jax.random.key(0)).compile()
    watch = _PeakWatch()
    state = jax.block_until_ready(Learner(experiment, make_plan(experiment, spec), spec, ACTIVE).state)
    return watch.stop() / _num_bytes(state)


def _num_bytes(state: LearnerState) -> int:
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state))


class _PeakWatch:
    """Looks at the resident memory of this process. The system's own peak also counts a parent's memory."""

    def __init__(self) -> None:
        self._process, self._stopped = psutil.Process(), threading.Event()
        self._before = self._peak = self._process.memory_info().rss
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def stop(self) -> int:
        """Returns the bytes by which memory has grown at its peak."""
        self._stopped.set()
        self._thread.join()
        return self._peak - self._before

    def _watch(self) -> None:
        stopped = False
        while not stopped:
            stopped = self._stopped.wait(_EVERY_S)
            self._peak = max(self._peak, self._process.memory_info().rss)
