"""Runs in one process: determinism, the plan, the run directory, and training on a recorded stream."""

import json
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from collector.evaluator import Evaluator
from deploy.mode import Mode
from deploy.run.evaluations import Evaluations
from deploy.run.in_process import InProcessRun
from deploy.run.record import RunRecord
from deploy.run.rounds import Rounds
from deploy.run.snapshot_taker import SnapshotTaker
from deploy.run.summary import summarise
from learner.learner import Learner
from shared import checkpoint
from shared.config import ACTIVE, Experiment
from shared.config_file import load_experiment
from shared.envs.registry import make_envs
from shared.metrics import metrics_files, read_metrics
from shared.params import Policy
from shared.plan import make_plan
from shared.roles import learner_role
from shared.stream.format import describe
from shared.stream.read import open_stream
from shared.types import CONTINUES, TRUNCATED
from tests.deploy.cases import PASSIVE, small
from tests.shared.stream_cases import downgrade

EXPERIMENT = Experiment.model_validate(
    small(
        collector={"actors": 2},
        learners=PASSIVE,
        replay={"samples_per_insert": 2.0},
        evaluation={"count": 3},
        record=True,
    )
)
ENVS = make_envs(EXPERIMENT)
PLAN = make_plan(EXPERIMENT, ENVS.training.spec)
TIMES = ("time", "start", "memory_mb", "seconds", "env_steps_per_second", "update_seconds", "gradient_steps_per_second")


class Result(NamedTuple):
    directory: Path
    summary: dict[str, Any]
    run: InProcessRun


def run_experiment(directory: Path, experiment: Experiment = EXPERIMENT, mode: Mode = Mode.IN_PROCESS) -> Result:
    record = RunRecord(directory, experiment, PLAN)
    run = InProcessRun(record, ENVS, mode=mode)
    run.run(on_progress=lambda states: record.status("running"))
    record.status("done")
    record.close()
    return Result(directory, summarise(record, ENVS.training.spec), run)


@pytest.fixture(scope="module")
def two_runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Result, Result]:
    """Two runs of the same experiment."""
    return run_experiment(tmp_path_factory.mktemp("one")), run_experiment(tmp_path_factory.mktemp("other"))


def without_times(value: Any) -> Any:
    if isinstance(value, dict):
        kept = {name: item for name, item in value.items() if name not in TIMES and not name.startswith("wait/")}
        return {name: without_times(item) for name, item in kept.items()}
    return [without_times(item) for item in value] if isinstance(value, list) else value


def roles_with_metrics(directory: Path) -> list[str]:
    """Returns the names of the files of metrics, without those about the process."""
    return [name for name in metrics_files(directory) if name not in ("memory", "start")]


@pytest.mark.slow
def test_a_run_is_deterministic(two_runs: tuple[Result, Result]) -> None:
    one, other = two_runs
    assert without_times(one.summary) == without_times(other.summary)
    roles = roles_with_metrics(one.directory)
    compared = ["collector-0", "collector-1", "evaluator", "learner-active", "learner-passive", "replay"]
    assert roles == [*compared, "snapshots"]
    for role in compared:
        assert without_times(read_metrics(one.directory, role)) == without_times(read_metrics(other.directory, role))


@pytest.mark.slow
def test_every_metric_of_a_run_is_in_the_catalogue(
    two_runs: tuple[Result, Result], uncatalogued: Callable[[Path], dict]
) -> None:
    assert uncatalogued(two_runs[0].directory) == {}


@pytest.mark.slow
def test_learners_that_train_as_one_computation_match_separate_ones(
    two_runs: tuple[Result, Result], tmp_path: Path
) -> None:
    together = run_experiment(tmp_path, mode=Mode.TOGETHER)
    assert together.run._updates[ACTIVE] is together.run._updates["passive"]
    for name in (ACTIVE, "passive"):
        rows, expected = (read_metrics(ran.directory, f"learner-{name}") for ran in (together, two_runs[0]))
        assert [row["updates"] for row in rows] == [row["updates"] for row in expected]
        # Rounding changes the policy, and so the data of later updates. Only the first rows are comparable.
        first, alone = (without_times(each[0]) for each in (rows, expected))
        assert first == pytest.approx(alone, rel=1e-3)


@pytest.mark.slow
def test_all_learners_make_all_their_updates(two_runs: tuple[Result, Result]) -> None:
    run, summary = two_runs[0].run, two_runs[0].summary
    assert 1 < PLAN.updates == run.learners[ACTIVE].updates == run.learners["passive"].updates
    assert summary["env_steps"] == PLAN.env_steps == 560
    for name, learner in summary["learners"].items():
        seconds = [row["update_seconds"] for row in read_metrics(two_runs[0].directory, f"learner-{name}")]
        assert learner["gradient_steps_per_second"] == pytest.approx(4 / np.mean(seconds[1:]))  # the first compiles
        assert learner["gradient_steps"] == PLAN.updates * 4
        assert learner["utd"] == pytest.approx(PLAN.updates * 4 / 560)
    spi = PLAN.updates * 8 / (PLAN.windows - PLAN.prefill_windows)
    assert [row["samples_per_insert"] for row in summary["learners"].values()] == pytest.approx([spi, spi])
    assert 1.5 < spi <= 2
    for name in (ACTIVE, "passive"):
        assert read_metrics(two_runs[0].directory, "replay")[-1][f"{name}/inserted"] == PLAN.windows
        rows = read_metrics(two_runs[0].directory, f"learner-{name}")
        assert [row["updates"] for row in rows] == list(range(1, PLAN.updates + 1))
        assert all(row["samples_per_insert"] <= 2 for row in rows)
        assert all(0 <= row["sample_age"] <= 400 for row in rows)


@pytest.mark.slow
def test_the_collector_learners_policy_gathers_the_data(two_runs: tuple[Result, Result]) -> None:
    for index in range(2):
        versions = [row["policy_version"] for row in read_metrics(two_runs[0].directory, f"collector-{index}")]
        assert versions == sorted(versions)
        assert len(versions) == PLAN.unrolls
        assert versions[0] == 0
        assert versions[-1] == PLAN.updates_after(PLAN.windows_after(PLAN.unrolls - 1)) > 0


@pytest.mark.slow
def test_learners_differ_in_their_losses_and_windows(two_runs: tuple[Result, Result]) -> None:
    rows = {name: read_metrics(two_runs[0].directory, f"learner-{name}") for name in (ACTIVE, "passive")}
    assert rows[ACTIVE][0]["critic/loss"] != rows["passive"][0]["critic/loss"]
    assert rows[ACTIVE][0]["sample_age"] != rows["passive"][0]["sample_age"]  # each draws its own windows


@pytest.mark.slow
@pytest.mark.parametrize("same", [True, False])
def test_learners_on_the_same_batches_that_begin_alike_stay_equal(same: bool, tmp_path: Path) -> None:
    """Windows, their goals, the order of rows and the noise of the losses are then all the same."""
    replay = EXPERIMENT.replay.model_copy(update={"same_batches": same, "sampling": "every_environment"})
    experiment = EXPERIMENT.model_copy(update={"replay": replay, "record": False})
    record = RunRecord(tmp_path, experiment, PLAN)
    run = InProcessRun(record, ENVS)
    active, passive = run.learners[ACTIVE], run.learners["passive"]
    passive.state = jax.tree.map(jnp.copy, active.state)._replace(key=passive.state.key)
    run.run()
    record.close()
    ages = [[row["sample_age"] for row in read_metrics(tmp_path, f"learner-{name}")] for name in run.learners]
    equal = jax.tree.map(lambda one, other: bool((one == other).all()), active.state.actor, passive.state.actor)
    assert (ages[0] == ages[1]) == same
    assert all(jax.tree.leaves(equal)) == same


@pytest.mark.slow
def test_evaluations_are_at_the_planned_updates(two_runs: tuple[Result, Result]) -> None:
    rows = read_metrics(two_runs[0].directory, "evaluator")
    for name in (ACTIVE, "passive"):
        own = [row for row in rows if row["learner"] == name]
        assert tuple(row["updates"] for row in own) == PLAN.evaluation_updates
        assert [row["env_steps"] for row in own] == [PLAN.env_steps_at(updates) for updates in PLAN.evaluation_updates]
        assert len({row["final_distance"] for row in own}) > 1
        assert two_runs[0].summary["learners"][name]["last_time_at_goal"] == own[-1]["time_at_goal"]


@pytest.mark.slow
def test_the_run_directory_holds_configuration_status_and_checkpoints(two_runs: tuple[Result, Result]) -> None:
    directory, _, run = two_runs[0]
    assert load_experiment(directory / "config.yaml") == EXPERIMENT
    status = json.loads((directory / "status.json").read_text())
    assert status["state"] == "done"
    assert status["env_steps"] == status["budget"] == 560
    assert status["updates"] == {ACTIVE: PLAN.updates, "passive": PLAN.updates}
    assert status["updates_planned"] == PLAN.updates
    assert (directory / "tensorboard" / "learner-passive").is_dir()
    for name, learner in run.learners.items():
        like = Learner.initial_state(EXPERIMENT, ENVS.training.spec, name)
        restored = checkpoint.load(directory / "checkpoints" / name, like)
        assert int(restored.updates) == PLAN.updates
        assert jax.random.key_data(restored.key).tolist() == jax.random.key_data(learner.state.key).tolist()
        key = np.zeros(())
        jax.tree.map(np.testing.assert_array_equal, restored._replace(key=key), learner.state._replace(key=key))


@pytest.mark.slow
@pytest.mark.parametrize("has_ends", [True, False])
def test_training_on_a_recorded_stream_makes_an_identical_learner(
    two_runs: tuple[Result, Result], tmp_path: Path, has_ends: bool
) -> None:
    recorded = two_runs[0]
    directory = recorded.directory / "stream"
    if not has_ends:
        directory = downgrade(directory, tmp_path / "version-2")
    stream = open_stream(directory)
    stream.check_fits(describe(EXPERIMENT, PLAN, ENVS.training.spec))
    number, columns = next(stream.shard(1))
    assert (number, columns.floats.shape) == (0, (4, 5, 8 if has_ends else 6))
    tmp_path /= "run"
    fed = run_experiment(tmp_path, EXPERIMENT.model_copy(update={"record": False, "stream": str(stream.directory)}))
    assert list(fed.run.learners) == ["passive"]
    states = [ran.run.learners["passive"].state._replace(key=np.zeros(())) for ran in (fed, recorded)]
    jax.tree.map(np.testing.assert_array_equal, *states)
    windows = fed.run._ring.sample(64, np.random.default_rng(0))
    ends, final = windows.ints[..., 3], windows.floats[..., 6:]
    assert {*np.unique(ends)} == ({CONTINUES, TRUNCATED} if has_ends else {CONTINUES})
    assert (np.any(final != 0, axis=-1) == (ends != CONTINUES)).all()
    ours, theirs = (
        [row for row in read_metrics(ran.directory, "evaluator") if row["learner"] == "passive"]
        for ran in (fed, recorded)
    )
    assert without_times(ours) == without_times(theirs)
    assert fed.summary["env_steps"] == 560
    coverage = {name: recorded.summary["collector"][name] for name in ("coverage", "coverage_entropy")}
    assert without_times(fed.summary["collector"]) == coverage
    assert roles_with_metrics(tmp_path) == [
        "evaluator",
        "feeder-0",
        "feeder-1",
        "learner-passive",
        "replay",
        "snapshots",
    ]


def test_repeated_rows_are_dropped_and_counts_of_replay_are_kept(tmp_path: Path) -> None:
    record = RunRecord(tmp_path, EXPERIMENT, PLAN)
    for updates, again in ((1, False), (2, False), (2, True), (3, True)):
        record.add(learner_role("passive"), {"index": updates, "again": again})
    for sampled in (8, 16):  # the last samples are drawn after the last environment step
        record.add_counts({"passive/sampled": sampled})
    record.close()
    assert [row["again"] for row in read_metrics(tmp_path, "learner-passive")] == [False, False, True]
    assert [row["passive/sampled"] for row in read_metrics(tmp_path, "replay")] == [8, 16]


@pytest.mark.slow
def test_the_first_update_and_unrolls_do_not_wait_for_the_first_evaluation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first evaluation ends only after the second update, which needs a further unroll."""
    second_update, evaluated = threading.Barrier(2), list[int]()
    evaluate, run_update = Evaluator.evaluate, Learner.update

    def update(self: Learner, windows: Any) -> Any:
        row = run_update(self, windows)
        if self.updates == 2:
            second_update.wait(60)
        return row

    def wait_and_evaluate(self: Evaluator, learner: str, policy: Policy) -> Any:
        if policy.version == 0:
            second_update.wait(60)
        evaluated.append(policy.version)
        return evaluate(self, learner, policy)

    monkeypatch.setattr(Learner, "update", update)
    monkeypatch.setattr(Evaluator, "evaluate", wait_and_evaluate)
    run_experiment(tmp_path, EXPERIMENT.model_copy(update={"learners": {}}))
    assert tuple(evaluated) == PLAN.evaluation_updates


def test_evaluations_are_recorded_in_the_order_of_updates_and_learners(tmp_path: Path) -> None:
    record = RunRecord(tmp_path, EXPERIMENT, PLAN)
    names, (first, second, *_) = (ACTIVE, "passive"), PLAN.evaluation_updates
    permits, rounds = threading.Semaphore(), Rounds(0, list(names))
    evaluations = Evaluations(record, Evaluator(EXPERIMENT, PLAN, ENVS.evaluations, {}), permits, rounds)

    def come(updates: int, learner: str) -> None:
        evaluations.record_rows([{"updates": updates, "learner": learner, "index": updates}])

    come(second, ACTIVE)
    come(first, "passive")
    assert read_metrics(tmp_path, "evaluator") == []
    come(first, ACTIVE)
    rows = [(row["updates"], row["learner"]) for row in read_metrics(tmp_path, "evaluator")]
    assert rows == [(first, ACTIVE), (first, "passive"), (second, ACTIVE)]
    assert (evaluations.complete(first), evaluations.complete(second)) == (True, False)
    record.close()


@pytest.mark.slow
def test_a_snapshot_is_complete_only_with_the_evaluations_of_its_policies(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    finished: list[int] = []
    finish, evaluate = SnapshotTaker.finish, Evaluator.evaluate

    def check_and_finish(self: SnapshotTaker, updates: int) -> None:
        assert self._is_evaluated(updates)
        finished.append(updates)
        finish(self, updates)

    def evaluate_slowly(self: Evaluator, learner: str, policy: Policy) -> Any:
        time.sleep(0.3)
        return evaluate(self, learner, policy)

    monkeypatch.setattr(SnapshotTaker, "finish", check_and_finish)
    monkeypatch.setattr(Evaluator, "evaluate", evaluate_slowly)
    run_experiment(tmp_path)
    assert finished
