"""What a matrix will cost, before anything is started."""

from typing import Any

from deploy.matrix.config import MatrixConfig, expand
from shared.envs.registry import make_envs
from shared.networks import make_networks, network_size
from shared.plan import make_plan
from shared.stream.format import bytes_of_stream

COPIES_IN_MEMORY = 4  # parameters, gradients and Adam's two moments, float32


def plan_matrix(matrix: MatrixConfig) -> dict[str, Any]:
    """`rows`: one for each learner of each run; `totals`. Raises ConfigError where a run cannot be made."""
    rows = []
    totals = {"runs": 0, "cells": 0, "env_steps": 0, "gradient_steps": 0, "stream_bytes": 0}
    for run in expand(matrix):
        spec = make_envs(run.experiment).training.spec
        plan = make_plan(run.experiment, spec)
        totals["runs"] += 1
        totals["env_steps"] += plan.env_steps
        if run.experiment.record:
            totals["stream_bytes"] += bytes_of_stream(plan.env_steps, spec.state_size, spec.action_size)
        for name, config in run.experiment.all_learners.items():
            parameters = network_size(make_networks(config, spec), spec)
            totals["cells"] += name in run.experiment.learners
            totals["gradient_steps"] += plan.gradient_steps
            rows.append(
                {
                    "run": run.name,
                    "learner": name,
                    "depth": config.depth,
                    "env_steps": plan.env_steps,
                    "gradient_steps": plan.gradient_steps,
                    "parameters": parameters,
                    "memory_bytes": 4 * COPIES_IN_MEMORY * parameters,
                }
            )
    return {"rows": rows, "totals": totals}
