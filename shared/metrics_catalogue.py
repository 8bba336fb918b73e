"""The catalogue of metrics: every metric that a run writes, with its unit and its meaning.

Whatever shows metrics reads it: TensorBoard's groups, the Prometheus gauges and their dashboard, the report, and
`docs/metrics.md`. A test fails if a run writes a metric that is missing here.
"""

from collections.abc import Iterable
from functools import cache
from typing import NamedTuple

SOURCES = ("collector", "feeder")
ROLES = (*SOURCES, "learner", "evaluator")
EVERYWHERE = (*ROLES, "replay", "snapshots", "recovery", "start", "memory")
SHARE, STEPS = "share", "environment steps"


class Metric(NamedTuple):
    """One metric.

    Attributes:
        name: key in a row; `<...>` stands for any text.
        files: kinds of metrics files that have it: `metrics/<kind>-*.jsonl`.
        unit: unit of the value; empty for a pure number or a text.
        meaning: one sentence.
        group: TensorBoard's group; empty if the metric is an axis or no number, or if its name has a group.
        gauge: name of its Prometheus gauge, without `fathom_`.
    """

    name: str
    files: tuple[str, ...]
    unit: str
    meaning: str
    group: str = ""
    gauge: str = ""


def _row(files: tuple[str, ...], *metrics: tuple[str, str, str, str, str]) -> list[Metric]:
    return [Metric(name, files, unit, meaning, group, gauge) for name, unit, meaning, group, gauge in metrics]


CATALOGUE: tuple[Metric, ...] = (
    *_row(
        EVERYWHERE,
        ("time", "s since 1970", "Wall clock when the row was reported.", "", ""),
    ),
    *_row(
        (*ROLES, "snapshots", "recovery", "start", "memory"),
        ("env_steps", STEPS, "Environment steps behind the row: made by the role, or behind its data.", "", ""),
    ),
    *_row(
        ("replay",),
        ("env_steps", STEPS, "Environment steps of all sources so far.", "", "env_steps"),
    ),
    *_row(
        (*ROLES, "replay"),
        ("index", "", "Counts up along a curve: updates, numbers of unrolls, environment steps of replay.", "", ""),
    ),
    *_row(
        EVERYWHERE[:5],
        ("rewound_to", "", "Marks a resumed run: earlier rows with an index above this one are undone.", "", ""),
    ),
    *_row(
        ROLES,
        ("seconds", "s", "Time since the role's last row.", "speed", ""),
        ("dropped_rows", "rows", "Rows that the driver did not fetch in time, oldest first.", "queue", ""),
    ),
    *_row(
        SOURCES,
        ("unrolls", "unrolls", "Unrolls made, over all incarnations.", "progress", ""),
        ("windows", "windows", "Windows made, over all incarnations; every table gets each of them.", "progress", ""),
        ("visits", STEPS, "Steps in each cell of goal space; a list.", "", ""),
        ("coverage", SHARE, "Cells of goal space that were visited.", "exploration", "coverage"),
        ("coverage_entropy", SHARE, "Entropy of the visits, of its maximum.", "exploration", ""),
    ),
    *_row(
        ("collector",),
        ("policy_version", "updates", "Updates behind the policy that acted in the unroll.", "progress", ""),
        (
            "policy_lag",
            "updates",
            "Updates between the policy that acted and the newest published.",
            "data",
            "policy_lag",
        ),
        ("collector/at_goal", SHARE, "Steps of the unroll within the goal radius.", "", ""),
        ("collector/distance", "goal units", "Mean distance to the goal in the unroll.", "", ""),
        ("collector/episodes_ended", "episodes", "Episodes that ended in the unroll.", "", ""),
        ("collector/broken", "steps", "Steps of the unroll whose state was not finite; their chunks are void.", "", ""),
    ),
    *_row(
        ("learner", "evaluator", "snapshots"),
        ("updates", "updates", "Updates of the learner, or of the policy that was evaluated.", "progress", ""),
    ),
    *_row(
        ("learner",),
        ("gradient_steps", "gradient steps", "Gradient steps made.", "progress", ""),
        (
            "samples_per_insert",
            "",
            "Windows trained on per window inserted since training could start.",
            "data",
            "samples_per_insert",
        ),
        ("utd", "", "Gradient steps per environment step.", "data", ""),
        (
            "sample_age",
            "steps of one environment",
            "Steps between a window's last step and the newest step.",
            "data",
            "sample_age",
        ),
        ("data/version", "updates", "Mean version of the policies that gathered the update's windows.", "", ""),
        ("update_seconds", "s", "Duration of the update on the device.", "speed", ""),
        ("actor/loss", "", "The actor's loss.", "", ""),
        ("actor/entropy", "nats", "Entropy of the policy.", "", ""),
        ("actor/energy", "", "Energy, or value, of the actor's own actions and their goals.", "", ""),
        ("actor/data_log_prob", "nats", "Log probability of the data's actions (cloning).", "", ""),
        ("actor/gradient_norm", "", "Global norm of the actor's gradient, before clipping.", "", ""),
        ("critic/loss", "", "The critic's loss.", "", ""),
        ("critic/accuracy", SHARE, "Rows whose own goal has the largest energy of the minibatch.", "", ""),
        ("critic/positive", "", "Mean energy of rows and their own goals.", "", ""),
        ("critic/negative", "", "Mean energy of rows and other rows' goals.", "", ""),
        ("critic/logsumexp", "", "Mean log partition function of the energies.", "", ""),
        ("critic/value", "", "Mean value of the data's actions (sac).", "", ""),
        ("critic/target", "", "Mean value that the target networks ask for (sac).", "", ""),
        ("critic/reward", "", "Mean reward of a decision (sac).", "", ""),
        ("critic/valid", SHARE, "Rows that the critic trains on: what followed them is known (sac).", "", ""),
        ("critic/events", SHARE, "Rows whose episode reaches their goal (survival, chrono).", "", ""),
        ("critic/predicted_events", SHARE, "Rows that reach their goal by the critic's prediction.", "", ""),
        ("critic/event_time", STEPS, "Mean time to the goal of rows whose episode reaches it.", "", ""),
        ("critic/hazard_loss", "nats", "Negative log likelihood of the times to the goal (chrono).", "", ""),
        ("critic/time_loss", "", "Huber loss of distances against times to the goal (chrono).", "", ""),
        ("critic/separation_loss", "", "Hinge loss of distances that no time connects (chrono).", "", ""),
        ("critic/occupancy_loss", "nats", "Cross-entropy of the predicted time at the goal (chrono).", "", ""),
        ("critic/terminates", SHARE, "Rows whose episode terminates later in the window (chrono).", "", ""),
        ("critic/gradient_norm", "", "Global norm of the critic's gradient, before clipping.", "", ""),
        ("alpha/loss", "", "Loss of the entropy coefficient.", "", ""),
        ("alpha/log_alpha", "", "Logarithm of the entropy coefficient.", "", ""),
        ("guard/skipped", "gradient steps", "Steps of the update that were not finite and were left out.", "", ""),
    ),
    *_row(
        ("learner", "evaluator"),
        ("learner", "", "Name of the learner.", "", ""),
    ),
    *_row(
        ("evaluator",),
        *(
            (name + suffix, unit, f"{meaning}{note}.", "result", gauge if not suffix else "")
            for suffix, note in (("", ""), ("_easy", ", with the easy radius"), ("_hard", ", with the hard radius"))
            for name, unit, meaning, gauge in (
                (
                    "time_at_goal",
                    STEPS,
                    "Steps of an episode within the goal radius, mean over episodes",
                    "time_at_goal",
                ),
                ("success_rate", SHARE, "Episodes with at least one step within the goal radius", "success_rate"),
            )
        ),
        ("final_distance", "goal units", "Distance to the goal after the last step, mean over episodes.", "result", ""),
        ("episode_length", STEPS, "Steps of an episode, mean over episodes.", "result", ""),
        ("broken_episodes", "episodes", "Episodes that ended because a number was not finite.", "result", ""),
        ("reached/<band>", SHARE, "Episodes that reach their goal, by the shortest path to it, in goal units.", "", ""),
        ("behaviour/first_reach", STEPS, "Steps until the goal is reached, mean over episodes that reach it.", "", ""),
        ("behaviour/path_length", "goal units", "Way made until the goal is reached, or the episode ends.", "", ""),
        (
            "behaviour/detour",
            "",
            "Way made until the goal is reached, over the shortest path to that point; below 1 for a way over walls.",
            "",
            "",
        ),
        (
            "behaviour/stuck",
            STEPS,
            "Steps of an episode without way for 20 steps, at a wall and away from the goal.",
            "",
            "",
        ),
        ("behaviour/wall_contact", STEPS, "Steps of an episode in contact with a wall (mazes).", "", ""),
        ("behaviour/over_walls", STEPS, "Steps of an episode with the torso above a wall (bodies in mazes).", "", ""),
        ("behaviour/upright", STEPS, "Steps of an episode with the torso tilted by less than 60 degrees.", "", ""),
        ("behaviour/height", "m", "Height of the torso, mean over an episode's steps.", "", ""),
        ("behaviour/speed", "m/s", "Horizontal speed of the body; in cells/s for points.", "", ""),
        ("behaviour/contacts", "points", "Points at which bodies touch each other or the ground.", "", ""),
        ("behaviour/object_height", "m", "Height of the arm's cube.", "", ""),
        ("behaviour/lifted", STEPS, "Steps of an episode with the arm's cube 5 cm and more above the table.", "", ""),
        ("behaviour/<name>", "", "A measure of a user's own environment.", "", ""),
        ("episodes", "", "Start, goal and measures of every episode; lists, also in episodes.arrow.", "", ""),
        ("in/<environment>/<metric>", "", "A metric of this file in another environment of the evaluation.", "", ""),
        ("dropped", "policies", "Evaluations left out so far because the evaluator was too far behind.", "queue", ""),
    ),
    *_row(
        ("replay",),
        ("<learner>/inserted", "windows", "Windows inserted into the learner's table, over all servers.", "", ""),
        ("<learner>/sampled", "windows", "Windows sampled from the learner's table, over all servers.", "", ""),
        ("<learner>/windows", "windows", "Windows in the learner's table now.", "", ""),
        ("incarnation", "", "Number of the replay server's incarnation.", "progress", ""),
        (
            "already_inserted",
            "windows",
            "Windows inserted into earlier servers that were not refilled.",
            "progress",
            "",
        ),
    ),
    *_row(
        ("snapshots",),
        ("bytes", "B", "Size of the snapshot.", "snapshot", ""),
        ("pause_seconds", "s", "Longest time for which a role stood still.", "snapshot", ""),
        (
            "background_seconds",
            "s",
            "Longest time for which a role's part was written in the background.",
            "snapshot",
            "",
        ),
    ),
    *_row(
        ("recovery",),
        ("role", "", "Role that works again.", "", ""),
        ("cause", "", "Fault that was found.", "", ""),
        ("seconds", "s", "Time from the fault's discovery until the role worked again.", "recovery", ""),
    ),
    *_row(
        ("start",),
        ("role", "", "Role whose process has finished its first call; `run` for all until the first update.", "", ""),
        ("phase/<phase>", "s", "Time of a phase of the run until its first update.", "", ""),
        ("seconds", "s", "Time from the start of the process to the end of its first call.", "start", ""),
        ("process", "s", "Time until the role's own work began: Python, Ray, imports.", "start", ""),
        ("tracing", "s", "Time in which JAX traced and lowered functions.", "start", ""),
        (
            "compiling",
            "s",
            "Time in which functions were compiled that the compilation cache did not have.",
            "start",
            "",
        ),
        ("loading", "s", "Time in which functions were loaded from the compilation cache.", "start", ""),
        ("waiting", "s", "Time of all waits: for the replay server, for a policy, for windows.", "start", ""),
        ("loaded", "functions", "Functions that the compilation cache had.", "start", ""),
        ("compiled", "functions", "Functions that it did not have.", "start", ""),
        ("slow", "", "Those that took half a second or longer to compile, with their seconds.", "", ""),
    ),
    *_row(
        ("memory",),
        (
            "<role>",
            "MB",
            "Memory of the role's process; pages that processes share count for each in parts.",
            "memory",
            "",
        ),
        ("driver", "MB", "Memory of the run's own process.", "memory", ""),
        ("replay", "MB", "Memory of the replay server.", "memory", ""),
        ("services", "MB", "Memory of Ray's own processes and of the actors that serve roles.", "memory", ""),
        ("helpers", "MB", "Memory of all other processes of the run.", "memory", ""),
        ("total", "MB", "Sum of all of these.", "memory", ""),
    ),
    *_row(
        SOURCES,
        ("wait/replay full", SHARE, "Wall time spent waiting until replay takes an unroll.", "", "wait_share"),
        ("wait/replay refill", SHARE, "Wall time spent refilling a new server.", "", "wait_share"),
    ),
    *_row(
        (*SOURCES, "learner"),
        ("wait/replay server", SHARE, "Wall time without a replay server.", "", "wait_share"),
        ("wait/disk space", SHARE, "Wall time spent waiting for room on the disk.", "", "wait_share"),
        ("queue/states", "states", "States of the role on their way to disk.", "", "queue"),
    ),
    *_row(
        ("collector",),
        ("wait/weights", SHARE, "Wall time spent pulling the newest policy.", "", "wait_share"),
    ),
    *_row(
        SOURCES,
        ("queue/unconfirmed", "messages", "Insert messages that the server has not confirmed.", "", "queue"),
    ),
    *_row(
        ("learner",),
        ("wait/replay starved", SHARE, "Wall time spent waiting for windows.", "", "wait_share"),
        ("wait/publish", SHARE, "Wall time spent publishing and submitting policies.", "", "wait_share"),
        (
            "wait/keeping its state",
            SHARE,
            "Wall time spent copying states for snapshots and restarts.",
            "",
            "wait_share",
        ),
        ("queue/batches", "batches", "Decoded batches that wait for the learner.", "", "queue"),
    ),
    *_row(
        ("evaluator",),
        ("wait/policies", SHARE, "Wall time without a policy to evaluate.", "", "wait_share"),
        ("queue/policies", "policies", "Policies that wait for the evaluator.", "", "queue"),
    ),
)
RATES: dict[str, tuple[str, str]] = {
    "env_steps_per_second": ("1/s", "Environment steps per second of a source, from its newest row."),
    "gradient_steps_per_second": (
        "1/s",
        "Gradient steps per second of a learner, waits included, from its newest row.",
    ),
}
"""Gauges that are computed from rows: unit and meaning."""

FAMILIES = {
    "wait_share": "Share of wall time that a role waits, by the reason; the role that waits least is the bottleneck.",
    "queue": "Entries that wait in a role's memory, by queue; every queue is bounded.",
}
"""Gauges with a value for each of several metrics."""


@cache
def find_metric(kind: str, name: str) -> Metric | None:
    """Returns the metric `name` in metrics files of `kind` ("learner", "replay", ...); None if there is none."""
    metrics = [metric for metric in CATALOGUE if kind in metric.files]
    exact = next((metric for metric in metrics if metric.name == name), None)
    return exact or next((metric for metric in metrics if _fits(metric.name, name)), None)


def _fits(pattern: str, name: str) -> bool:
    begin, _, end = pattern.partition("<")
    end = end.rpartition(">")[2]
    return "<" in pattern and name.startswith(begin) and name.endswith(end)


def unknown_metrics(kind: str, names: Iterable[str]) -> list[str]:
    """Returns the names that the catalogue does not have for metrics files of `kind`."""
    return sorted(name for name in names if find_metric(kind, name) is None)


def tensorboard_tag(kind: str, name: str) -> str:
    """Returns the metric's tag in TensorBoard, `<group>/<name>`."""
    metric = find_metric(kind, name)
    return f"{metric.group}/{name}" if metric and metric.group else name


def describe_gauges() -> dict[str, str]:
    """Returns the meaning of every Prometheus gauge, by name."""
    single = {metric.gauge: metric.meaning for metric in CATALOGUE if metric.gauge}
    return single | FAMILIES | {name: meaning for name, (_, meaning) in RATES.items()}
