"""Detection of roles that hang, and of runs in which every role waits for another."""

from collections.abc import Mapping
from typing import NamedTuple

from shared.disk import DISK_SPACE
from shared.metrics import Report
from shared.roles import Role


class Stall(NamedTuple):
    """`role`: the role that hangs; none if every role waits. `reason`: empty while all is well."""

    role: Role | None
    reason: str


def find_stall(reports: Mapping[Role, Report], limit_s: float) -> Stall:
    """Returns the role that has made no progress for `limit_s` seconds, else a deadlock of all roles.

    A role that has not completed its first call is compiling, and a collector before its first window is filling;
    neither hangs. A role that waits for a working role is not stalled, nor is one that has waited less than `limit_s`
    seconds. While one role waits for disk space every role may wait: that ends when somebody makes room.
    """
    running = {role: report for role, report in reports.items() if not report.done}
    stalled = {
        role: report
        for role, report in running.items()
        if report.calls and not report.filling and report.idle_seconds > limit_s
    }
    # After a long wait, work has to take long before it is a hang.
    hanging = [role for role, report in stalled.items() if not report.waiting_for and report.working_seconds > limit_s]
    if hanging:
        return Stall(hanging[0], f"has made no progress for {stalled[hanging[0]].idle_seconds:.0f} s")
    if not stalled or any(_may_continue(report, limit_s) for report in running.values()):
        return Stall(None, "")
    waits = ", ".join(f"{role} for {report.waiting_for}" for role, report in running.items())
    return Stall(None, f"no progress for {limit_s:g} s, everyone waits: {waits}")


def _may_continue(report: Report, limit_s: float) -> bool:
    return report.waiting_for in ("", DISK_SPACE) or report.idle_seconds <= limit_s
