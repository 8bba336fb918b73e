"""Preparation of JAX, the check of a recording, and the line that explains a failed run."""

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from deploy.run.setup import check_stream, explain_failure, make_envs_and_plan
from shared.config import Experiment
from shared.errors import ConfigError
from shared.stream.format import describe
from tests.deploy.cases import small
from tests.shared.stream_cases import downgrade, record

COMPILE = """
from deploy.run.setup import prepare_jax
prepare_jax(cpu_only=True)
import jax
assert jax.jit(lambda x: x + 1)(1) == 2
"""
FULL_BYTES = 64
FULL = f"""
from deploy.run.setup import prepare_jax
prepare_jax(cpu_only=True)
import resource
import jax

@jax.jit
def before(x):
    return x + 1

@jax.jit
def after(x):
    return x + 2

assert before(1) == 2
resource.setrlimit(resource.RLIMIT_FSIZE, ({FULL_BYTES}, {FULL_BYTES}))
assert after(1) == 3
"""


def errors_of(program: str, cache: Path) -> str:
    """Returns what a Python program writes to standard error."""
    environ = {name: value for name, value in os.environ.items() if name != "JAX_COMPILATION_CACHE_DIR"}
    environ |= {"FATHOM_CACHE": str(cache), "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
    command = [sys.executable, "-c", program]
    ran = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=60)
    assert ran.returncode == 0, ran.stderr
    return ran.stderr


@pytest.mark.processes
def test_a_compilation_cache_that_cannot_be_written_is_one_line() -> None:
    assert errors_of(COMPILE, Path("/proc/cache")) == (
        "JAX's compilation cache /proc/cache/xla cannot be written (No such file or directory), so every process "
        "compiles anew; set FATHOM_CACHE to a folder that you can write\n"
    )


@pytest.mark.processes
def test_a_compilation_cache_whose_disk_fills_up_is_no_flood(tmp_path: Path) -> None:
    assert errors_of(FULL, tmp_path) == ""
    sizes = {path.name.partition("-")[0]: path.stat().st_size for path in (tmp_path / "xla").iterdir()}
    assert sizes["jit_before"] > FULL_BYTES >= sizes.get("jit_after", 0)


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


@pytest.mark.parametrize(
    ("shared", "own", "named"),
    [
        ({}, {"objective": "sac"}, "learners.passive.algorithm.objective: sac"),
        ({}, {"objective": "chrono"}, "learners.passive.algorithm.objective: chrono"),
        ({}, {"final_goals": True}, "learners.passive.algorithm.final_goals: True"),
        ({"final_goals": True}, {}, "algorithm.final_goals: True"),
    ],
)
def test_a_recording_without_ends_is_refused_to_learners_that_need_ends(
    shared: dict, own: dict, named: str, tmp_path: Path
) -> None:
    new, old = tmp_path / "new", tmp_path / "old"
    learners = {"passive": {"algorithm": own}}
    experiment = Experiment.model_validate(small(algorithm=shared, learners=learners, stream=str(new)))
    envs, plan = make_envs_and_plan(experiment)
    downgrade(record(new, describe(experiment, plan, envs.training.spec)), old)
    assert check_stream(experiment, plan, envs) == str(new)
    with pytest.raises(ConfigError) as caught:
        check_stream(experiment.model_copy(update={"stream": str(old)}), plan, envs)
    assert str(caught.value) == (
        f"{named} needs to know how episodes end, and the stream {old} of an older version does not say it; record it "
        "again, or leave out learner passive"
    )
