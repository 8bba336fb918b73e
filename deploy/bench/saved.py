"""What a benchmark measured, kept in a file with the machine it was measured on, and compared with later figures."""

import json
import math
import os
import platform
from collections.abc import Iterator, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from deploy.run.provenance import git
from shared.errors import ConfigError
from shared.files import write_json

SETTINGS = (
    *("env", "num_envs", "depth", "width", "batch", "minibatches", "budget", "precision", "mode", "seeds"),
    *("collectors", "learners", "environments_per_collector", "samples_per_insert"),
)
"""What was measured, as opposed to what came out: by these, of the whole and of its rows, figures are matched."""
_MAY_DIFFER = {"git_revision"}  # two revisions on one machine are what a comparison is for

Result = dict[str, Any]
Size = tuple[tuple[str, Any], ...]


def describe_machine(device: str | None = None) -> dict[str, Any]:
    """CPU model, cores, JAX's version, device kind and git revision, all of this process's.

    `device`: its kind where another process computed; none: JAX is asked.
    """
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
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def check_save(path: Path) -> None:
    """Before minutes are spent. Raises ConfigError where `path` cannot be written."""
    if path.is_dir():
        raise ConfigError(f"--save: {path} is a folder; name a file")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"--save: {path.parent} cannot be made ({error.strerror}); name another file") from error
    if not os.access(path if path.exists() else path.parent, os.W_OK):
        raise ConfigError(f"--save: {path} cannot be written; name another file")


def save(path: Path, benchmark: str, machine: Mapping[str, Any], result: Result) -> None:
    """Raises ConfigError where `path` cannot be written."""
    try:
        write_json(path, {"benchmark": benchmark, "machine": dict(machine), "result": result})
    except OSError as error:
        raise ConfigError(f"--save: {path} cannot be written ({error.strerror}); name another file") from error


def load(path: Path, benchmark: str) -> dict[str, Any]:
    """What `save` wrote of `benchmark`. Raises ConfigError for everything else."""
    try:
        saved = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"--compare: {path} cannot be read ({error.strerror}); name what --save wrote") from error
    except ValueError as error:
        raise ConfigError(f"--compare: {path} is no JSON; name what --save wrote") from error
    kinds = {"benchmark": str, "machine": dict, "result": dict}
    if not isinstance(saved, dict) or not all(isinstance(saved.get(name), kind) for name, kind in kinds.items()):
        raise ConfigError(f"--compare: {path} holds no saved benchmark; name what --save wrote")
    if saved["benchmark"] != benchmark:
        raise ConfigError(
            f"--compare: {path} is of fathom bench {saved['benchmark']}, this is {benchmark}; "
            f"name what fathom bench {benchmark} --save wrote"
        )
    return saved


def differences(path: Path, then: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """How the machine of a saved file differs from this one, a few words each.

    Raises ConfigError where its figures say nothing of this machine: they come from another kind of device.
    """
    if then.get("device") != now["device"]:
        raise ConfigError(
            f"--compare: {path} was measured on {then.get('device')}, this on {now['device']}; "
            "name a file from this kind of device"
        )
    names = [name for name in now if name not in _MAY_DIFFER and then.get(name) != now[name]]
    return [f"{name} {then.get(name)} then, {now[name]} now" for name in names]


def compare(path: Path, then: Result, now: Result) -> list[dict[str, Any]]:
    """`[{"size", "figure", "then", "now", "ratio"}]`, one for each figure that both have in rows of one size.

    `ratio`: now over then, None where then is 0. Raises ConfigError where they have none in common.
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
    """Every number of the result and of its rows, by size and name."""
    whole = {name: result[name] for name in SETTINGS if name in result}
    for row in [result, *result.get("rows", ())]:
        sized = whole | row
        size = tuple((name, sized[name]) for name in SETTINGS if name in sized)
        for name, value in row.items():
            number = isinstance(value, (int, float)) and not isinstance(value, bool)
            if name not in SETTINGS and number and math.isfinite(value):
                yield (size, name), float(value)
