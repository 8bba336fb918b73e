"""Signals of schedulers and terminals: the run takes a snapshot, ends in order, and resumes there."""

import gc
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from deploy.mode import Mode
from deploy.recovery.resume import find, restore
from deploy.run.in_process import InProcessRun
from deploy.run.interrupt import GRACE_S, Interrupted, Interruption
from deploy.run.record import RunRecord
from deploy.run.run_dir import read_status
from shared.config import ACTIVE, Experiment
from shared.envs.registry import make_envs
from shared.plan import make_plan
from tests.deploy.cases import small

EXPERIMENT = Experiment.model_validate(
    small(
        replay={"steps_per_environment": 60, "samples_per_insert": 2.0},
        evaluation={"count": 3},
        snapshots={"count": 1},
        budget={"env_steps": 800},
    )
)
ENVS = make_envs(EXPERIMENT)
PLAN = make_plan(EXPERIMENT, ENVS.training.spec)
UPDATES = 3  # at the signal; the planned snapshot comes later


@pytest.fixture
def interruption() -> Iterator[Interruption]:
    """Handlers of all signals; the old ones come back after the test."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, *GRACE_S)}
    interruption = Interruption()
    interruption.install()
    yield interruption
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", [signal.SIGINT, *GRACE_S])
def test_a_signal_raises(number: signal.Signals, interruption: Interruption) -> None:
    name = "the user" if number == signal.SIGINT else number.name
    with pytest.raises(Interrupted, match=f"stopped by {name}") as raised:
        os.kill(os.getpid(), number)
    assert raised.value.exit_status == 128 + number


@pytest.mark.parametrize("number", [signal.SIGINT, *GRACE_S])
def test_a_deferred_signal_is_noted(number: signal.Signals, interruption: Interruption) -> None:
    with interruption.deferred():
        if number != signal.SIGINT:
            os.kill(os.getpid(), number)
            assert interruption.requested == number.name
            interruption.check()  # there is time for a snapshot
        with pytest.raises(Interrupted):  # Ctrl-C and a second signal do not wait for it
            os.kill(os.getpid(), number)


def test_a_run_ends_when_its_snapshot_is_complete_or_too_late(
    interruption: Interruption, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 1000.0
    monkeypatch.setattr("deploy.run.interrupt.time", SimpleNamespace(monotonic=lambda: now))
    with interruption.deferred():
        interruption.check(done=True)  # no signal
        os.kill(os.getpid(), signal.SIGUSR1)
        interruption.check()
        with pytest.raises(Interrupted):
            interruption.check(done=True)
        now += GRACE_S[signal.SIGUSR1]
        with pytest.raises(Interrupted):
            interruption.check()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_ctrl_c_within_the_garbage_collector_is_not_lost(interruption: Interruption) -> None:
    calls = []

    def callback(phase: str, info: object) -> None:
        if not calls:
            calls.append(phase)
            os.kill(os.getpid(), signal.SIGINT)
            sum(range(10))  # the handler runs before this

    gc.callbacks.append(callback)
    try:
        gc.collect()  # Python discards what the handler raises
    finally:
        gc.callbacks.remove(callback)
    assert calls
    with pytest.raises(Interrupted):
        interruption.check()


@pytest.mark.processes
def test_a_hangup_stays_ignored_under_nohup() -> None:
    program = (
        "import os, signal; signal.signal(signal.SIGHUP, signal.SIG_IGN)\n"
        "from deploy.run.interrupt import Interruption; Interruption().install()\n"
        "os.kill(os.getpid(), signal.SIGHUP); print('alive')"
    )
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, text=True).stdout == "alive\n"


@pytest.mark.slow
def test_a_run_resumes_from_the_snapshot_of_its_signal_and_ends_as_if_without(
    tmp_path: Path, interruption: Interruption
) -> None:
    assert PLAN.snapshot_updates[0] > UPDATES + 1
    whole = InProcessRun(RunRecord(tmp_path / "whole", EXPERIMENT, PLAN), ENVS)
    whole.run()
    run_dir = tmp_path / "run"
    record, messages = RunRecord(run_dir, EXPERIMENT, PLAN), []

    def progress(states: object) -> None:
        if record.updates(ACTIVE) == UPDATES and not interruption.requested:
            os.kill(os.getpid(), signal.SIGUSR1)  # two minutes for the snapshot
        if record.ending:
            record.status("running")

    with pytest.raises(Interrupted):
        InProcessRun(record, ENVS, messages.append, interruption=interruption).run(progress)
    record.close()
    assert messages == ["SIGUSR1: the run ends after a snapshot of this round"]
    status = read_status(run_dir)
    assert (status["state"], status["reason"]) == ("interrupted", "stopped by SIGUSR1")
    snapshot = find(run_dir, Mode.IN_PROCESS, say=messages.append)
    assert snapshot is not None
    assert UPDATES <= int(snapshot.folder.name) < PLAN.snapshot_updates[0]
    gc.collect()  # releases the files of the interrupted run
    restore(run_dir, EXPERIMENT, snapshot)
    resumed = InProcessRun(RunRecord(run_dir, EXPERIMENT, PLAN, snapshot), ENVS)
    resumed.run()
    key = np.zeros(())
    ours, theirs = (run.learners[ACTIVE].state._replace(key=key) for run in (resumed, whole))
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)
