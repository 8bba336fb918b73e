"""Detection of roles that hang, and of runs in which every role waits for another."""

import math
from collections.abc import Mapping
from typing import NamedTuple

from shared.disk import DISK_SPACE
from shared.metrics import Report
from shared.roles import Role


class Stall(NamedTuple):
    """`role`: the role that hangs; none if every role waits. `reason`: empty while all is well."""

    role: Role | None
    reason: str


def find_stall(reports: Mapping[Role, Report], limits_s: Mapping[Role, float]) -> Stall:
    """Returns the role that has worked without progress for longer than its limit, else a deadlock of all roles.

    A role that waits for a working role is not stalled, and a collector before its first window is filling. While one
    role waits for disk space every role may wait: that ends when somebody makes room.

    Args:
        reports: the newest report of every role.
        limits_s: seconds that each role may work without completing a call; see `limits.work_limit_s`.
    """
    running = {role: report for role, report in reports.items() if not report.done}
    # After a long wait, work has to take long before it is a hang.
    hanging = [
        role
        for role, report in running.items()
        if not report.waiting_for
        and not report.filling
        and min(report.idle_seconds, report.working_seconds) > limits_s[role]
    ]
    if hanging:
        return Stall(hanging[0], f"has made no progress for {running[hanging[0]].idle_seconds:.0f} s")
    stalled = [
        role
        for role, report in running.items()
        if report.calls and not report.filling and report.idle_seconds > limits_s[role]
    ]
    longest_s = max((limits_s[role] for role in stalled), default=math.inf)
    if not stalled or any(_may_continue(report, longest_s) for report in running.values()):
        return Stall(None, "")
    waits = ", ".join(f"{role} for {report.waiting_for}" for role, report in running.items())
    return Stall(None, f"no progress for {longest_s:g} s, everyone waits: {waits}")


def _may_continue(report: Report, limit_s: float) -> bool:
    return report.waiting_for in ("", DISK_SPACE) or report.idle_seconds <= limit_s
