"""Saved results of benchmarks: a file with the figures and their machine, to which later figures are compared."""

import json
import math
import os
import platform
import re
from collections.abc import Iterator, Mapping
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any

from deploy.run.provenance import git
from shared.errors import ConfigError
from shared.files import write_json

SETTINGS = (
    *("env", "num_envs", "depth", "width", "batch", "minibatches", "budget", "precision", "mode", "seeds"),
    *("collectors", "learners", "environments_per_collector", "samples_per_insert", "objective", "episode_length"),
)
"""Values of a result, or of a row, that say what was measured. Figures are compared where these are equal."""
_IMPLIED = {("objective", "contrastive"), ("episode_length", 100)}  # in files from before these settings
_MAY_DIFFER = {"git_revision"}  # most comparisons are of two revisions on one machine

Result = dict[str, Any]
Size = tuple[tuple[str, Any], ...]


def describe_machine(device: str | None = None) -> dict[str, Any]:
    """Returns CPU model, cores, JAX version, git revision and device kind: JAX's, unless another process computed."""
    if device is None:
        import jax

        device = jax.devices()[0].device_kind
    return {
        "cpu": _cpu_model(),
        "cores": os.cpu_count(),
        "jax": version("jax"),
        "device": device,
        "git_revision": git("rev-parse", "HEAD"),
    }


def _cpu_model() -> str:
    with suppress(OSError):  # not Linux
        if found := re.search(r"^model name\s*: (.+)", Path("/proc/cpuinfo").read_text(encoding="utf-8"), re.MULTILINE):
            return found[1]
    return platform.processor() or platform.machine()


def check_save(path: Path) -> None:
    """Raises ConfigError if `path` cannot be written; called before the minutes of a measurement."""
    if path.is_dir():
        raise ConfigError(f"--save: {path} is a folder; name a file")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"--save: {path.parent} cannot be made ({error.strerror}); name another file") from error
    if not os.access(path if path.exists() else path.parent, os.W_OK):
        raise ConfigError(f"--save: {path} cannot be written; name another file")


def save(path: Path, benchmark: str, machine: Mapping[str, Any], result: Result) -> None:
    """Writes a result. Raises ConfigError if `path` cannot be written."""
    try:
        write_json(path, {"benchmark": benchmark, "machine": dict(machine), "result": result})
    except OSError as error:
        raise ConfigError(f"--save: {path} cannot be written ({error.strerror}); name another file") from error


def load(path: Path, benchmark: str) -> dict[str, Any]:
    """Returns the content of a file that `save` wrote for `benchmark`. Raises ConfigError for any other file."""
    try:
        saved = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(
            f"--compare: {path} cannot be read ({error.strerror}); name a file that --save wrote"
        ) from error
    except ValueError as error:
        raise ConfigError(f"--compare: {path} is not JSON; name a file that --save wrote") from error
    kinds = {"benchmark": str, "machine": dict, "result": dict}
    if not isinstance(saved, dict) or not all(isinstance(saved.get(name), kind) for name, kind in kinds.items()):
        raise ConfigError(f"--compare: {path} holds no saved benchmark; name a file that --save wrote")
    if saved["benchmark"] != benchmark:
        raise ConfigError(
            f"--compare: {path} is from fathom bench {saved['benchmark']}, not {benchmark}; "
            f"name a file that fathom bench {benchmark} --save wrote"
        )
    return saved


def differences(path: Path, then: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Compares the machine of a saved file (`then`) with this one (`now`); returns a few words on each difference.

    Raises ConfigError if the devices differ in kind: their figures cannot be compared.
    """
    if then.get("device") != now["device"]:
        raise ConfigError(
            f"--compare: {path} was measured on {then.get('device')}, this on {now['device']}; "
            "name a file from this kind of device"
        )
    names = [name for name in now if name not in _MAY_DIFFER and then.get(name) != now[name]]
    return [f"{name} {then.get(name)} then, {now[name]} now" for name in names]


def compare(path: Path, then: Result, now: Result) -> list[dict[str, Any]]:
    """Returns `[{"size", "figure", "then", "now", "ratio"}]` for each figure of equal size in both results.

    `ratio`: now to then, None if then is 0. Raises ConfigError if no figure is in both.
    """
    before = dict(_figures(then))
    rows = [
        {
            "size": " ".join(f"{name}={value}" for name, value in size),
            "figure": figure,
            "then": before[size, figure],
            "now": value,
            "ratio": value / before[size, figure] if before[size, figure] else None,
        }
        for (size, figure), value in _figures(now)
        if (size, figure) in before
    ]
    if not rows:
        raise ConfigError(f"--compare: {path} holds figures of other sizes only; repeat the call that saved it")
    return rows


def _figures(result: Mapping[str, Any]) -> Iterator[tuple[tuple[Size, str], float]]:
    """Yields every number of the result and of its rows, by size and name."""
    whole = {name: result[name] for name in SETTINGS if name in result}
    for row in [result, *result.get("rows", ())]:
        sized = whole | row
        given = ((name, sized[name]) for name in SETTINGS if name in sized)
        size = tuple(setting for setting in given if setting not in _IMPLIED)
        for name, value in row.items():
            number = isinstance(value, (int, float)) and not isinstance(value, bool)
            if name not in SETTINGS and number and math.isfinite(value):
                yield (size, name), float(value)
