from pathlib import Path
from typing import Any

import pytest

from deploy.cli.overrides import override
from shared.config import Experiment


@pytest.mark.parametrize(
    ("given", "options", "expected"),
    [
        ({}, [], (0.99, 3e-4, 1)),
        ({}, ["--algorithm.objective", "sac"], (0.9, 1e-4, 1)),
        ({}, ["--algorithm.objective", "chrono"], (0.999, 3e-4, 2)),
        (
            {},
            ["--algorithm.objective", "sac", "--algorithm.discount", "0.99"],
            (0.99, 1e-4, 1),
        ),  # contrastive's default
        ({"discount": 0.95}, ["--algorithm.objective", "sac"], (0.95, 1e-4, 1)),
        ({"objective": "sac"}, ["--algorithm.objective", "contrastive", "--algorithm.chunk", "3"], (0.99, 3e-4, 3)),
    ],
)
def test_another_objective_has_its_own_constants_unless_they_are_given(
    given: dict[str, Any], options: list[str], expected: tuple[float, float, int]
) -> None:
    experiment = Experiment.model_validate({"env": "point_u_maze", "algorithm": {"batch_size": 64} | given})
    algorithm = override(experiment, options, Path("an.yaml")).algorithm
    assert (algorithm.discount, algorithm.critic_learning_rate, algorithm.chunk) == expected
    assert algorithm.batch_size == 64
