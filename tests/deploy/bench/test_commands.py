"""Each benchmark prints the same keys in every call, so that two results can be compared."""

import inspect
import json
import math
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from deploy.cli.bench import QUICK, Update, Weights, _Options
from deploy.cli.main import run_command

UPDATE = {
    *("depth", "batch", "width", "precision", "objective", "episode_length"),
    *("init_seconds", "trace_seconds", "compile_seconds"),
    *(
        "first_step_seconds",
        "step_seconds",
        "gradient_steps_per_second",
        "flops_per_second",
        "peak_share",
        "init_memory_ratio",
    ),
    "memory_bytes",
}
ROLLOUT = {
    "env",
    "env_options",
    "num_envs",
    "depth",
    "width",
    "compile_seconds",
    "bare_steps_per_second",
    "rollout_steps_per_second",
    "policy_steps_per_second",
    "collector_steps_per_second",
    "overhead_ratio",
    "collector_ratio",
}
REPLAY = {
    "insert_steps_per_second",
    "ahead_steps_per_second",
    "stock_insert_steps_per_second",
    "ahead_ratio",
    "insert_ratio",
    "sample_megabytes_per_second",
    "stock_sample_megabytes_per_second",
    "sample_ratio",
}
WEIGHTS = {
    "depth",
    "width",
    "device",
    "bytes",
    "to_host_seconds",
    "put_seconds",
    "get_seconds",
    "to_device_seconds",
    "total_seconds",
    "first_total_seconds",
}


def bench(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    assert run_command(["bench", *arguments, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def all_positive(row: dict[str, Any]) -> bool:
    numbers = [value for value in row.values() if not isinstance(value, (str, list, bool))]
    return all(math.isfinite(number) and number > 0 for number in numbers)


@pytest.mark.slow
def test_update(capsys: pytest.CaptureFixture[str]) -> None:
    small = ("--depths", "4", "--batch", "8", "--width", "8", "--repeats", "1", "--seconds", "0.01")
    result = bench(capsys, "update", *small)
    assert [row["depth"] for row in result["rows"]] == [4]
    assert all(row["precision"] == "float32" for row in result["rows"])
    assert all(row.keys() == UPDATE for row in result["rows"])
    assert [row.pop("init_memory_ratio") for row in result["rows"]] == [None]  # the state is small
    assert all(map(all_positive, (result, *result["rows"])))


@pytest.mark.processes
def test_rollout_without_and_with_replay(capsys: pytest.CaptureFixture[str]) -> None:
    small = ("rollout", "--num-envs", "8", "--width", "8", "--repeats", "1")
    with_replay = bench(capsys, *small, "--with-replay")
    assert with_replay.keys() == ROLLOUT
    assert all_positive(with_replay)
    bare, rollout, policy, collector = (
        with_replay[f"{name}_steps_per_second"] for name in ("bare", "rollout", "policy", "collector")
    )
    assert with_replay["overhead_ratio"] == pytest.approx(bare / rollout)  # exact, because there is one repetition
    assert with_replay["collector_ratio"] == pytest.approx(collector / policy)
    without = bench(capsys, *small, "--env-options.bodies", "2")
    assert without.keys() == ROLLOUT
    assert (with_replay["env_options"], without["env_options"]) == ("", "bodies: 2")
    missing = {"collector_steps_per_second", "collector_ratio"}
    assert {name for name, value in without.items() if value is None} == missing
    assert all_positive({name: value for name, value in without.items() if name not in missing})


@pytest.mark.processes
def test_replay(capsys: pytest.CaptureFixture[str]) -> None:
    small = ("--repeats", "1", "--unrolls", "2", "--batches", "1")
    result = bench(capsys, "replay", *small)
    assert result.keys() == REPLAY
    ours = {name: value for name, value in result.items() if value is not None}
    assert REPLAY - ours.keys() == {
        *("stock_insert_steps_per_second", "insert_ratio"),
        *("stock_sample_megabytes_per_second", "sample_ratio"),
    }
    assert all_positive(ours)
    assert ours["ahead_ratio"] == pytest.approx(ours["ahead_steps_per_second"] / ours["insert_steps_per_second"])


@pytest.mark.ray
def test_weights(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    file = tmp_path / "new" / "weights.json"
    result = bench(capsys, "weights", "--depth", "4", "--width", "8", "--repeats", "2", "--save", str(file))
    assert result.keys() == WEIGHTS
    assert all_positive(result)
    assert 4 * 4 * 8 * 8 < result["bytes"] < 2 * 4 * 4 * 8 * 8  # mostly the actor's kernels
    saved = json.loads(file.read_text())
    assert saved["benchmark"] == "weights"
    assert saved["machine"].keys() == {"cpu", "cores", "jax", "device", "git_revision"}
    assert saved["machine"]["device"] == result["device"]
    assert saved["result"] == result


@pytest.mark.parametrize("kind", QUICK, ids=lambda kind: kind.__name__)
def test_options_match_the_arguments_of_the_benchmark(kind: type[_Options]) -> None:
    options = kind(quick=True).sized()
    name = options.name.replace("-", "_")
    function = getattr(import_module(f"deploy.bench.{name}"), f"bench_{name}")
    inspect.signature(function).bind(**options.arguments())


def test_quick_changes_only_options_that_are_not_given() -> None:
    quick = Update(quick=True, depths=(4, 16)).sized()
    assert (quick.depths, quick.batch < Update().batch) == ((4, 16), True)
    assert Weights(quick=True).sized().depth < Weights().sized().depth == 1024


@pytest.mark.parametrize("benchmark", ["update", "rollout", "replay", "weights", "end-to-end"])
def test_zero_repeats_are_refused(benchmark: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(["bench", benchmark, "--repeats", "0"]) == 2
    assert "--repeats: 0 is not positive; use at least 1" in capsys.readouterr().err
