"""Speed of one update by depth, alone or against the textbook. Needs neither Ray nor Reverb."""

import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.compilation_cache import compilation_cache

from deploy.bench.unrolled import Unrolled, unroll_params
from learner.state import LearnerState, init_state, make_optimisers
from learner.update import make_gradients, make_steps, make_update_step, make_update_steps
from shared.config import Experiment
from shared.config_file import parse_experiment
from shared.envs.base import EnvSpec
from shared.errors import ConfigError
from shared.networks import NetworkParams, make_networks, param_shapes
from shared.plan import Plan, make_plan
from shared.replay.codec import Columns
from shared.types import Metrics, Params

_MINIBATCHES = 4  # the scan's length changes neither trace nor compile time; steps are timed per minibatch
_DEEPEST_UNROLLED = 256  # which takes ten minutes to compile
_DEEPEST_COMPARED = 16  # beyond, two float32 orders of summation drift apart by themselves
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


def bench_update(
    depths: list[int],
    batch: int,
    width: int,
    precision: str = "float32",
    against: str | None = None,
    repeats: int = 5,
    seconds: float = 3.0,
    seeds: int = 1,
) -> dict[str, Any]:
    """`{"rows": [{"depth", "batch", "width", "precision", ...}], "matmul_flops_per_second"}`, one row for each depth.

    `init_seconds`: all parameters and optimiser states, their compilation included. `trace_seconds`,
    `compile_seconds`: of the whole update, the persistent compilation cache off. `first_step_seconds`: the
    three together. `step_seconds`: one gradient step on `batch` rows, its share of relabelling and shuffling
    included (median of at least `repeats` updates, for at least `seconds`). `flops_per_second`: of the model
    alone, what is computed twice counted once; `peak_share`: of a large matrix product's rate in this run.
    `memory_bytes`: XLA's account of the update's state, windows and temporaries.

    With `against` "unrolled", rows also hold the textbook's figures, updates taken in turns:
    `unrolled_...`; `step_speedup`, the median of the pairs; `first_step_speedup`; to depth 16
    `loss_difference` and `gradient_difference`, the largest of any tensor relative to the tensor's largest.
    With `seeds` over 1, rows also hold the figures of so many learners in one vmapped update, `seeds_...`, a step of
    which is one gradient step of each, updates taken in turns; `seeds_speedup`: of the time that they take one after
    the other, median of the pairs.

    Raises ConfigError for depths that the textbook cannot compile in reasonable time.
    """
    if seeds < 1:
        raise ConfigError(f"--seeds: {seeds} is not positive; use 1, or how many learners train side by side")
    if against and max(depths) > _DEEPEST_UNROLLED:
        raise ConfigError(
            f"--depths: {max(depths)} layers one by one compile for hours; compare depths up to {_DEEPEST_UNROLLED}"
        )
    with uncached():
        peak = matmul_flops_per_second(precision)
        rows = [
            _bench_depth(depth, batch, width, precision, against, repeats, seconds, seeds, peak) for depth in depths
        ]
    return {"matmul_flops_per_second": peak, "rows": rows}


@contextmanager
def uncached() -> Iterator[None]:
    """Compiles without the persistent cache inside the block."""
    before = jax.config.jax_enable_compilation_cache  # type: ignore[attr-defined]
    _enable_cache(False)
    try:
        yield
    finally:
        _enable_cache(before)


def _enable_cache(enabled: bool) -> None:
    jax.config.update("jax_enable_compilation_cache", enabled)
    compilation_cache.reset_cache()  # JAX reads the option at its first compilation and never again


class _Timed:
    """One way to make updates, initialised, compiled and run once; `seconds` hold what each step of it took."""

    def __init__(self, init: Callable[[], Any], update: Callable, windows: Any) -> None:
        start = time.perf_counter()
        self.state = jax.block_until_ready(init())
        initialised = time.perf_counter()
        traced = jax.jit(update, donate_argnums=0).trace(self.state, windows)
        trace_end = time.perf_counter()
        self.compiled = traced.lower().compile()
        self.costs = {
            "init_seconds": initialised - start,
            "trace_seconds": trace_end - initialised,
            "compile_seconds": time.perf_counter() - trace_end,
            "first_step_seconds": time.perf_counter() - start,
        }
        self._windows = windows
        self.seconds: list[float] = []
        self._update()

    def step(self) -> None:
        start = time.perf_counter()
        self._update()
        self.seconds.append((time.perf_counter() - start) / _MINIBATCHES)

    def _update(self) -> None:
        self.state, _ = jax.block_until_ready(self.compiled(self.state, self._windows))

    def figures(self) -> dict[str, float]:
        memory = self.compiled.memory_analysis()
        taken = memory.argument_size_in_bytes + memory.output_size_in_bytes + memory.temp_size_in_bytes
        return self.costs | {
            "step_seconds": statistics.median(self.seconds),
            "gradient_steps_per_second": 1 / statistics.median(self.seconds),
            "memory_bytes": taken - memory.alias_size_in_bytes,
        }


def _bench_depth(
    depth: int,
    batch: int,
    width: int,
    precision: str,
    against: str | None,
    repeats: int,
    seconds: float,
    seeds: int,
    peak: float,
) -> dict[str, Any]:
    experiment, plan = _experiment(depth, batch, width, precision)
    windows = _random_windows(plan)
    networks = make_networks(experiment.collector, _SPEC)
    optimisers = make_optimisers(experiment.algorithm)
    update_step = make_update_step(networks, optimisers, experiment.algorithm, plan, _SPEC)

    def init(seed: int) -> LearnerState:
        return init_state(networks, optimisers, _SPEC, jax.random.key(seed))

    ours = _Timed(lambda: init(0), update_step, windows)
    timed, theirs, together = [ours], None, None
    if against:
        unrolled = Unrolled(experiment.collector, experiment.algorithm, _SPEC)
        theirs = _Timed(lambda: unrolled.init(jax.random.key(0)), partial(unrolled.update_step, plan=plan), windows)
        timed.append(theirs)
    if seeds > 1:
        update_steps = make_update_steps(update_step)
        together = _Timed(lambda: tuple(map(init, range(seeds))), update_steps, (windows,) * seeds)
        timed.append(together)
    while len(ours.seconds) < repeats or sum(ours.seconds) * _MINIBATCHES < seconds:
        for each in timed:  # in turns, so that a slow moment of the machine meets both
            each.step()
    figures = ours.figures()
    flops = model_flops(param_shapes(networks, _SPEC), batch, experiment.collector.representation_size)
    rate = flops / figures["step_seconds"]
    row: dict[str, Any] = {"depth": depth, "batch": batch, "width": width, "precision": precision}
    row |= figures | {"flops_per_second": rate, "peak_share": rate / peak}
    if theirs:
        baseline = theirs.figures()
        row |= {f"unrolled_{name}": value for name, value in baseline.items()}
        pairs = zip(theirs.seconds, ours.seconds, strict=True)
        row["step_speedup"] = statistics.median(slow / fast for slow, fast in pairs)
        row["first_step_speedup"] = baseline["first_step_seconds"] / figures["first_step_seconds"]
        compared = depth <= _DEEPEST_COMPARED
        row |= differences(experiment, plan) if compared else {"loss_difference": None, "gradient_difference": None}
    if together:
        row |= {"seeds": seeds} | {f"seeds_{name}": value for name, value in together.figures().items()}
        pairs = zip(ours.seconds, together.seconds, strict=True)
        row["seeds_speedup"] = statistics.median(seeds * one / all_of_them for one, all_of_them in pairs)
    return row


def differences(experiment: Experiment, plan: Plan) -> dict[str, float]:
    """How far the collector learner's first gradient step is from the textbook's, on one random minibatch.

    `loss_difference`: of the three losses, relative. `gradient_difference`: of every tensor, relative to its
    largest entry.
    """
    algorithm = experiment.algorithm
    networks = make_networks(experiment.collector, _SPEC)
    state: LearnerState = init_state(networks, make_optimisers(algorithm), _SPEC, jax.random.key(1))
    steps = make_steps(_random_windows(plan), plan, _SPEC, algorithm.discount, state.key)
    minibatch, key = steps.minibatch(steps.order[0]), steps.keys[0]
    gradients, metrics = jax.jit(make_gradients(networks, algorithm, _SPEC))(state, minibatch, key)
    ours = unroll_params(NetworkParams(gradients.actor, gradients.critic), gradients.alpha)
    params = unroll_params(NetworkParams(state.actor, state.critic), state.log_alpha)
    textbook = jax.jit(Unrolled(experiment.collector, algorithm, _SPEC).gradients)
    theirs, expected = textbook(params, minibatch, key)
    return {
        "loss_difference": max(_relative(metrics[name], expected[name]) for name in expected if "loss" in name),
        "gradient_difference": max(jax.tree.leaves(jax.tree.map(_relative, ours, theirs))),
    }


def _relative(value: Any, expected: Any) -> float:
    return float(jnp.max(jnp.abs(value - expected)) / jnp.max(jnp.abs(expected)))


def model_flops(params: NetworkParams, batch: int, representation_size: int) -> float:
    """Multiplications and additions of one gradient step on `batch` rows, in matrix products.

    A network costs 2 B for each kernel entry forwards, and as much again for its inputs' gradient and for its
    kernels' gradient. The state-action encoder runs a second time on the actor's own actions, without the
    kernels' gradient.
    """
    actor, critic = params
    passes = 3 * _kernel_entries(actor) + 5 * _kernel_entries(critic.state_action) + 3 * _kernel_entries(critic.goal)
    return 2.0 * batch * passes + 3 * 2.0 * batch * batch * representation_size


def _kernel_entries(params: Params) -> int:
    leaves: list[tuple[Any, Any]] = jax.tree_util.tree_flatten_with_path(params)[0]
    return sum(leaf.size for path, leaf in leaves if path[-1].key == "kernel")


def matmul_flops_per_second(precision: str) -> float:
    """What this device makes of a product of two large matrices: the best of some."""
    size = 2048 if jax.default_backend() == "cpu" else 8192
    x = jax.random.normal(jax.random.key(0), (size, size), precision)
    product = jax.jit(jnp.matmul)
    jax.block_until_ready(product(x, x))
    seconds = []
    for _ in range(5):
        start = time.perf_counter()
        jax.block_until_ready(product(x, x))
        seconds.append(time.perf_counter() - start)
    return 2.0 * size**3 / min(seconds)


def _experiment(depth: int, batch: int, width: int, precision: str) -> tuple[Experiment, Plan]:
    windows = max(2 * _MINIBATCHES * batch // (_SPEC.episode_length - 1), 1)
    network: Metrics = {"depth": depth, "width": width, "precision": precision}
    experiment = parse_experiment(
        {
            "env": "bench",
            "collector": network | {"environments": windows, "unroll_length": 50},
            "algorithm": {
                "batch_size": batch,
                "windows_per_update": windows,
                "minibatches_per_update": _MINIBATCHES,
            },
            "budget": {"env_steps": 100 * windows * 50},
        }
    )
    return experiment, make_plan(experiment, _SPEC)


def _random_windows(plan: Plan) -> Columns:
    windows, rows = plan.windows_per_update, plan.window_rows
    rng = np.random.default_rng(0)
    floats = rng.normal(size=(windows, rows, _SPEC.state_size + _SPEC.action_size)).astype(np.float32)
    floats[..., _SPEC.state_size :] = np.tanh(floats[..., _SPEC.state_size :])
    step = np.broadcast_to(np.arange(rows, dtype=np.int32), (windows, rows))
    return Columns(floats, np.stack([step // _SPEC.episode_length, step, np.zeros_like(step)], axis=-1))
