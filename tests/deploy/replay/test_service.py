"""Tables of the replay server as a run asks for them."""

from typing import Literal

import pytest

from deploy.replay.service import is_limited, table_spec
from shared.config import ACTIVE, Experiment
from shared.envs.base import EnvSpec
from shared.plan import make_plan

SPEC = EnvSpec(
    state_size=3, goal_size=2, action_size=2, goal_indices=(0, 1), episode_length=1000, goal_radius=0.5, num_cells=1
)


@pytest.mark.parametrize(("pace", "limited"), [("lockstep", {ACTIVE, "deep"}), ("free", {ACTIVE})])
def test_free_pace_limits_the_collector_learner_alone(pace: Literal["lockstep", "free"], limited: set[str]) -> None:
    experiment = Experiment.model_validate({"env": "a", "learners": {"deep": {}}, "replay": {"pace": pace}})
    plan = make_plan(experiment, SPEC)
    specs = {name: table_spec(experiment, plan, name, f"run/{name}") for name in (ACTIVE, "deep")}
    assert {name for name, spec in specs.items() if spec.samples_per_insert is not None} == limited
    assert {name for name in specs if is_limited(experiment, name)} == limited
    for name, spec in specs.items():
        assert (spec.name, spec.max_size) == (f"run/{name}", plan.max_windows)
        assert spec.min_size_to_sample == plan.prefill_windows
        assert spec.error_buffer == (plan.error_buffer if name in limited else None)
