"""Summary of a finished run: summary.json, the picture of the learning curves, and the table on the console."""

from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table

from collector.collector import coverage
from deploy.run.record import RunRecord
from shared.config import ACTIVE
from shared.envs.base import EnvSpec
from shared.metrics import Row, read_metrics
from shared.networks import make_networks, network_size
from shared.roles import learner_role, source_roles

COLOURS = ("#4c566a", "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")


def summarise(record: RunRecord, spec: EnvSpec) -> dict[str, Any]:
    """Returns the content of summary.json: the run's plan, and measured figures.

    `untrained_time_at_goal` is a mean over the learners' untrained policies. `time_at_goal` is in environment steps of
    an episode. `sample_age`, in environment steps, and `policy_lag`, in updates, are means over the run.
    `gradient_steps_per_second` leaves out all waits.
    """
    learners = {name: _learner_summary(record, spec, name) for name in record.experiment.all_learners}
    untrained = [record.evaluations(name)[0]["time_at_goal"] for name in learners]
    return {
        "env": record.experiment.env,
        "env_steps": record.env_steps,
        "plan": record.plan.model_dump(),
        "untrained_time_at_goal": float(np.mean(untrained)),
        "learners": learners,
        "collector": _source_summary(record),
    }


def _learner_summary(record: RunRecord, spec: EnvSpec, name: str) -> dict[str, Any]:
    plan, config = record.plan, record.experiment.learner(name)
    rows = read_metrics(record.run_dir, learner_role(name))
    newest = record.evaluations(name)[-1]
    eligible = record.windows - plan.prefill_windows
    timed = rows[1:] or rows  # the first update, which compiles, counts only if there is no other
    return {
        "role": "active" if name == ACTIVE else "passive",
        "depth": config.depth,
        "parameters": network_size(make_networks(config, spec), spec),
        "gradient_steps": rows[-1]["gradient_steps"],
        "time_at_goal": newest["time_at_goal"],
        "success_rate": newest["success_rate"],
        "samples_per_insert": rows[-1]["updates"] * plan.windows_per_update / eligible,
        "utd": rows[-1]["gradient_steps"] / record.env_steps,
        "sample_age": _mean(rows, "sample_age"),
        "gradient_steps_per_second": plan.minibatches_per_update / _mean(timed, "update_seconds"),
    }


def _source_summary(record: RunRecord) -> dict[str, float]:
    """Returns figures of the collectors, or of the feeders in their place, which have no policy lag."""
    roles = source_roles(record.experiment)
    rows = [row for role in roles for row in read_metrics(record.run_dir, role)]
    seconds = max(row["time"] for row in rows) - min(row["time"] - row["seconds"] for row in rows)
    visits = np.sum([position.visits for role in roles if (position := record.position(role))], axis=0)
    lag = {} if record.experiment.stream else {"policy_lag": _mean(rows, "policy_lag")}
    return {**lag, **coverage(visits), "env_steps_per_second": record.env_steps / seconds}


def _mean(rows: list[Row], name: str) -> float:
    return float(np.mean([row[name] for row in rows]))


def table(summary: dict[str, Any]) -> Table:
    """Returns the summary as a table on the console."""
    title = f"{summary['env']}, {summary['env_steps']:,} environment steps"
    result = Table("learner", "role", title=title, title_justify="left")
    for heading in ("depth", "gradient steps", "time at goal", "success", "samples/insert", "UTD", "sample age"):
        result.add_column(heading, justify="right")
    result.add_row("untrained", "", "", "0", f"{summary['untrained_time_at_goal']:.1f}", "", "", "", "", style="dim")
    for name, learner in summary["learners"].items():
        result.add_row(
            name,
            learner["role"],
            str(learner["depth"]),
            f"{learner['gradient_steps']:,}",
            f"{learner['time_at_goal']:.1f}",
            f"{learner['success_rate']:.2f}",
            f"{learner['samples_per_insert']:.3f}",
            f"1:{1 / learner['utd']:.0f}" if learner["utd"] else "0",
            f"{learner['sample_age']:.0f}",
        )
    return result


def plot(record: RunRecord, path: Path) -> None:
    """Draws time at goal and success rate of every learner over environment steps."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 2, figsize=(11, 4.2), layout="constrained")
    for colour, (name, config) in zip(cycle(COLOURS), record.experiment.all_learners.items(), strict=False):
        evaluations = record.evaluations(name)
        steps = [row["env_steps"] for row in evaluations]
        role = "active" if name == ACTIVE else "passive"
        label = f"{name}, depth {config.depth}" + ("" if name == role else f" ({role})")
        style = {"color": colour, "label": label, "marker": "o", "markersize": 4}
        style |= {"linestyle": "--"} if name == ACTIVE else {}
        axes[0].plot(steps, [row["time_at_goal"] for row in evaluations], **style)
        axes[1].plot(steps, [row["success_rate"] for row in evaluations], **style)
    axes[0].set_ylabel(f"time at goal (steps of {record.plan.window_length})")
    axes[1].set_ylabel("success rate")
    axes[1].set_ylim(-0.02, 1.02)
    for axis in axes:
        axis.set_xlabel("environment steps")
        axis.grid(alpha=0.3)
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].legend(frameon=False)
    figure.suptitle(f"{record.experiment.env}: collector depth {record.experiment.collector.depth}")
    figure.savefig(path, dpi=130)
    pyplot.close(figure)
