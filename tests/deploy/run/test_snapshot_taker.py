"""The driver's part of snapshots: sources write their parts after all learners."""

import time
from pathlib import Path

import pytest

from deploy.mode import Mode
from deploy.recovery import snapshots
from deploy.run.record import RunRecord
from deploy.run.snapshot_taker import SnapshotTaker
from shared.config import Experiment
from shared.envs.registry import make_envs
from shared.plan import make_plan
from shared.position import start_position
from shared.roles import EVALUATOR, Role, learner_roles, source_roles

EXPERIMENT = Experiment.model_validate(
    {
        "env": "point_u_maze",
        "collector": {"actors": 2, "environments": 4, "unroll_length": 50},
        "learners": {"deep": {"depth": 8}},
        "algorithm": {"batch_size": 16, "windows_per_update": 8, "minibatches_per_update": 4},
        "snapshots": {"count": 2},
        "budget": {"env_steps": 20_000},
    }
)
PLAN = make_plan(EXPERIMENT, make_envs(EXPERIMENT).training.spec)
FIRST = PLAN.snapshot_updates[0]


class Taken:
    """A run without processes: the parts are written by hand."""

    def __init__(self, run_dir: Path) -> None:
        self.record = RunRecord(run_dir, EXPERIMENT, PLAN)
        self.requested: list[tuple[Role, int]] = []
        self.taker = SnapshotTaker(
            self.record, Mode.DISTRIBUTED, lambda role, updates: self.requested.append((role, updates))
        )

    def requests(self) -> list[Role]:
        """Returns the roles whose parts of the first snapshot the next tick requests."""
        self.requested.clear()
        self.taker.tick()
        assert {updates for _, updates in self.requested} <= {FIRST}
        return [role for role, _ in self.requested]

    def write_part(self, role: Role) -> None:
        part = snapshots.Part(self.record.run_dir, FIRST, role)
        part.begin()
        if role.is_source:
            snapshots.write_source(part, start_position(4, 1), None, 0.0)
        else:
            part.seal(time.monotonic(), 0.0)

    @property
    def complete(self) -> bool:
        return (self.record.run_dir / "snapshots" / str(FIRST) / snapshots.INFO).exists()


@pytest.fixture
def taken(tmp_path: Path) -> Taken:
    return Taken(tmp_path / "run")


def test_sources_write_their_parts_after_all_learners(taken: Taken) -> None:
    (active, deep), (one, other) = learner_roles(EXPERIMENT), source_roles(EXPERIMENT)
    for learner in EXPERIMENT.all_learners:
        taken.record.add(learner_role := Role(active.kind, learner), {"index": PLAN.updates, "env_steps": 0})
        assert taken.record.updates(learner_role.id) == PLAN.updates
    assert taken.requests() == []
    taken.write_part(active)
    assert taken.requests() == []  # the other learner may still train on windows that are not inserted yet
    taken.write_part(deep)
    assert taken.requests() == [one, other]
    taken.write_part(one)
    assert taken.requests() == [other]
    taken.write_part(other)
    assert taken.requests() == []
    assert not taken.complete  # evaluations up to it are missing
    for learner in EXPERIMENT.all_learners:
        row = {"learner": learner, "updates": FIRST, "index": FIRST, "env_steps": 0, "time_at_goal": 1.0}
        taken.record.add(EVALUATOR, row)
    taken.taker.tick()
    assert taken.complete
