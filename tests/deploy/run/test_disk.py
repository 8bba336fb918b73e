"""A disk that fills up: roles wait for room and report it, no data are lost, and a run checks its need in advance."""

import os
import re
import threading
import time
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
import pytest

from deploy.recovery.background import BackgroundWriter
from deploy.run.in_process import InProcessRun
from deploy.run.record import RunRecord
from deploy.run.run_dir import check_space
from shared.config import ACTIVE, Experiment
from shared.disk import GB, Disk, DiskNotices, StoppedWaiting
from shared.envs.registry import make_envs
from shared.errors import ConfigError
from shared.metrics import Reporter, read_metrics
from shared.plan import make_plan
from tests.deploy.cases import small

RESERVE_GB = 0.002
EXPERIMENT = Experiment.model_validate(
    small(
        replay={"samples_per_insert": 2.0},
        snapshots={"count": 2},
        supervision={"disk_reserve_gb": RESERVE_GB},
    )
)
ENVS = make_envs(EXPERIMENT)
PLAN = make_plan(EXPERIMENT, ENVS.training.spec)


@pytest.fixture
def small_disk(mount_disk: Callable[[str], Path]) -> Path:
    """A disk of 64 MB."""
    return mount_disk("size=64m")


class Fill:
    """A file that leaves `left_gb` GB of a disk free."""

    def __init__(self, folder: Path, left_gb: float) -> None:
        self._path = folder / "filling"
        free = int((Disk(folder, 0.0).free_gb - left_gb) * GB)
        with open(self._path, "wb") as file:
            os.posix_fallocate(file.fileno(), 0, free)

    def remove_after(self, seconds: float) -> None:
        threading.Timer(seconds, self._path.unlink).start()


class Messages(list[str]):
    """Messages of a run. A second or so after the first one, which announces a wait, there is room again."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self.fill: Fill | None = None

    def say(self, text: str) -> None:
        self.append(text)
        if len(self) == 1 and self.fill is not None:
            self.fill.remove_after(self._seconds)


@pytest.mark.processes
def test_a_wait_for_room_does_not_change_the_result_of_a_run(small_disk: Path, tmp_path: Path) -> None:
    record = RunRecord(small_disk / "run", EXPERIMENT, PLAN)
    said = Messages(seconds=1.5)
    run = InProcessRun(record, ENVS, said.say)

    def progress(states: object) -> None:
        if said.fill is None and run.learners[ACTIVE].updates >= 3:
            said.fill = Fill(small_disk, 0.7 * RESERVE_GB)

    run.run(progress)
    record.close()

    assert len(said) == 2
    waits = rf"the disk of {record.run_dir} has 0\.001\d GB left, too little by supervision\.disk_reserve_gb \(0\.002\)"
    assert re.fullmatch(waits + "; collector-0 waits for room", said[0])
    assert re.fullmatch(rf"the disk of {record.run_dir} has 0\.0[2-6]\d* GB left; collector-0 continues", said[1])
    rows = read_metrics(record.run_dir, "collector-0")
    waited = [row.get("wait/disk space", 0.0) * row["seconds"] for row in rows]
    assert 1.5 <= sum(waited) == max(waited) < 5

    other = RunRecord(tmp_path / "unpaused", EXPERIMENT, PLAN)
    unpaused = InProcessRun(other, ENVS)
    unpaused.run()
    other.close()
    assert run.learners[ACTIVE].updates == PLAN.updates
    states = [each.learners[ACTIVE].state._replace(key=np.zeros(())) for each in (run, unpaused)]
    jax.tree.map(np.testing.assert_array_equal, *states)
    assert [row["index"] for row in rows] == [row["index"] for row in read_metrics(other.run_dir, "collector-0")]


@pytest.mark.processes
def test_a_run_that_has_trained_waits_for_room_for_its_checkpoints(small_disk: Path) -> None:
    record = RunRecord(small_disk / "run", EXPERIMENT, PLAN)
    said = Messages(seconds=0.5)

    def progress(states: object) -> None:
        if said.fill is None and record.updates(ACTIVE) == PLAN.updates:
            said.fill = Fill(small_disk, 0.7 * RESERVE_GB)

    InProcessRun(record, ENVS, said.say).run(progress)
    record.close()
    assert [text.rpartition("; ")[2] for text in said] == ["the run waits for room", "the run continues"]
    assert (record.run_dir / "checkpoints" / ACTIVE).is_dir()


@pytest.mark.processes
def test_the_end_of_a_wait_for_room_counts_as_progress(small_disk: Path) -> None:
    reporter, disk = Reporter(), Disk(small_disk, RESERVE_GB)
    reporter.row({})
    disk.wait_for_room(reporter, should_stop=lambda: True)  # returns at once: there is room
    assert not disk.short
    fill = Fill(small_disk, 0.5 * RESERVE_GB)
    assert disk.short
    fill.remove_after(0.6)
    disk.wait_for_room(reporter, should_stop=lambda: False)
    report = reporter.drain()
    assert disk.roomy
    assert report.waiting_for == ""
    assert report.idle_seconds < 0.5


@pytest.mark.processes
def test_a_disk_at_its_reserve_is_neither_short_nor_roomy(small_disk: Path) -> None:
    disk = Disk(small_disk, RESERVE_GB)
    Fill(small_disk, 1.05 * RESERVE_GB)
    assert (disk.short, disk.roomy) == (False, False)
    assert (Disk(small_disk, 0.0).short, Disk(small_disk, 0.0).roomy) == (False, True)


def test_a_stop_request_ends_a_wait_for_room(tmp_path: Path) -> None:
    reporter, stop, raised = Reporter(), threading.Event(), threading.Event()

    def wait() -> None:
        with pytest.raises(StoppedWaiting, match="asked to stop while waiting for room"):
            Disk(tmp_path, 1e9).wait_for_room(reporter, stop.is_set)
        raised.set()

    thread = threading.Thread(target=wait)
    thread.start()
    deadline = time.monotonic() + 5
    while reporter.drain().waiting_for != "disk space" and time.monotonic() < deadline:
        time.sleep(0.01)
    assert thread.is_alive()
    stop.set()
    thread.join(5)
    assert raised.is_set()


def test_the_start_and_the_end_of_a_wait_are_reported_once(tmp_path: Path) -> None:
    said: list[str] = []
    notices = DiskNotices(Disk(tmp_path, 1.0), said.append)
    notices.update({"collector-0": "disk space", "learner-deep": "replay starved"})
    notices.update({"collector-0": "disk space", "learner-deep": "disk space"})
    notices.update({"learner-deep": "disk space"})  # without a new report of collector-0
    assert [text.rpartition("; ")[2] for text in said] == ["collector-0 waits for room", "learner-deep waits for room"]
    notices.update({"collector-0": "replay full", "learner-deep": "disk space"})
    notices.update({"collector-0": "", "learner-deep": "disk space"})
    assert [text.rpartition("; ")[2] for text in said[2:]] == ["collector-0 continues"]


def test_a_background_writer_holds_a_state_until_it_is_written() -> None:
    background, resume = BackgroundWriter(), threading.Event()
    assert background.held == 0
    background.write(resume.wait)
    assert background.held == 1
    resume.set()
    background.wait()
    assert background.held == 0


def test_needed_space_includes_the_reserve_and_excludes_the_files_of_the_run(tmp_path: Path) -> None:
    spec, free_gb = ENVS.training.spec, Disk(tmp_path, 0.0).free_gb

    def check(reserve_gb: float) -> None:
        supervision = EXPERIMENT.supervision.model_copy(update={"disk_reserve_gb": reserve_gb})
        check_space(tmp_path, EXPERIMENT.model_copy(update={"supervision": supervision}), PLAN, spec)

    check(0.0)
    with pytest.raises(ConfigError, match=r"MB free, this run writes about 6\d MB and leaves .* free \(supervision\."):
        check(free_gb + 10.0)
    with open(tmp_path / "state", "wb") as file:
        file.truncate(int(7 * GB))  # a sparse file: its size counts, but it takes no room
    os.link(tmp_path / "state", tmp_path / "the same state")
    with pytest.raises(ConfigError, match="writes about 0 MB"):
        check(free_gb + 10.0)
    with open(tmp_path / "other", "wb") as file:
        file.truncate(int(7 * GB))
    check(free_gb + 10.0)


def test_needed_space_includes_the_stream_for_a_refill(tmp_path: Path) -> None:
    """A run that is not recorded keeps an eighth of its stream, and as much again for each of three snapshots."""
    spec = ENVS.training.spec
    plan = PLAN.model_copy(update={"unrolls": 10**6, "max_windows": PLAN.environments * 10**5})
    whole_mb = plan.env_steps * 4 * (spec.row_floats + 4) / 2**20

    def needed_mb(**changes: object) -> float:
        changes |= {"supervision": EXPERIMENT.supervision.model_copy(update={"disk_reserve_gb": 1e9})}
        with pytest.raises(ConfigError) as refused:
            check_space(tmp_path, EXPERIMENT.model_copy(update=changes), plan, spec)
        return float(re.findall(r"about ([\d,]+) MB", str(refused.value))[0].replace(",", ""))

    without_stream = needed_mb(stream="elsewhere")
    assert needed_mb(record=True) - without_stream == pytest.approx(whole_mb, abs=2)
    assert needed_mb() - without_stream == pytest.approx(4 * 0.125 * whole_mb, rel=0.01)
    no_snapshots = EXPERIMENT.snapshots.model_copy(update={"count": 0})
    assert needed_mb(snapshots=no_snapshots) - without_stream == pytest.approx(0.125 * whole_mb, rel=0.01)
