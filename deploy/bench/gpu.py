"""All measurements of a new GPU, in parts: those for which there was no time are measured by the next call.

Each part is a process of its own, which has the whole card. Its figures are kept as soon as it is done.
"""

import json
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple, get_args

import yaml

from deploy.bench import end_to_end
from deploy.bench.gpu_page import CURVE, END_TO_END, ROLLOUT, UPDATE, check_page, read_cards, write_page
from deploy.bench.harness import to_stderr
from deploy.bench.saved import describe_machine
from deploy.mode import Mode
from deploy.run.child import STOP_GRACE_S, end_runs, start_command, start_run, why_failed
from deploy.run.summary import read_summary
from deploy.scheduling.packages import module_command
from shared.config import ACTIVE, Experiment
from shared.config_file import load_experiment, parse_experiment
from shared.envs.registry import env_entries
from shared.errors import ConfigError, RunFailed
from shared.files import replace_file, write_json
from shared.metrics import read_metrics
from shared.network_config import NetworkConfig
from shared.roles import EVALUATOR

DEPTHS = (4, 16, 64, 256, 1024)
PRECISIONS = get_args(NetworkConfig.model_fields["precision"].annotation)
COMPARED = 16  # greatest depth at which the textbook's update is measured in each precision
DEEPEST_COMPARED = 64  # in float32 alone: its textbook compiles for minutes
ANT = Path(__file__).parents[1] / "experiments" / "ant.yaml"
QUICK_TASKS = ("ant_u4_maze", "humanoid", "arm_push_easy")  # one of each body
END_TO_END_STEPS = 2_500_000  # of which the first 0.7 million fill replay
PART_S = 900.0  # longest time of a part
LEAST_S = 20.0  # no part is started with less time left
DEVICE_S = 120.0  # longest wait for the name of the device
QUICK_ANT: dict[str, Any] = end_to_end.QUICK | {
    "env": "ant",
    "collector": {"depth": 4, "width": 16, "environments": 8, "unroll_length": 20},
    "evaluation": {"count": 2, "episodes": 8},
    "budget": {"env_steps": 8 * 20 * 60},
}
"""Shows that a learning curve is drawn; its figures mean nothing."""


class Part(NamedTuple):
    """A command that measures. Its files lie in a folder that both functions get."""

    name: str
    start: Callable[[Path], subprocess.Popen]
    read: Callable[[Path, str], dict[str, Any]]
    """Returns what `fathom bench --save` writes. Also gets the device's name."""


def bench_gpu(quick: bool, minutes: float, only: str, out: Path, results: Path, page: Path) -> dict[str, Any]:
    """Measures the parts that the card's file does not hold, and writes the page's tables.

    Args:
        quick: small sizes, on any device.
        minutes: no part is started later, and none goes on for longer.
        only: parts in whose name this occurs.
        out: folder of the parts' own files.
        results: folder of the figures, `CARD.json`.
        page: Markdown file with the lines `BEGIN` and `END`, between which the tables go; a missing one is made.

    Returns:
        `{"device", "parts", "file", "page"}`: `parts` is their number.

    Raises:
        ConfigError: there is no GPU, `page` has no place for tables, or a card's file is damaged.
        RunFailed: parts are left. The page shows the others.
    """
    check_page(page)
    deadline = time.monotonic() + 60 * minutes
    platform, device = _device()
    if platform == "cpu" and not quick:
        raise ConfigError("JAX finds no GPU here; install the extra cuda12 or cuda13, or use --quick on any device")
    card = re.sub("[^a-z0-9]+", "_", device.lower())
    file, work = results / f"{card}.json", out / card
    parts = {part.name: part for part in _parts(quick) if only in part.name}
    results.mkdir(parents=True, exist_ok=True)
    held = read_cards(results).get(file.name, {})
    if known := parts.keys() & held.keys():
        to_stderr(f"{file} holds {len(known)} of {len(parts)} parts; delete it to measure them anew")
    for name, part in parts.items():
        if name in held:
            continue
        seconds = min(PART_S, deadline - time.monotonic())
        if seconds < LEAST_S:
            break
        to_stderr(f"{name}: running")
        try:
            held |= {name: _measure(part, work / name, seconds, device)}
        except RunFailed as error:
            to_stderr(f"{name}: {error}")
            continue
        write_json(file, held)
    write_page(page, results, quick)
    left = [name for name in parts if name not in held]
    if left:
        raise RunFailed(f"left: {', '.join(left)}; the same command goes on with these. Tables of the rest: {page}")
    return {"device": device, "parts": len(parts), "file": str(file), "page": str(page)}


def _device() -> tuple[str, str]:
    """Returns the platform and the name of JAX's first device. This process does not take it, so that others can."""
    script = "import jax; device = jax.devices()[0]; print(device.platform, device.device_kind, sep='\\n')"
    try:
        found = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=DEVICE_S)
    except subprocess.TimeoutExpired as error:
        raise RunFailed(f"JAX found no device within {DEVICE_S:g} s") from error
    if found.returncode:
        raise RunFailed(f"JAX finds no device: {found.stderr.strip().splitlines()[-1]}")
    platform, device = found.stdout.splitlines()[-2:]
    return platform, device


def _measure(part: Part, folder: Path, seconds: float, device: str) -> dict[str, Any]:
    """Executes a part. Raises RunFailed with the reason if it fails, or takes longer than `seconds`."""
    folder.mkdir(parents=True, exist_ok=True)
    child = part.start(folder)
    try:
        status = child.wait(seconds)
    except subprocess.TimeoutExpired as error:
        raise RunFailed(f"not done within {seconds:.0f} s") from error
    finally:
        end_runs([child], STOP_GRACE_S)
    if reason := why_failed(folder, status):
        raise RunFailed(reason)
    return part.read(folder, device)


def _parts(quick: bool) -> Iterator[Part]:
    """Yields all parts, those without which a card is unknown first."""
    update = ["--quick"] if quick else ["--batch", "512", "--width", "256"]
    for precision in PRECISIONS:
        for depth in DEPTHS[:2] if quick else DEPTHS:
            size = ["--depths", depth, "--precision", precision]
            textbook = ["--against", "unrolled"] if depth <= COMPARED else []
            yield _bench(UPDATE, f"{precision}-{depth}", *size, *update, *textbook)
    yield Part(CURVE, lambda folder: start_run(_ant(quick), folder, ["--in-process", "--resume"], {}), _read_curve)
    rollout = ["--num-envs", "2", "--width", "32", "--repeats", "1"] if quick else ["--num-envs", "512"]
    for env in QUICK_TASKS if quick else [entry.env_id for entry in env_entries() if entry.paper]:
        yield _bench(ROLLOUT, env, "--env", env, *rollout)
    for mode in end_to_end.MODES:
        yield _whole_run(mode, quick)
    if not quick:
        size = ["--depths", DEEPEST_COMPARED, "--against", "unrolled"]
        yield _bench(UPDATE, f"float32-{DEEPEST_COMPARED}-textbook", *size, *update)


def _bench(benchmark: str, of: str, *arguments: object) -> Part:
    """Returns the part that is one call of `fathom bench`."""
    return Part(f"{benchmark}-{of}", lambda folder: _start_bench(folder, benchmark, *arguments), _read_bench)


def _start_bench(folder: Path, benchmark: str, *arguments: object) -> subprocess.Popen:
    options = [*map(str, arguments), "--save", str(folder / "figures.json")]
    return start_command(module_command("deploy.cli", "bench", benchmark, *options), folder, {})


def _read_bench(folder: Path, device: str) -> dict[str, Any]:
    return json.loads((folder / "figures.json").read_bytes())


def _whole_run(mode: Mode, quick: bool) -> Part:
    def start(folder: Path) -> subprocess.Popen:
        if mode is Mode.DISTRIBUTED and not find_spec("ray"):
            raise RunFailed("needs Ray, which is not installed")
        if quick:
            return _start_bench(folder, END_TO_END, "--modes", mode, "--quick")
        changed = {"budget": {"env_steps": END_TO_END_STEPS}, "evaluation": {"count": 1}}
        path = folder / "experiment.yaml"
        replace_file(path, yaml.safe_dump(_ant(quick).model_dump(mode="json") | changed))
        return _start_bench(folder, END_TO_END, path, "--modes", mode)

    return Part(f"{END_TO_END}-{mode}", start, _read_bench)


def _ant(quick: bool) -> Experiment:
    return parse_experiment(QUICK_ANT) if quick else load_experiment(ANT)


def _read_curve(run_dir: Path, device: str) -> dict[str, Any]:
    """Returns the evaluations and speed of a finished run, in the form of a benchmark."""
    summary, evaluations = read_summary(run_dir), read_metrics(run_dir, EVALUATOR)
    shown = ("env_steps", "time_at_goal", "success_rate")
    figures = {
        "env": summary["env"],
        "env_steps_per_second": summary["collector"]["env_steps_per_second"],
        "gradient_steps_per_second": summary["learners"][ACTIVE]["gradient_steps_per_second"],
        "seconds_to_first_update": sum(summary["start"]["phases"].values()),
        "memory_mb": summary["memory_mb"]["total"],
        "episode_length": summary["plan"]["window_length"],
        "rows": [{name: row[name] for name in shown} for row in evaluations],
    }
    return {"benchmark": CURVE, "machine": describe_machine(device), "result": figures}
