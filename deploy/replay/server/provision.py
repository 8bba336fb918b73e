"""The Python environment of the replay server, which is built once and then shared."""

import contextlib
import functools
import hashlib
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path

import filelock

REQUIREMENTS = Path(__file__).with_name("requirements.txt")
PYTHON_VERSION = "3.11"
POLL_S = 0.2

_BRING_YOUR_OWN = "set FATHOM_REVERB_PYTHON to a Python 3.11 that has dm-reverb 0.14.0"
_CAUSES = {  # signs in uv's error, and the message for the user
    ("no space left", "os error 28)", "quota exceeded", "os error 122)"): (
        "the disk or your quota is full; free 2 GB or set FATHOM_CACHE and UV_CACHE_DIR to another disk"
    ),
    ("failed to initialize cache",): "uv's cache cannot be written; set UV_CACHE_DIR to a folder that you can write",
    ("no interpreter found", "python-downloads", "no download found"): (
        f"the replay server needs Python {PYTHON_VERSION}: none was found and uv could not download one; install it"
    ),
    ("network", "failed to fetch", "error sending request", "dns error", "timed out", "offline"): (
        "the package index cannot be reached and uv's cache lacks what the replay server needs; connect once"
    ),
}


class ProvisionError(RuntimeError):
    """There is no environment. The message is one line with cause and remedy."""


def reverb_python(
    say: Callable[[str], None] = print,
    *,
    requirements: Path = REQUIREMENTS,
    imports: str = "reverb",
    timeout_s: float = 1200.0,
) -> Path:
    """Returns a Python that can import `reverb`, also if several processes call it at once.

    The Python is `FATHOM_REVERB_PYTHON` if set. Otherwise it belongs to an environment in `FATHOM_CACHE` (default
    `~/.cache/fathom`), named by the hash of `requirements`: the first caller builds it with uv, later ones share it.
    `say` receives the progress, a line at a time. Raises `ProvisionError`, after `timeout_s` seconds at the latest.
    """
    if named := os.environ.get("FATHOM_REVERB_PYTHON"):
        return _check_named(Path(named), imports)
    cache = Path(os.environ.get("FATHOM_CACHE") or "~/.cache/fathom").expanduser()
    digest = hashlib.sha256(requirements.read_bytes()).hexdigest()[:16]
    home = cache / f"reverb-{digest}"
    if _is_ready(home):
        return home / "bin" / "python"
    deadline = time.monotonic() + timeout_s
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with _lock(home, deadline, say):
            if not _is_ready(home):
                _build(home, requirements, imports, deadline, say)
    except OSError as error:
        raise ProvisionError(
            f"cannot prepare the replay server's environment in {cache}: {error.strerror or error};"
            f" set FATHOM_CACHE to a folder with 2 GB free, or {_BRING_YOUR_OWN}"
        ) from error
    return home / "bin" / "python"


def _is_ready(home: Path) -> bool:
    """True if the environment was built to its end, and the Python that it links to is still installed."""
    return (home / "READY").exists() and (home / "bin" / "python").exists()


@functools.cache  # the import takes seconds
def _check_named(python: Path, imports: str) -> Path:
    try:
        _check_import(python, imports, timeout_s=120.0)
    except (OSError, ProvisionError) as error:
        raise ProvisionError(
            f"FATHOM_REVERB_PYTHON={python} is no Python that can import {imports} ({error});"
            " correct it, or unset it to have an environment built"
        ) from error
    return python


def _lock(home: Path, deadline: float, say: Callable[[str], None]) -> AbstractContextManager[object]:
    """Acquires the lock of `home`; informs the user if that takes a while."""
    lock = filelock.FileLock(home.with_suffix(".lock"))
    with contextlib.suppress(filelock.Timeout):
        return lock.acquire(timeout=0)
    say("waiting for another process that prepares the replay server's environment")
    try:
        return lock.acquire(timeout=max(0.0, deadline - time.monotonic()), poll_interval=POLL_S)
    except filelock.Timeout as error:
        raise ProvisionError(
            "another process has been preparing the replay server's environment for too long;"
            f" end the process that holds {lock.lock_file} and start again"
        ) from error


def _build(home: Path, requirements: Path, imports: str, deadline: float, say: Callable[[str], None]) -> None:
    """Builds the environment beside `home`, renames it, checks the import there, and writes READY last."""
    for leftover in home.parent.glob(f"{home.name}.building-*"):
        shutil.rmtree(leftover)
    if home.exists():
        shutil.rmtree(home)
    say("preparing the replay server's environment (once, about 1.2 GB)")
    with tempfile.TemporaryDirectory(
        prefix=f"{home.name}.building-", dir=home.parent, ignore_cleanup_errors=True
    ) as building:
        venv = Path(building) / "venv"
        _run_uv(["venv", "--no-project", "--relocatable", "--python", PYTHON_VERSION, str(venv)], deadline)
        python = str(venv / "bin" / "python")
        _run_uv(["pip", "install", "--python", python, "--require-hashes", "-r", str(requirements)], deadline)
        venv.rename(home)
        _check_import(home / "bin" / "python", imports, timeout_s=max(1.0, deadline - time.monotonic()))
        (home / "READY").touch()
    say("the replay server's environment is ready")


def _run_uv(arguments: list[str], deadline: float) -> None:
    """Runs uv with the user's own configuration and package index. Raises `ProvisionError`."""
    try:
        import uv  # here, because commands without a replay server need no uv

        command = [uv.find_uv_bin(), "--no-progress", *arguments]
    except (ImportError, FileNotFoundError) as error:
        raise ProvisionError(
            f"uv, a dependency of Fathom, is not installed; install it, or {_BRING_YOUR_OWN}"
        ) from error
    environ = {k: v for k, v in os.environ.items() if k not in ("VIRTUAL_ENV", "CONDA_PREFIX", "PYTHONPATH")}
    try:
        done = _run(command, environ | {"NO_COLOR": "1"}, max(1.0, deadline - time.monotonic()))
    except subprocess.TimeoutExpired as error:
        raise ProvisionError(
            f"preparing the replay server's environment took too long (uv {arguments[0]});"
            f" start again, what was downloaded is kept, or {_BRING_YOUR_OWN}"
        ) from error
    if done.returncode:
        raise ProvisionError(_cause(done.stderr))


def _cause(stderr: str) -> str:
    """Turns uv's error into one line that names cause and remedy."""
    text = " ".join(stderr.split())
    for signs, message in _CAUSES.items():
        if any(sign in text.lower() for sign in signs):
            return f"{message}, or {_BRING_YOUR_OWN}"
    return f"uv could not build the replay server's environment: {text[-400:]}; or {_BRING_YOUR_OWN}"


def _check_import(python: Path, imports: str, timeout_s: float) -> None:
    """Raises `ProvisionError` unless `python` imports `imports`, `OSError` if it cannot be run."""
    try:
        done = _run([python, "-I", "-c", f"import {imports}"], os.environ | {"TF_CPP_MIN_LOG_LEVEL": "3"}, timeout_s)
    except subprocess.TimeoutExpired as error:
        raise ProvisionError(f"importing {imports} did not end within {timeout_s:.0f} s") from error
    if done.returncode:
        last = done.stderr.strip().splitlines()[-1:] or [f"exit status {done.returncode}"]
        raise ProvisionError(f"importing {imports} fails: {last[0]}")


def _run(command: Sequence[str | Path], environ: dict[str, str], timeout_s: float) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command, env=environ, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=timeout_s
    )
