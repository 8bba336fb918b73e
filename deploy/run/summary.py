"""Summary of a finished run: summary.json, the picture of the learning curves, and the table on the console."""

import io
import json
import math
from collections import defaultdict
from collections.abc import Sequence
from itertools import chain, pairwise
from operator import itemgetter
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
from rich.table import Table

from collector.collector import coverage
from collector.evaluator import within
from deploy.run.record import RunRecord
from deploy.run.run_dir import read_status
from learner.objectives.registry import make_objective
from shared.config import ACTIVE
from shared.envs.base import EnvSpec
from shared.files import replace_file
from shared.metrics import Row, read_metrics
from shared.roles import learner_role, source_roles

COLOURS = ("#4c566a", "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
MARKERS = "osv^"  # the next one after each round of colours
HEADLINE_EVALUATIONS = 5
PROCESS_GAP_S = 1.0  # rows of one process follow each other without a gap; a new process takes longer to start


def headline(evaluations: Sequence[Row], name: str) -> float:
    """Returns the mean of a metric over a learner's last five evaluations, as in the paper; NaN without any.

    Single evaluations swing too far to be compared. The untrained policy does not count.
    """
    return _mean([row for row in evaluations if row["updates"] > 0][-HEADLINE_EVALUATIONS:], name)


def summarise(record: RunRecord, spec: EnvSpec) -> dict[str, Any]:
    """Returns the content of summary.json: the run's plan, and measured figures; NaN stands for an unknown figure.

    `untrained_...` are means over the learners' untrained policies. `time_at_goal`, in environment steps of an episode,
    and `success_rate` are those of `headline`; `last_...` are of the last evaluation; `elsewhere` has both for each
    further environment of the evaluation. `sample_age`, in environment steps, and `policy_lag`, in updates, are means
    over the run.

    Rates leave out compilation. `env_steps_per_second`: growth of the environment steps of all sources from the run's
    first row to its last, over the wall clock between these rows. It includes waits and restarts of roles, but neither
    the first unroll nor the time between a run's end and its resume. `gradient_steps_per_second`: speed while the
    learner computes, without waits and without the first update of each of its processes.
    """
    learners = {name: _learner_summary(record, spec, name) for name in record.experiment.all_learners}
    untrained = [row for name in learners for row in record.evaluations(name) if row["updates"] == 0]
    return {
        "env": record.experiment.env,
        "env_steps": record.env_steps,
        "plan": record.plan.model_dump(),
        "untrained_time_at_goal": _mean(untrained, "time_at_goal"),
        "untrained_success_rate": _mean(untrained, "success_rate"),
        "learners": learners,
        "collector": _source_summary(record),
        "start": record.start,
        "memory_mb": record.memory,
    }


def _learner_summary(record: RunRecord, spec: EnvSpec, name: str) -> dict[str, Any]:
    plan, config = record.plan, record.experiment.learner(name)
    objective = make_objective(record.experiment, name, spec)
    rows = read_metrics(record.run_dir, learner_role(name))
    evaluations = record.evaluations(name)
    newest = [{}, *evaluations][-1]
    updates = record.updates(name)
    gradient_steps = updates * plan.minibatches_per_update
    return {
        "role": "active" if name == ACTIVE else "passive",
        "objective": objective.algorithm.objective,
        "chunk": objective.algorithm.chunk,
        "discount": objective.algorithm.discount,
        "depth": config.depth,
        "critic_layers": objective.critic_layers,
        "parameters": objective.size,
        "gradient_steps": gradient_steps,
        "time_at_goal": headline(evaluations, "time_at_goal"),
        "success_rate": headline(evaluations, "success_rate"),
        "last_time_at_goal": newest.get("time_at_goal", math.nan),
        "last_success_rate": newest.get("success_rate", math.nan),
        "elsewhere": {
            env: {name: headline(evaluations, within(env) + name) for name in ("time_at_goal", "success_rate")}
            for env in record.experiment.evaluation.envs[1:]
        },
        "samples_per_insert": _ratio(updates * plan.windows_per_update, record.windows - plan.prefill_windows),
        "utd": _ratio(gradient_steps, record.env_steps),
        "sample_age": _mean(rows, "sample_age"),
        "gradient_steps_per_second": plan.minibatches_per_update / _mean(_without_compilation(rows), "update_seconds"),
    }


def _without_compilation(rows: list[Row]) -> list[Row]:
    """Returns the rows of a role whose call did not compile; all rows if there is no such row."""
    gaps = [row["time"] - row["seconds"] - before["time"] for before, row in pairwise(rows)]
    return [row for row, gap in zip(rows[1:], gaps, strict=True) if gap < PROCESS_GAP_S] or rows


def _source_summary(record: RunRecord) -> dict[str, float]:
    """Returns figures of the collectors, or of the feeders in their place, which have no policy lag."""
    roles = source_roles(record.experiment)
    rows = [read_metrics(record.run_dir, role) for role in roles]
    visits = np.sum([position.visits for role in roles if (position := record.position(role))], axis=0)
    lag = {} if record.experiment.stream else {"policy_lag": _mean([*chain(*rows)], "policy_lag")}
    rate = _env_steps_per_second(rows, read_status(record.run_dir))
    return {**lag, **coverage(visits), "env_steps_per_second": rate}


def _env_steps_per_second(sources: list[list[Row]], status: Row) -> float:
    """Returns the rate of all sources together from their rows; see `summarise`."""
    rows = sorted(chain(*sources), key=itemgetter("time"))
    if not rows:
        return math.nan
    first, last = rows[0], rows[-1]
    steps = sum(source[-1]["env_steps"] for source in sources if source) - first["env_steps"]
    return _ratio(steps, run_seconds(status, last["time"]) - run_seconds(status, first["time"]))


def run_seconds(status: Row, time: float) -> float:
    """Returns the wall clock of a run at `time`, without the time between its incarnations.

    Args:
        status: the content of the run's status.json; the result is NaN without the run's start.
        time: seconds since 1970.
    """
    started, elapsed = status.get("started", math.nan), 0.0
    for resumed in status.get("resumed", []):
        if resumed["time"] <= time:
            started, elapsed = resumed["time"], resumed["seconds"]
    return elapsed + time - started


def read_summary(run_dir: Path) -> dict[str, Any]:
    """Returns the content of summary.json; empty if the file is missing or damaged."""
    try:
        summary = json.loads((run_dir / "summary.json").read_bytes())
    except (FileNotFoundError, ValueError):
        return {}
    return summary if isinstance(summary, dict) else {}


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole > 0 else math.nan


def _mean(rows: list[Row], name: str) -> float:
    """Returns the mean of a metric over the rows in which it is a finite number; NaN without such a row."""
    values = [value for row in rows if math.isfinite(value := row.get(name, math.nan))]
    return fmean(values) if values else math.nan


def table(summary: dict[str, Any]) -> Table:
    """Returns the summary as a table on the console, 80 columns wide; an unknown figure is left out.

    Learners with different objectives have these in place of their roles, since `active` is a name, too.
    """
    several = len({learner.get("objective") for learner in summary["learners"].values()}) > 1
    title = f"{summary['env']}, {summary['env_steps']:,} environment steps"
    result = Table(title=title, title_justify="left", box=None, pad_edge=False)
    result.add_column("learner", overflow="fold")  # names that are cut short may look alike
    result.add_column("objective" if several else "role", overflow="fold", no_wrap=not several)
    for heading in ("depth", "gradient\nsteps", "time at\ngoal", "success", "samples\n/insert", "UTD", "sample\nage"):
        result.add_column(heading, justify="right", no_wrap=True)
    untrained = _figure(summary["untrained_time_at_goal"], ".1f"), _figure(summary["untrained_success_rate"], ".2f")
    result.add_row("untrained", "", "", "0", *untrained, "", "", "", style="dim")
    for name, learner in summary["learners"].items():
        result.add_row(
            name,
            learner["objective"] if several else learner["role"],
            str(learner["depth"]),
            f"{learner['gradient_steps']:,}",
            _figure(learner["time_at_goal"], ".1f"),
            _figure(learner["success_rate"], ".2f"),
            _figure(learner["samples_per_insert"], ".3f"),
            f"1:{1 / learner['utd']:.0f}" if learner["utd"] > 0 else "",
            _figure(learner["sample_age"], ",.0f"),
        )
    return result


def describe_elsewhere(summary: dict[str, Any]) -> list[str]:
    """Returns a line for each further environment of the evaluation; the table has the figures of the first one."""
    shown: dict[str, list[str]] = defaultdict(list)
    for name, learner in summary["learners"].items():
        for env, figures in learner["elsewhere"].items():
            time_at_goal, success = _figure(figures["time_at_goal"], ".1f"), _figure(figures["success_rate"], ".2f")
            shown[env].append(f"{name} {time_at_goal} ({success})")
    return [f"time at goal (success) in {env}: {', '.join(of_env)}" for env, of_env in shown.items()]


def describe_costs(summary: dict[str, Any]) -> str:
    """Returns one line on the start and the memory of a run."""
    start, memory = summary["start"], summary["memory_mb"]
    phases = start["phases"]
    each = ", ".join(f"{name} {seconds:.1f}" for name, seconds in phases.items() if seconds >= 0.1)
    compiled = sum(row["compiled"] for row in start["roles"].values())
    slow = ", ".join(f"{role} {row['slow']}" for role, row in start["roles"].items() if row["slow"])
    cache = f"; {compiled} functions were compiled, not loaded" + f" ({slow})" * bool(slow) if compiled else ""
    most = f"; memory {memory['total'] / 1000:.1f} GB" if memory else ""
    return f"first update after {sum(phases.values()):.1f} s ({each}){cache}{most}"


def _figure(value: float, form: str) -> str:
    return format(value, form) if math.isfinite(value) else ""


def plot(record: RunRecord, path: Path) -> None:
    """Draws time at goal and success rate of every learner over environment steps."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 2, figsize=(11, 4.2), layout="constrained")
    for index, (name, config) in enumerate(record.experiment.all_learners.items()):
        evaluations = record.evaluations(name)
        steps = [row["env_steps"] for row in evaluations]
        role = "active" if name == ACTIVE else "passive"
        label = f"{name}, depth {config.depth}" + ("" if name == role else f" ({role})")
        marker = MARKERS[index // len(COLOURS) % len(MARKERS)]
        style = {"color": COLOURS[index % len(COLOURS)], "label": label, "marker": marker, "markersize": 4}
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
    picture = io.BytesIO()
    figure.savefig(picture, dpi=130)
    pyplot.close(figure)
    replace_file(path, picture.getvalue())
