"""Provenance of a run: command, machine, library versions and git revision, written into its config.yaml."""

import contextlib
import importlib.metadata
import os
import platform
import subprocess
import sys
from collections import Counter
from pathlib import Path

import yaml

from shared.config import Experiment
from shared.files import replace_file

_LIBRARIES = ("jax", "jaxlib", "flax", "optax", "numpy", "brax", "mujoco", "ray", "grpcio", "orbax-checkpoint")
_VERSIONED = ("fathom-rl", *_LIBRARIES)


def write_config(run_dir: Path, experiment: Experiment) -> None:
    """Writes config.yaml: the experiment with every default filled in, and its provenance. `fathom run` accepts it."""
    versions: dict[str, str | None] = dict.fromkeys(_VERSIONED)
    for package in _VERSIONED:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[package] = importlib.metadata.version(package)
    provenance = {
        "command": ["fathom", *sys.argv[1:]],
        "machine": _machine(),
        "python": platform.python_version(),
        "versions": versions,
        "xla_flags": os.environ.get("XLA_FLAGS", ""),
        "physics_precision": "float32",  # also on GPUs, whose default is TF32; a network's is its key `precision`
        "git_revision": git("rev-parse", "HEAD"),
        "git_dirty": bool(git("status", "--porcelain", "--untracked-files=no")),
    }
    resolved = {"provenance": provenance, **experiment.model_dump(mode="json")}
    replace_file(run_dir / "config.yaml", yaml.safe_dump(resolved, sort_keys=False))


def git(*arguments: str) -> str | None:
    """Returns git's answer about the checkout that holds this file; none outside of a checkout."""
    return _answer("git", "-C", str(Path(__file__).parent), *arguments)


def _machine() -> str:
    """Returns the cores and GPUs of the driver's machine; other nodes of a cluster may differ."""
    gpus = Counter((_answer("nvidia-smi", "--query-gpu=name", "--format=csv,noheader") or "").splitlines())
    cores = f"{os.cpu_count()} cores {platform.machine()}"
    return ", ".join([cores, *(f"{count} {name}" for name, count in gpus.items())])


def _answer(*command: str) -> str | None:
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return answer.stdout.strip() if answer.returncode == 0 else None
