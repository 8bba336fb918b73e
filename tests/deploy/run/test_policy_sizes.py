"""Room for policies in the object store: a critic that ranks actions is a part of its policy."""

import pytest

from deploy.run.policy_sizes import max_waiting_bytes, object_store_bytes
from learner.acting import policy_bytes
from learner.objectives.registry import make_objective
from shared.config import ACTIVE, Experiment
from shared.envs.base import EnvSpec

SPEC = EnvSpec(3, 2, 2, goal_indices=(0, 1), episode_length=7, goal_radius=0.5, num_cells=1)


def experiment(collecting: int, evaluation: int) -> Experiment:
    """Returns an experiment whose policies are too large for the least object store."""
    collector = {"depth": 64, "width": 1024, "best_of": collecting}
    values = {"env": "any", "collector": collector, "evaluation": {"best_of": evaluation}, "learners": {"small": {}}}
    return Experiment.model_validate(values)


@pytest.mark.parametrize(("collecting", "evaluation"), [(1, 1), (1, 4), (4, 1), (4, 4)])
def test_the_object_store_has_room_for_the_policies_as_they_are_handed_out(collecting: int, evaluation: int) -> None:
    config = experiment(collecting, evaluation)
    objectives = {name: make_objective(config, name, SPEC) for name in (ACTIVE, "small")}
    large, small = (policy_bytes(objectives[name], evaluation) for name in objectives)
    assert large > 64 * 1024 * 1024 * 4 * (3 if evaluation > 1 else 1)  # an actor, and the critic's two encoders
    assert max_waiting_bytes(config, SPEC) == 8 * large
    published = policy_bytes(objectives[ACTIVE], max(collecting, evaluation))
    assert object_store_bytes(config, SPEC) == 8 * large + 4 * published + 2 * (published + small)


def test_small_policies_have_the_least_room() -> None:
    config = Experiment.model_validate({"env": "any", "collector": {"width": 8}})
    assert (max_waiting_bytes(config, SPEC), object_store_bytes(config, SPEC)) == (2**26, 2**28)


def test_a_stream_has_no_published_policies() -> None:
    config = Experiment.model_validate({"env": "any", "stream": "/data/stream", "learners": {"deep": {"width": 8}}})
    assert object_store_bytes(config, SPEC) == 2**28
