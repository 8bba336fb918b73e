"""Gauges that a run's rows set, and Ray's metrics endpoint that exposes them."""

import re
import time
import urllib.request

import pytest
import ray

from deploy.telemetry.gauges import LABELS, Gauges, read_row
from shared.config import Experiment
from shared.envs.registry import make_envs
from shared.plan import make_plan
from shared.roles import EVALUATOR, REPLAY, Kind, Role, learner_role

DEADLINE_S = 60
EXPERIMENT = Experiment.model_validate(
    {
        "env": "point_u_maze",
        "collector": {"environments": 4, "unroll_length": 50},
        "algorithm": {"batch_size": 16, "windows_per_update": 8, "minibatches_per_update": 4},
    }
)
PLAN = make_plan(EXPERIMENT, make_envs(EXPERIMENT).training.spec)
COLLECTOR, FEEDER, DEEP = Role(Kind.COLLECTOR, "0"), Role(Kind.FEEDER, "0"), learner_role("deep")
UNROLL = {"seconds": 0.5, "env_steps": 400, "unrolls": 2, "coverage": 0.25}
ROWS = {
    COLLECTOR: {**UNROLL, "policy_lag": 3, "wait/weights": 0.1, "queue/unconfirmed": 2},
    FEEDER: UNROLL,
    DEEP: {"seconds": 2.0, "env_steps": 400, "samples_per_insert": 0.5, "sample_age": 70.0},
    EVALUATOR: {"seconds": 1.0, "env_steps": 0, "learner": "deep", "time_at_goal": 12.5, "success_rate": 0.75},
    REPLAY: {"env_steps": 400, "deep/windows": 7},
}


@pytest.mark.parametrize(
    ("role", "expected"),
    [
        (
            COLLECTOR,
            {
                ("wait_share", 0.1, "collector-0", "weights"),
                ("queue", 2, "collector-0", "unconfirmed"),
                ("env_steps_per_second", 400, "collector-0"),  # 200 steps in half a second
                ("coverage", 0.25),
                ("policy_lag", 3, "collector-0"),
            },
        ),
        (FEEDER, {("env_steps_per_second", 400, "feeder-0"), ("coverage", 0.25)}),
        (
            DEEP,
            {
                ("samples_per_insert", 0.5, "deep"),
                ("sample_age", 70, "deep"),
                ("gradient_steps_per_second", 2, "learner-deep"),
            },
        ),
        (EVALUATOR, {("time_at_goal", 12.5, "deep"), ("success_rate", 0.75, "deep")}),
        (REPLAY, {("env_steps", 400)}),
    ],
)
def test_a_row_gives_the_readings_of_its_role(role: Role, expected: set[tuple]) -> None:
    readings = read_row(role, ROWS[role], PLAN)
    assert {(name, value, *labels.values()) for name, value, labels in readings} == expected
    assert all(("run", *labels) == LABELS[name] for name, _, labels in readings)


@pytest.mark.ray
def test_the_metrics_endpoint_exposes_every_gauge() -> None:
    ray.init(address="local", num_cpus=0, include_dashboard=False, log_to_driver=False)
    try:
        gauges = Gauges("first", PLAN)
        for role, row in ROWS.items():
            gauges.show(role, row)
        port = ray.nodes()[0]["MetricsExportPort"]
        found: set[str] = set()
        deadline = time.monotonic() + DEADLINE_S
        while found != set(LABELS) and time.monotonic() < deadline:
            time.sleep(0.1)
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as page:
                text = page.read().decode()
            found = set(re.findall(r'^ray_fathom_(\w+)\{.*run="first"', text, re.MULTILINE))
    finally:
        ray.shutdown()
    assert found == set(LABELS)
