"""Preparation of JAX, and the line that explains a failed run."""

import errno
import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

from deploy.run.setup import explain_failure

COMPILE = """
from deploy.run.setup import prepare_jax
prepare_jax(cpu_only=True)
import jax
assert jax.jit(lambda x: x + 1)(1) == 2
"""
CPU = """
import jax
from jax._src.lib import xla_client
print(xla_client.get_topology_for_devices(jax.devices()).fingerprint())
"""


def run(program: str, **environ: str) -> tuple[str, str]:
    """Returns the output and the errors of a Python program."""
    variables = {name: value for name, value in os.environ.items() if name != "JAX_COMPILATION_CACHE_DIR"}
    command = [sys.executable, "-c", program]
    ran = subprocess.run(command, env=variables | environ, capture_output=True, text=True, timeout=60)
    assert ran.returncode == 0, ran.stderr
    return ran.stdout, ran.stderr


@pytest.mark.processes
def test_a_compilation_cache_that_cannot_be_written_is_one_line() -> None:
    _, errors = run(COMPILE, FATHOM_CACHE="/proc/cache", JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS="0")
    assert errors == (
        "JAX's compilation cache /proc/cache/xla cannot be written (No such file or directory), so every process "
        "compiles anew; set FATHOM_CACHE to a folder that you can write\n"
    )


@pytest.mark.processes
def test_a_compilation_cache_whose_disk_fills_up_is_no_flood(tmp_path: Path) -> None:
    (tmp_path / "xla").mkdir()
    full = COMPILE.replace(
        "import jax", "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (64, 64)); import jax"
    )
    _, errors = run(full, FATHOM_CACHE=str(tmp_path), JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS="0")
    assert errors == ""


@pytest.mark.processes
@pytest.mark.skipif(platform.machine() != "x86_64", reason="the flag is for x86")
def test_kinds_of_cpu_share_no_entry_of_the_compilation_cache() -> None:
    """JAX's cache key has jaxlib's version and this fingerprint, so one folder serves all of them."""
    same, other = (run(CPU, XLA_FLAGS=f"--xla_cpu_{flag}")[0] for flag in ("enable_fast_math=true", "max_isa=SSE4_2"))
    assert same == run(CPU)[0] != other


@pytest.mark.parametrize(
    ("number", "explanation"),
    [
        (errno.ENOSPC, "No space left on device; make room or name another --run-dir"),
        (errno.EDQUOT, "Disk quota exceeded; make room or name another --run-dir"),
        (errno.EACCES, "Permission denied; correct that or name another --run-dir"),
    ],
)
def test_a_system_error_names_the_file_and_the_remedy(number: int, explanation: str, tmp_path: Path) -> None:
    arrow = OSError(number, f"Error writing bytes to file. Detail: [errno {number}]")  # as pyarrow words it
    for error, place in ((arrow, tmp_path), (OSError(number, "", "file"), "file")):
        assert explain_failure(error, tmp_path) == f"{place}: {explanation}, then run again"


def test_an_unexpected_error_is_one_line_although_its_log_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "logs").touch()
    line = explain_failure(KeyError("a\nb"), tmp_path)
    assert line == r"KeyError: 'a\nb' (details: not written, File exists)"
