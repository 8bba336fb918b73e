"""Queue lengths in the metrics rows of each role."""

from pathlib import Path
from typing import Any

import numpy as np

from collector.evaluator import EvaluationRequest
from deploy.run.actors.evaluator import EvaluatorActor
from deploy.run.actors.learner import LearnerActor
from deploy.run.actors.role import RoleActor
from deploy.run.actors.source import FeederActor
from shared.config import ACTIVE, Experiment
from shared.envs.registry import make_envs
from shared.params import Policy
from shared.plan import make_plan
from shared.roles import Kind, Role

EXPERIMENT = Experiment.model_validate(
    {
        "env": "point_u_maze",
        "collector": {"environments": 4, "unroll_length": 50},
        "algorithm": {"batch_size": 16, "windows_per_update": 8, "minibatches_per_update": 4},
    }
)
PLAN = make_plan(EXPERIMENT, make_envs(EXPERIMENT).training.spec)


def queue_lengths(actor: RoleActor) -> dict[str, Any]:
    """Returns the queue lengths in a row of `actor`, as the driver receives the row."""
    actor._reporter.row({})
    (row,) = actor.poll(others_work=False).rows
    return {name: value for name, value in row.items() if name.startswith("queue/")}


def test_the_evaluator_counts_the_policies_in_its_queue(tmp_path: Path) -> None:
    policy = {"w": np.zeros(2)}
    actor = EvaluatorActor(str(tmp_path / "stacks"), EXPERIMENT, PLAN, (), max_waiting_bytes=3 * policy["w"].nbytes)
    assert queue_lengths(actor) == {"queue/policies": 0}
    for version in range(5):
        actor.submit(EvaluationRequest(ACTIVE, Policy(version, policy), last=False))
        assert queue_lengths(actor) == {"queue/policies": min(version + 1, 3)}


def test_sources_and_learners_report_empty_queues_before_there_is_a_server(tmp_path: Path) -> None:
    stacks, run_dir = str(tmp_path / "stacks"), str(tmp_path)
    source = FeederActor(stacks, EXPERIMENT, PLAN, Role(Kind.FEEDER, "0"), None, run_dir)
    assert queue_lengths(source) == {"queue/unconfirmed": 0, "queue/states": 0}
    learner = LearnerActor(stacks, EXPERIMENT, PLAN, ACTIVE, None, None, run_dir, 0)
    assert queue_lengths(learner) == {"queue/batches": 0, "queue/states": 0}
