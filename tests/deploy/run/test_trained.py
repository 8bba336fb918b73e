"""A learner without a checkpoint: one line says whether its run continues, ended early or lost the file."""

import os
import re
import time
from pathlib import Path

import pytest

from deploy.run.record import RunRecord
from deploy.run.run_dir import SILENT_S
from deploy.run.trained import load_trained
from shared.config import ACTIVE, Experiment
from shared.envs.registry import make_envs
from shared.errors import ConfigError
from shared.plan import make_plan
from shared.roles import learner_role

EXPERIMENT = Experiment.model_validate(
    {"env": "point_u_maze", "learners": {"deep": {}}, "algorithm": {"minibatches_per_update": 100}}
)
PLAN = make_plan(EXPERIMENT, make_envs(EXPERIMENT).training.spec)
PROGRESS = f"3 of {PLAN.updates:,} updates"
LINES = {
    ("running", ""): f"the run is still going, {PROGRESS}; wait for its end, when it writes its checkpoints",
    ("failed", "no room"): f"the run ended after {PROGRESS}, failed (no room); resume it with --resume",
    ("interrupted", "stopped by SIGTERM"): f"the run ended after {PROGRESS}, interrupted (stopped by SIGTERM); resume",
}


@pytest.fixture
def record(tmp_path: Path) -> RunRecord:
    record = RunRecord(tmp_path, EXPERIMENT, PLAN)
    record.add(learner_role("deep"), {"index": 3})
    return record


def message(run_dir: Path, learner: str = "deep") -> str:
    with pytest.raises(ConfigError) as error:
        load_trained(run_dir, learner)
    assert len(str(error.value).splitlines()) == 1
    return str(error.value)


@pytest.mark.parametrize(("state", "reason"), LINES)
def test_the_state_of_the_run_is_said(record: RunRecord, state: str, reason: str) -> None:
    record.status(state, reason)
    assert message(record.run_dir).startswith(f"{record.run_dir}: {LINES[state, reason]}")


def test_the_progress_is_that_of_the_learner(record: RunRecord) -> None:
    record.status("running")
    assert f"still going, 0 of {PLAN.updates:,} updates" in message(record.run_dir, ACTIVE)


def test_a_run_that_was_killed_is_silent(record: RunRecord) -> None:
    record.status("running")
    hour_ago = time.time() - 3600
    os.utime(record.run_dir / "status.json", (hour_ago, hour_ago))
    assert SILENT_S < 3600
    line = rf"silent for 3,\d\d\d s, {PROGRESS}; if the run died, resume it with --resume"
    assert re.search(line, message(record.run_dir))


def test_a_lost_checkpoint_of_a_finished_run_is_named(record: RunRecord) -> None:
    record.status("done")
    assert message(record.run_dir) == (
        f"{record.run_dir}/checkpoints/deep: no checkpoint, although the run is done; "
        "put it back, or run again with --overwrite"
    )


def test_a_run_that_has_not_begun_and_a_folder_without_a_run_are_named(record: RunRecord, tmp_path: Path) -> None:
    assert "no checkpoint, and no status of the run; resume it with --resume" in message(record.run_dir)
    assert "holds no run (no config.yaml); name a run directory" in message(tmp_path / "[/b]")
    assert "learner 'wide' is not in this run; it has: active, deep" in message(record.run_dir, "wide")
