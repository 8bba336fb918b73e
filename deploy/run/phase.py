"""States of roles, and the phase of a run before it trains, in a word or two for the user."""

import time
from collections.abc import Mapping

from shared.metrics import Report
from shared.roles import EVALUATOR, Role

STARTING, COMPILING, FILLING = "starting", "compiling", "filling"


class Phases:
    """Seconds of each phase of a run, from the start of its process to its first update."""

    def __init__(self, before: float) -> None:
        """Begins with the second phase; `before`: seconds of the first, the command itself."""
        self.seconds = {"the command": before}
        self._current, self._since = "preparing", time.monotonic()

    def enter(self, phase: str) -> None:
        """Ends the current phase; the first update has none."""
        now = time.monotonic()
        if self._current:
            self.seconds[self._current] = self.seconds.get(self._current, 0.0) + now - self._since
        self._current, self._since = phase, now

    @property
    def over(self) -> bool:
        return not self._current


def describe_state(report: Report | None) -> str:
    """Returns what a role is doing; `report`: its newest, none before its first."""
    if report is None:
        return STARTING
    if report.error:
        return "failed"
    if report.done:
        return "done"
    if report.waiting_for:
        return f"waiting: {report.waiting_for}"
    return FILLING if report.filling else ("working" if report.calls else COMPILING)


def describe_phase(reports: Mapping[Role, Report | None]) -> str:
    """Returns what a run is doing before it trains; empty once every learner has made an update."""
    sources = [report for role, report in reports.items() if role.is_source]
    learners = [report for role, report in reports.items() if role.is_learner]
    if any(report is None for role, report in reports.items() if role != EVALUATOR):
        return "starting the roles"
    if all(report and (report.calls or report.done) for report in learners):
        return ""
    if all(report and report.calls for report in sources) and any(report and report.filling for report in sources):
        return "filling replay"
    return "compiling" if COMPILING in map(describe_state, (*sources, *learners)) else "filling replay"
