"""Limits on the time of a role's work, by the size of an update and by measured calls."""

import pytest

from deploy.run import limits
from shared.config import Experiment
from shared.envs.registry import make_envs
from shared.plan import make_plan

VALUES = {
    "env": "point_u_maze",
    "collector": {"depth": 4, "environments": 8, "unroll_length": 50},
    "learners": {"deep": {"depth": 64}},
    "algorithm": {"batch_size": 256, "windows_per_update": 64, "minibatches_per_update": 40},
}


def lines_and_first_call(**changes: object) -> tuple[list[str], float]:
    """Returns the limits that an update is certain to exceed, and the limit of a first call."""
    experiment = Experiment.model_validate(VALUES | changes)
    spec = make_envs(experiment).training.spec
    plan = make_plan(experiment, spec)
    return limits.find_short_limits(experiment, plan, spec), limits.first_call_s(experiment, plan, spec)


def test_limits_that_an_update_exceeds_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "_may_have_gpu", lambda: False)
    monkeypatch.setattr("os.cpu_count", lambda: 2)
    assert lines_and_first_call()[0] == []
    short = {"supervision": {"progress_seconds": 1e-3}, "replay": {"timeout_seconds": 1e-3}}
    progress, timeout = lines_and_first_call(**short)[0]
    assert progress.startswith("supervision.progress_seconds: 0.001 s is less than an update of learner deep")
    assert timeout.startswith("replay.timeout_seconds: 0.001 s")


def test_a_first_call_has_time_to_compile_and_for_a_slow_update(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "_may_have_gpu", lambda: False)
    two_cores, sixteen_cores = 2, 16
    seconds = {}
    for cores in (two_cores, sixteen_cores):
        monkeypatch.setattr("os.cpu_count", lambda cores=cores: cores)
        seconds[cores] = lines_and_first_call()[1] - limits.COMPILE_S
    assert seconds[two_cores] == pytest.approx(8 * seconds[sixteen_cores])
    # An update of depth 64 at batch 256 takes 9 s on two cores (docs/benchmarks.md); the limit is far above.
    assert 40 < seconds[two_cores] < 2000
