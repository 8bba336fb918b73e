"""A run's newest figures as gauges of Ray's own metrics endpoint, where Prometheus finds them as `ray_fathom_...`."""

from typing import NamedTuple

from ray.util.metrics import Gauge

from shared.metrics import Row
from shared.metrics_catalogue import describe_gauges, find_metric
from shared.plan import Plan
from shared.roles import Role

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
    """A gauge's new value, and its labels other than the run's."""

    gauge: str
    value: float
    labels: dict[str, str]


class Gauges:
    """The gauges of one run."""

    def __init__(self, run: str, plan: Plan) -> None:
        self._run, self._plan = run, plan
        meanings = describe_gauges()
        self._gauges = {name: Gauge(f"fathom_{name}", meanings[name], labels) for name, labels in LABELS.items()}

    def show(self, role: Role, row: Row) -> None:
        """Sets the gauges that a row has values for."""
        for gauge, value, labels in read_row(role, row, self._plan):
            self._gauges[gauge].set(float(value), {"run": self._run, **labels})


def read_row(role: Role, row: Row, plan: Plan) -> list[Reading]:
    """Returns the gauges in a row, and the rates of the one call that the row reports."""
    readings = []
    for name, value in row.items():
        metric = find_metric(role.kind, name)
        if metric is not None and metric.gauge:
            values = {"role": str(role), "learner": row.get("learner", role.id), "what": name.partition("/")[2]}
            labels = {label: values[label] for label in LABELS[metric.gauge] if label != "run"}
            readings.append(Reading(metric.gauge, value, labels))
    by_role = {"role": str(role)}
    if role.is_learner:
        speed = plan.minibatches_per_update / row["seconds"]
        readings.append(Reading("gradient_steps_per_second", speed, by_role))
    elif role.is_source:
        speed = row["env_steps"] / row["unrolls"] / row["seconds"]
        readings.append(Reading("env_steps_per_second", speed, by_role))
    return readings
