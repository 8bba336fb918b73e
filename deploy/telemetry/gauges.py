"""A run's newest figures as gauges of Ray's own metrics endpoint, where Prometheus finds them as `ray_fathom_...`."""

from typing import NamedTuple

from ray.util.metrics import Gauge

from shared.metrics import Row
from shared.plan import Plan
from shared.roles import Kind, Role

WAIT, QUEUE = "wait/", "queue/"
LABELS = {
    "env_steps": ("run",),
    "env_steps_per_second": ("run", "role"),
    "gradient_steps_per_second": ("run", "role"),
    "wait_share": ("run", "role", "what"),
    "queue": ("run", "role", "what"),
    "samples_per_insert": ("run", "learner"),
    "sample_age": ("run", "learner"),
    "policy_lag": ("run", "role"),
    "time_at_goal": ("run", "learner"),
    "success_rate": ("run", "learner"),
    "coverage": ("run",),
}


class Reading(NamedTuple):
    """A gauge's new value, with its labels but for the run's."""

    gauge: str
    value: float
    labels: dict[str, str]


class Gauges:
    """`show` gets every row that a run's driver writes."""

    def __init__(self, run: str, plan: Plan) -> None:
        self._run, self._plan = run, plan
        self._gauges = {name: Gauge(f"fathom_{name}", tag_keys=labels) for name, labels in LABELS.items()}

    def show(self, role: Role, row: Row) -> None:
        for gauge, value, labels in read_row(role, row, self._plan):
            self._gauges[gauge].set(float(value), {"run": self._run, **labels})


def read_row(role: Role, row: Row, plan: Plan) -> list[Reading]:
    """What a row says, by gauge. Rates are of the one call that the row reports."""
    by_role = {"role": str(role)}
    readings = [
        Reading(gauge, value, {**by_role, "what": name.removeprefix(prefix)})
        for gauge, prefix in (("wait_share", WAIT), ("queue", QUEUE))
        for name, value in row.items()
        if name.startswith(prefix)
    ]
    if role.kind is Kind.EVALUATOR:
        learner = {"learner": row["learner"]}
        readings += [Reading(name, row[name], learner) for name in ("time_at_goal", "success_rate")]
    elif role.is_learner:
        learner = {"learner": role.id}
        readings += [Reading(name, row[name], learner) for name in ("samples_per_insert", "sample_age")]
        speed = plan.minibatches_per_update / row["seconds"]
        readings.append(Reading("gradient_steps_per_second", speed, by_role))
    elif role.is_source:
        steps = row["env_steps"] / row["unrolls"]
        readings.append(Reading("env_steps_per_second", steps / row["seconds"], by_role))
        readings.append(Reading("coverage", row["coverage"], {}))
        if "policy_lag" in row:
            readings.append(Reading("policy_lag", row["policy_lag"], by_role))
    elif role.kind is Kind.REPLAY:
        readings.append(Reading("env_steps", row["env_steps"], {}))
    return readings
