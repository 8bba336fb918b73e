"""Start of a process: where its seconds go until it has done its first work.

JAX says how long it traces, compiles and loads compiled functions from its cache, for each thread of this process.
"""

import os
import threading
import time
from collections import defaultdict
from collections.abc import Mapping
from functools import cache
from typing import NamedTuple

import psutil

from shared.metrics import Row

_TRACED = ("/jax/core/compile/jaxpr_trace_duration", "/jax/core/compile/jaxpr_to_mlir_module_duration")
_COMPILED = "/jax/core/compile/backend_compile_duration"
_LOADED = "/jax/compilation_cache/cache_retrieval_time_sec"
_SLOW_S = 0.5  # a function that compiles for as long is named


class _Interval(NamedTuple):
    kind: str
    start: float
    seconds: float


class Preparation:
    """Work of JAX in some threads before it computed.

    Attributes:
        seconds: by kind: `tracing` in Python, `compiling`, and `loading` what was compiled before.
        loaded, compiled: functions that were in the compilation cache, and those that were not.
        slow: of those compiled, the ones that took long, with their seconds.
    """

    def __init__(self) -> None:
        self.seconds: dict[str, float] = dict.fromkeys(("tracing", "compiling", "loading"), 0.0)
        self.loaded = self.compiled = 0
        self.slow: dict[str, float] = {}


class JaxWatch:
    """Listens to JAX from now on; one for each process, see `jax_watch`."""

    def __init__(self) -> None:
        from jax import monitoring

        self._lock = threading.Lock()
        self._made: dict[str, Preparation] = defaultdict(Preparation)  # by thread
        self._inner: dict[str, list[_Interval]] = defaultdict(list)  # finished intervals that a longer one may contain
        monitoring.register_event_duration_secs_listener(self._hear)

    def preparation(self, thread: str = "") -> Preparation:
        """Returns what was done in the thread of that name, or else in all threads."""
        total = Preparation()
        with self._lock:
            for name, made in self._made.items():
                if thread in ("", name):
                    total.seconds = {kind: total.seconds[kind] + seconds for kind, seconds in made.seconds.items()}
                    total.loaded, total.compiled = total.loaded + made.loaded, total.compiled + made.compiled
                    total.slow |= made.slow
        return total

    def _hear(self, event: str, duration_secs: float, **details: str | int) -> None:
        kind = "tracing" if event in _TRACED else {_COMPILED: "compiling", _LOADED: "loading"}.get(event)
        if kind is None:
            return
        thread, start = threading.current_thread().name, time.monotonic() - duration_secs
        with self._lock:
            made, finished = self._made[thread], self._inner[thread]
            own, contains = duration_secs, set()
            while finished and finished[-1].start >= start:
                inner = finished.pop()
                own -= inner.seconds
                contains.add(inner.kind)
            if event == _COMPILED:
                kind = "loading" if "loading" in contains else "compiling"
                made.loaded += kind == "loading"
                made.compiled += kind == "compiling"
                if kind == "compiling" and duration_secs >= _SLOW_S:
                    made.slow[str(details.get("fun_name", "?")).removeprefix("jit(").removesuffix(")")] = duration_secs
            made.seconds[kind] += max(own, 0.0)
            finished.append(_Interval(kind, start, duration_secs))


@cache
def jax_watch() -> JaxWatch:
    """The one listener of this process; the first call starts it."""
    return JaxWatch()


def process_seconds() -> float:
    """Returns the time since this process was started."""
    return time.time() - psutil.Process(os.getpid()).create_time()


def describe_start(process: float, waits: Mapping[str, float], thread: str = "") -> Row:
    """Returns the start of a role, which has just finished its first work, as metrics in seconds.

    Args:
        process: time from the start of the role's process to that of the role's own work.
        waits: time of the role's waits since then, by what it waited for.
        thread: name of its thread; none: all threads of the process.
    """
    prepared = jax_watch().preparation(thread)
    return {
        "seconds": process_seconds(),
        "process": process,
        **prepared.seconds,
        "waiting": sum(waits.values()),
        "loaded": prepared.loaded,
        "compiled": prepared.compiled,
        "slow": ", ".join(f"{name} {took:.1f} s" for name, took in prepared.slow.items()),
    }
