"""Figures of the update benchmark, and its comparison with the textbook update."""

import json
import os
import subprocess
import sys
from itertools import count
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deploy.bench import update
from deploy.bench.init_memory import init_memory_ratio
from deploy.bench.update import _experiment, bench_update, differences, uncached
from learner.objectives.contrastive import Contrastive, ContrastiveCritic
from shared.algorithm_config import AlgorithmConfig
from shared.errors import ConfigError
from shared.network_config import NetworkConfig

TIMED = {
    *("init_seconds", "trace_seconds", "compile_seconds", "first_step_seconds", "step_seconds"),
    *("gradient_steps_per_second", "memory_bytes"),
}
UPDATE = TIMED | {"depth", "batch", "width", "precision", "objective", "episode_length"}
UPDATE |= {"flops_per_second", "peak_share", "init_memory_ratio"}


SIZES: dict[str, Any] = {"batch": 30, "width": 11}  # several windows; no two sizes are equal


@pytest.fixture(scope="module")
def result() -> dict[str, Any]:
    """Figures of a network of two blocks, so that their order matters, with every optional measurement.

    Measured by a process with XLA's usual code generators, whose tanh rounds alike in loops of all forms.
    """
    sizes = [option for name, size in SIZES.items() for option in (f"--{name}", str(size))]
    options = [*sizes, "--against", "unrolled", "--repeats", "1", "--seconds", "0", "--seeds", "2", "--json"]
    command = [sys.executable, "-m", "deploy.cli", "bench", "update", "--depths", "8", *options]
    environment = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.processes
@pytest.mark.slow
def test_losses_and_gradients_equal_those_of_the_textbook_update(result: dict[str, Any]) -> None:
    (row,) = result["rows"]
    assert row["loss_difference"] < 1e-5
    assert row["gradient_difference"] < 1e-4


@pytest.mark.slow
def test_another_precision_gives_a_gradient_difference() -> None:
    assert differences(*_experiment(4, **SIZES, precision="bfloat16"))["gradient_difference"] > 1e-3


@pytest.mark.processes
@pytest.mark.slow
def test_every_row_has_all_figures(result: dict[str, Any]) -> None:
    """Checks the figures of all options; test_commands.py checks those without options."""
    assert set(result) == {"matmul_flops_per_second", "rows"}
    (row,) = result["rows"]
    compared = {"step_speedup", "first_step_speedup", "loss_difference", "gradient_difference"}
    side_by_side = {"seeds", "seeds_speedup"} | {f"seeds_{name}" for name in TIMED}
    assert set(row) == UPDATE | compared | {f"unrolled_{name}" for name in TIMED} | side_by_side
    assert row.pop("init_memory_ratio") is None  # the state is small
    assert all(np.isfinite(value) for value in row.values() if not isinstance(value, str))
    assert row["first_step_seconds"] == pytest.approx(
        row["init_seconds"] + row["trace_seconds"] + row["compile_seconds"], abs=0.05
    )
    assert row["seeds"] == 2
    assert row["seeds_memory_bytes"] > 1.5 * row["memory_bytes"]
    # With one repetition, the medians of ratios are the ratios of the figures.
    assert row["step_speedup"] == pytest.approx(row["unrolled_step_seconds"] / row["step_seconds"])
    assert row["first_step_speedup"] == pytest.approx(row["unrolled_first_step_seconds"] / row["first_step_seconds"])
    assert row["seeds_speedup"] == pytest.approx(2 * row["step_seconds"] / row["seeds_step_seconds"])
    assert row["peak_share"] == pytest.approx(row["flops_per_second"] / result["matmul_flops_per_second"])
    assert row["gradient_steps_per_second"] == pytest.approx(1 / row["step_seconds"])


def test_the_duration_of_an_update_is_divided_by_its_gradient_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(update, "time", SimpleNamespace(perf_counter=count(step=6.0).__next__))
    timed = update._Timed(lambda: jnp.zeros(()), lambda state, windows: (state + windows, {}), jnp.ones(()))
    for _ in range(3):
        timed.step()
    figures = timed.figures()
    assert timed.state == 4  # the first step is not timed, because its memory is cold
    assert figures["step_seconds"] == 6.0 / update._MINIBATCHES
    assert (figures["init_seconds"], figures["trace_seconds"], figures["compile_seconds"]) == (6.0, 6.0, 6.0)


def test_the_compilation_cache_is_off_even_after_its_use() -> None:
    events: list[str] = []
    jax.monitoring.register_event_listener(lambda event, **_: events.append(event))

    def uses_the_cache(number: float) -> bool:
        events.clear()
        jax.jit(lambda x: x + number).lower(1.0).compile()
        return "/jax/compilation_cache/compile_requests_use_cache" in events

    assert uses_the_cache(1.0)
    with uncached():
        assert not uses_the_cache(2.0)
    assert uses_the_cache(3.0)


def test_zero_seeds_are_refused() -> None:
    with pytest.raises(ConfigError, match="--seeds: 0 is not positive"):
        bench_update([4], batch=8, width=8, seeds=0)


def test_depths_that_compile_for_hours_are_refused() -> None:
    with pytest.raises(ConfigError, match="--depths: 1024 layers one by one compile for hours"):
        bench_update([4, 1024], batch=8, width=8, against="unrolled")


def test_flops_of_a_contrastive_step_by_hand() -> None:
    class Sized(Contrastive):
        def init(self, key: jax.Array) -> tuple[dict, ContrastiveCritic]:
            networks = ({"params": {"kernel": jnp.zeros(entries), "bias": jnp.zeros(7)}} for entries in (2, 3, 5))
            return next(networks), ContrastiveCritic(*networks)

    objective = Sized(NetworkConfig(representation_size=4), AlgorithmConfig(), update._spec(100))
    # A kernel entry costs 2 B in each pass. Actor and goal encoder have 3 passes, the state-action encoder has 5.
    # The energies of B x B pairs take 3 products of 2 B * B * representation_size each.
    assert objective.step_flops(batch=10) == 20 * (3 * 2 + 5 * 3 + 3 * 5) + 3 * 2 * 10 * 10 * 4


def test_another_objective_is_measured_with_its_own_labels_and_has_no_textbook() -> None:
    (row,) = bench_update([4], 8, 8, repeats=1, seconds=0.0, objective="cloning", episode_length=20)["rows"]
    assert set(row) == UPDATE
    assert (row["objective"], row["episode_length"]) == ("cloning", 20)
    with pytest.raises(ConfigError, match=r"^--against: the textbook's update is contrastive, not cloning; leave one"):
        bench_update([4], 8, 8, against="unrolled", objective="cloning")
    with pytest.raises(ConfigError, match=r"^--objective: unknown objective 'clonin'; did you mean 'cloning'"):
        bench_update([4], 8, 8, objective="clonin")
    with pytest.raises(ConfigError, match="--episode-length: 1 is too short; an episode has 2 steps or more"):
        bench_update([4], 8, 8, episode_length=1)


@pytest.mark.processes
@pytest.mark.slow
def test_initialisation_takes_at_least_the_memory_of_the_state() -> None:
    experiment, plan = _experiment(64, batch=8, width=256, precision="float32")
    ratio = init_memory_ratio(experiment, update._spec(plan.window_length))
    assert ratio is not None
    assert 0.9 < ratio < 3
