"""Tables of a report: their names, and their rows with equal keys. Pure functions."""

from collections.abc import Iterable, Mapping
from dataclasses import asdict
from typing import Any

import numpy as np

from deploy.report.aggregate import THRESHOLDS, Aggregates
from deploy.report.contents import Curve, Goals, Report

_TABLES = (
    *("cells", "active", "neighbours", "differences", "gains", "objective_gains", "gain_differences"),
    *("critical", "explored", "costs", "fairness", "published"),
)
_FILE_NAMES = {"neighbours": "comparisons", "critical": "critical_depths", "explored": "coverage"}

Rows = list[dict[str, Any]]


def make_tables(report: Report) -> dict[str, Rows]:
    """Returns the rows of each table by its name; None stands for NaN."""
    tables: dict[str, Rows] = {
        _FILE_NAMES.get(name, name): [
            {"env": each.env, **_flatten(asdict(row))}
            for each in report.envs
            if each.headline or name != "fairness"
            for row in getattr(each, name)
        ]
        for name in _TABLES
    }
    tables["curves"] = [row for each in report.envs for curve in each.curves for row in _points(each.env, curve)]
    for name in ("cells", "jumps", "changes"):
        tables[f"behaviour_{name}"] = [
            {"env": each.env, **_flatten(asdict(row))} for each in report.envs for row in getattr(each.behaviour, name)
        ]
    tables["goals"] = [
        row for each in report.envs for goals in each.behaviour.goals for row in _by_goal(each.env, goals)
    ]
    tables |= _aggregated(report.aggregates)
    return {name: [{key: _known(value) for key, value in row.items()} for row in rows] for name, rows in tables.items()}


def _aggregated(aggregates: Aggregates) -> dict[str, list[dict[str, Any]]]:
    """Returns the rows of the tables over all environments. `algorithm` is the name that `marl_eval.json` has, too."""
    tables: dict[str, Iterable[Any]] = {"scores": aggregates.scores, "aggregates": aggregates.algorithms}
    named = {
        name: [{"algorithm": each.name, **_flatten(asdict(each))} for each in rows] for name, rows in tables.items()
    }
    profiles = [
        {"algorithm": each.name, "threshold": threshold, "runs_above": centre, "low": low, "high": high}
        for each in aggregates.algorithms
        for threshold, centre, low, high in zip(
            THRESHOLDS, each.profile.centre, each.profile.low, each.profile.high, strict=True
        )
    ]
    return named | {"improvements": [_flatten(asdict(each)) for each in aggregates.improvements], "profiles": profiles}


def _by_goal(env: str, goals: Goals) -> Iterable[dict[str, Any]]:
    for name, success, episodes in zip(goals.names, goals.success, goals.episodes, strict=True):
        yield {
            "env": env,
            "objective": goals.objective,
            "collector_depth": goals.collector_depth,
            "learner_depth": goals.learner_depth,
            "active": goals.active,
            "goal": name,
            "reached": success,
            "episodes": int(episodes),
        }


def _known(value: Any) -> Any:
    """Returns None, an empty cell, for NaN."""
    return None if isinstance(value, float) and np.isnan(value) else value


def _flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Turns `{"area": {"value": 1, "interval": None}}` into `{"area_value": 1, "area_low": None, "area_high": None}`.

    Leaves out series: they have a table of their own.
    """
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if key == "interval":
            flat |= {f"{prefix}{end}": value[end] if value else None for end in ("low", "high")}
        elif isinstance(value, dict):
            flat |= _flatten(value, f"{prefix}{key}_")
        elif isinstance(value, tuple):
            flat[f"{prefix}{key}"] = "; ".join(map(str, value))
        elif not isinstance(value, np.ndarray):
            flat[f"{prefix}{key}"] = value
    return flat


def _points(env: str, curve: Curve) -> Iterable[dict[str, Any]]:
    band = curve.by_steps
    for step, centre, low, high in zip(curve.steps, band.centre, band.low, band.high, strict=True):
        yield {
            "env": env,
            "objective": curve.objective,
            "collector_depth": curve.collector_depth,
            "learner_depth": curve.learner_depth,
            "active": curve.active,
            "env_steps": int(step),
            "time_at_goal": centre,
            "low": low,
            "high": high,
            "seeds": len(curve.seeds),
        }
