"""Speed of one update: initialise, trace, compile, step, by depth. Needs neither Ray nor Reverb."""

import statistics
import time
from typing import Any

import jax
import numpy as np

from learner.state import init_state, make_optimisers
from learner.update import make_update_step
from shared.config import Experiment
from shared.envs.base import EnvSpec
from shared.networks import make_networks
from shared.plan import make_plan
from shared.replay.codec import Columns

_MINIBATCHES = 2  # the scan's length changes neither trace nor compile time; steps are timed per minibatch
# Ant-sized, so that the figures speak for the environments of the paper.
_SPEC = EnvSpec(
    state_size=29,
    goal_size=2,
    action_size=8,
    goal_indices=(0, 1),
    episode_length=100,
    goal_radius=0.5,
    num_cells=1,
)


def bench_update(depths: list[int], batch: int, width: int, repeats: int = 3) -> dict[str, Any]:
    """`{"rows": [{"depth", "batch", "width", "init_seconds", ...}]}`, one row for each depth.

    `init_seconds`: all parameters and optimiser states, their compilation included. `trace_seconds` and
    `compile_seconds`: of the whole update, the persistent compilation cache off. `step_seconds`: one
    gradient step on `batch` rows (median of `repeats` updates, relabelling and shuffling included).
    """
    before = jax.config.jax_enable_compilation_cache  # type: ignore[attr-defined]
    jax.config.update("jax_enable_compilation_cache", False)
    try:
        return {"rows": [_bench_depth(depth, batch, width, repeats) for depth in depths]}
    finally:
        jax.config.update("jax_enable_compilation_cache", before)


def _bench_depth(depth: int, batch: int, width: int, repeats: int) -> dict[str, Any]:
    windows = max(2 * _MINIBATCHES * batch // (_SPEC.episode_length - 1), 1)
    experiment = Experiment.model_validate(
        {
            "env": "bench",
            "collector": {"depth": depth, "width": width, "environments": windows, "unroll_length": 50},
            "algorithm": {
                "batch_size": batch,
                "windows_per_update": windows,
                "minibatches_per_update": _MINIBATCHES,
            },
            "budget": {"env_steps": 100 * windows * 50},
        }
    )
    plan = make_plan(experiment, _SPEC)
    networks = make_networks(experiment.collector, _SPEC)
    optimisers = make_optimisers(experiment.algorithm)
    update_step = jax.jit(make_update_step(networks, optimisers, experiment.algorithm, plan, _SPEC), donate_argnums=0)
    columns = _random_windows(windows, plan.window_rows)

    start = time.perf_counter()
    state = jax.block_until_ready(init_state(networks, optimisers, _SPEC, jax.random.key(0)))
    initialised = time.perf_counter()
    traced = update_step.trace(state, columns)
    trace_end = time.perf_counter()
    compiled = traced.lower().compile()
    compile_end = time.perf_counter()

    state, _ = jax.block_until_ready(compiled(state, columns))
    seconds = []
    for _ in range(repeats):
        step_start = time.perf_counter()
        state, _ = jax.block_until_ready(compiled(state, columns))
        seconds.append((time.perf_counter() - step_start) / _MINIBATCHES)
    return {
        "depth": depth,
        "batch": batch,
        "width": width,
        "init_seconds": initialised - start,
        "trace_seconds": trace_end - initialised,
        "compile_seconds": compile_end - trace_end,
        "step_seconds": statistics.median(seconds),
    }


def _random_windows(windows: int, rows: int) -> Columns:
    rng = np.random.default_rng(0)
    floats = rng.normal(size=(windows, rows, _SPEC.state_size + _SPEC.action_size)).astype(np.float32)
    floats[..., _SPEC.state_size :] = np.tanh(floats[..., _SPEC.state_size :])
    step = np.broadcast_to(np.arange(rows, dtype=np.int32), (windows, rows))
    return Columns(floats, np.stack([step // _SPEC.episode_length, step, np.zeros_like(step)], axis=-1))
