"""Speed of one update by depth, alone or against the textbook's. Needs neither Ray nor Reverb."""

import statistics
import time
import timeit
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.compilation_cache import compilation_cache

from collector.rollout import in_full
from deploy.bench.init_memory import init_memory_ratio
from deploy.bench.unrolled import Unrolled, unroll_params
from learner.objectives.base import Objective
from learner.objectives.registry import find_objective, make_objective
from learner.state import LearnerState, init_state
from learner.update import make_gradients, make_steps, make_update_step, make_update_steps
from shared.config import ACTIVE, Experiment
from shared.config_file import parse_experiment
from shared.envs.base import EnvSpec
from shared.errors import ConfigError
from shared.networks import number_format, products
from shared.plan import Plan, make_plan
from shared.replay.codec import Columns
from shared.types import CONTINUES, TRUNCATED, Array

_MINIBATCHES = 4  # the scan's length changes neither trace nor compile time; seconds are divided by it
_DEEPEST_UNROLLED = 256  # takes ten minutes to compile
_DEEPEST_COMPARED = 16  # in deeper networks two float32 orders of summation drift apart by themselves
# The ant's sizes, so that the figures hold for the paper's environments.
_SPEC = EnvSpec(
    state_size=29, goal_size=2, action_size=8, goal_indices=(0, 1), episode_length=100, goal_radius=0.5, num_cells=1
)


def bench_update(
    depths: Sequence[int],
    batch: int,
    width: int,
    precision: str = "float32",
    against: str | None = None,
    repeats: int = 5,
    seconds: float = 3.0,
    seeds: int = 1,
    objective: str = "contrastive",
    episode_length: int = 100,
) -> dict[str, Any]:
    """Measures updates by depth.

    Args:
        depths: one row each.
        batch: rows of a minibatch.
        width: width of the networks.
        precision: of the hidden layers.
        against: "unrolled" also measures the textbook's update, as `unrolled_<figure>`, and adds `step_speedup` (median
            over pairs of steps) and, up to depth 16, the figures of `differences`.
        repeats: least number of updates.
        seconds: least time of the updates.
        seeds: above 1, also measures this number of learners in one vmapped update, as `seeds_<figure>`, and adds
            `seeds_speedup` over the same learners one after the other. Its step is one gradient step of each.
        objective: name of the objective, whose constants are the defaults.
        episode_length: rows of a window; labels and horizons of some objectives grow with it.

    Returns:
        `{"rows": [...], "matmul_flops_per_second"}`. Each row has the sizes and these figures: `init_seconds`
        (parameters and optimiser states, with compilation), `init_memory_ratio` (see there), `trace_seconds` and
        `compile_seconds` (of the update, without the persistent cache), `first_step_seconds` (the sum of the three),
        `step_seconds` (one gradient step with its share of relabelling and shuffling, median over updates),
        `flops_per_second` (of the model; repeated operations count once), `peak_share` (relative to a large matrix
        product), `memory_bytes` (XLA's estimate of state, windows and temporaries).

    Raises:
        ConfigError: a depth that the textbook cannot compile in reasonable time, an objective that does not exist or
            that the textbook does not have, episodes of less than two steps, or `seeds` below 1.
    """
    find_objective(objective, "--objective")
    if against and objective != "contrastive":
        raise ConfigError(f"--against: the textbook's update is contrastive, not {objective}; leave one of them out")
    if episode_length < 2:
        raise ConfigError(f"--episode-length: {episode_length} is too short; an episode has 2 steps or more")
    if seeds < 1:
        raise ConfigError(f"--seeds: {seeds} is not positive; use 1, or the number of learners that train side by side")
    if against and max(depths) > _DEEPEST_UNROLLED:
        raise ConfigError(
            f"--depths: {max(depths)} layers one by one compile for hours; compare depths up to {_DEEPEST_UNROLLED}"
        )
    with uncached():
        peak = matmul_flops_per_second(precision)
        rows = []
        for depth in depths:
            sizes: dict[str, Any] = {"depth": depth, "batch": batch, "width": width, "precision": precision}
            sizes |= {"objective": objective, "episode_length": episode_length}
            rows.append(sizes | _bench_depth(*_experiment(**sizes), against, repeats, seconds, seeds, peak))
    return {"matmul_flops_per_second": peak, "rows": rows}


def _as_precise(textbook: Callable[..., Any], precision: str) -> Callable[..., Any]:
    """Returns a function of the textbook's, whose layers say no precision, with products as in our float32."""
    return in_full(textbook) if precision == "float32" else textbook


@contextmanager
def uncached() -> Iterator[None]:
    """Turns the persistent compilation cache off inside the block."""
    before = jax.config.jax_enable_compilation_cache  # type: ignore[attr-defined]
    _enable_cache(False)
    try:
        yield
    finally:
        _enable_cache(before)


def _enable_cache(enabled: bool) -> None:
    jax.config.update("jax_enable_compilation_cache", enabled)
    compilation_cache.reset_cache()  # JAX reads the option only at its first compilation


class _Timed:
    """A state and its compiled update, which has run once. `seconds`: durations of gradient steps."""

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
        self.step()
        self.seconds.clear()  # the first step meets cold memory

    def step(self) -> None:
        start = time.perf_counter()
        self.state, _ = jax.block_until_ready(self.compiled(self.state, self._windows))
        self.seconds.append((time.perf_counter() - start) / _MINIBATCHES)

    def figures(self) -> dict[str, float]:
        memory = self.compiled.memory_analysis()
        taken = memory.argument_size_in_bytes + memory.output_size_in_bytes + memory.temp_size_in_bytes
        return self.costs | {
            "step_seconds": statistics.median(self.seconds),
            "gradient_steps_per_second": 1 / statistics.median(self.seconds),
            "memory_bytes": taken - memory.alias_size_in_bytes,
        }


def _bench_depth(
    experiment: Experiment, plan: Plan, against: str | None, repeats: int, seconds: float, seeds: int, peak: float
) -> dict[str, Any]:
    config, windows = experiment.collector, _random_windows(plan)
    objective = make_objective(experiment, ACTIVE, _spec(plan.window_length))
    update_step = make_update_step(objective, plan)

    def init(seed: int) -> LearnerState:
        return _init_state(objective, jax.random.key(seed))

    ours = _Timed(lambda: init(0), update_step, windows)
    timed = {"": ours}
    if against:
        textbook = Unrolled(objective)
        step = _as_precise(partial(textbook.update_step, plan=plan), config.precision)
        timed["unrolled_"] = _Timed(lambda: textbook.init(jax.random.key(0)), step, windows)
    if seeds > 1:
        update_steps = make_update_steps(update_step)
        timed["seeds_"] = _Timed(lambda: tuple(map(init, range(seeds))), update_steps, (windows,) * seeds)
    while len(ours.seconds) < repeats or sum(ours.seconds) * _MINIBATCHES < seconds:
        for each in timed.values():  # in turns, so that a busy moment of the machine affects all of them
            each.step()
    row: dict[str, Any] = ours.figures()
    row["flops_per_second"] = objective.step_flops(plan.batch_size) / row["step_seconds"]
    row["peak_share"] = row["flops_per_second"] / peak
    row["init_memory_ratio"] = init_memory_ratio(experiment, objective.spec)
    for prefix, each in timed.items():
        row |= {prefix + name: value for name, value in each.figures().items()}
    if against:
        row["step_speedup"] = _speedup(timed["unrolled_"], ours)
        row["first_step_speedup"] = row["unrolled_first_step_seconds"] / row["first_step_seconds"]
        compared = config.depth <= _DEEPEST_COMPARED
        row |= differences(experiment, plan) if compared else {"loss_difference": None, "gradient_difference": None}
    if seeds > 1:
        row |= {"seeds": seeds, "seeds_speedup": seeds * _speedup(ours, timed["seeds_"])}
    return row


# Op by op, initialisation takes more than twice as long.
_init_state = jax.jit(init_state, static_argnums=0)


def _speedup(slow: _Timed, fast: _Timed) -> float:
    """Returns the median of the pairs' ratios."""
    return statistics.median(one / other for one, other in zip(slow.seconds, fast.seconds, strict=True))


def differences(experiment: Experiment, plan: Plan) -> dict[str, float]:
    """Returns the relative differences of the first gradient step from the textbook's, on one random minibatch.

    `loss_difference`: greatest of the three losses. `gradient_difference`: greatest of any tensor, relative to the
    tensor's largest entry.
    """
    objective: Objective = make_objective(experiment, ACTIVE, _spec(plan.window_length))
    state: LearnerState = _init_state(objective, jax.random.key(1))
    gradients, textbook = make_gradients(objective), Unrolled(objective)

    @jax.jit
    def compare(state: LearnerState, windows: Columns) -> dict[str, jax.Array]:
        steps = make_steps(objective, windows, plan, state.key)
        minibatch, key = steps.minibatch(steps.order[0]), steps.keys[0]
        found, metrics = gradients(state, minibatch, key)
        ours, params = unroll_params(found), unroll_params(state.trained)
        theirs, expected = _as_precise(textbook.gradients, experiment.collector.precision)(params, minibatch, key)
        losses = [_relative(metrics[name], expected[name]) for name in expected if "loss" in name]
        tensors = jax.tree.leaves(jax.tree.map(_relative, ours, theirs))
        return {"loss_difference": jnp.stack(losses).max(), "gradient_difference": jnp.stack(tensors).max()}

    return {name: float(difference) for name, difference in compare(state, _random_windows(plan)).items()}


def _relative(value: Array, expected: Array) -> jax.Array:
    return jnp.max(jnp.abs(value - expected)) / jnp.max(jnp.abs(expected))


def matmul_flops_per_second(precision: str) -> float:
    """Returns the rate of a product of two large matrices on this device: the best of five."""
    size = 2048 if jax.default_backend() == "cpu" else 8192
    x = jax.random.normal(jax.random.key(0), (size, size), number_format(precision))
    product = jax.jit(partial(jnp.matmul, precision=products(precision)))
    jax.block_until_ready(product(x, x))
    seconds = timeit.repeat(lambda: jax.block_until_ready(product(x, x)), number=1, repeat=5)
    return 2.0 * size**3 / min(seconds)


def _spec(episode_length: int) -> EnvSpec:
    return replace(_SPEC, episode_length=episode_length)


def _experiment(
    depth: int,
    batch: int,
    width: int,
    precision: str,
    objective: str = "contrastive",
    episode_length: int = _SPEC.episode_length,
) -> tuple[Experiment, Plan]:
    windows = max(2 * _MINIBATCHES * batch // (episode_length - 1), 1)
    network = {"depth": depth, "width": width, "precision": precision, "environments": windows, "unroll_length": 50}
    algorithm = {"objective": objective, "batch_size": batch, "windows_per_update": windows}
    algorithm |= {"minibatches_per_update": _MINIBATCHES}
    budget = {"env_steps": 100 * windows * 50}
    experiment = parse_experiment({"env": "bench", "collector": network, "algorithm": algorithm, "budget": budget})
    return experiment, make_plan(experiment, _spec(episode_length))


def _random_windows(plan: Plan) -> Columns:
    windows, rows = plan.windows_per_update, plan.window_rows
    rng = np.random.default_rng(0)
    floats = rng.normal(size=(windows, rows, _SPEC.row_floats)).astype(np.float32)
    actions, final = slice(_SPEC.state_size, -_SPEC.goal_size), slice(-_SPEC.goal_size, None)
    floats[..., actions] = np.tanh(floats[..., actions])
    step = np.broadcast_to(np.arange(rows, dtype=np.int32), (windows, rows))
    episode, episode_step = np.divmod(step, plan.window_length)
    end = np.where(episode_step == plan.window_length - 1, TRUNCATED, CONTINUES).astype(np.int32)
    floats[..., final] *= (end != CONTINUES)[..., None]
    return Columns(floats, np.stack([episode, step, np.zeros_like(step), end], axis=-1))
