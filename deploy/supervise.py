"""The driver's watch over all roles: what they report, whether they live, and why a run ends."""

import time
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, OutOfMemoryError, RayActorError, RayError

from deploy.record import REPLAY, RunFailed, RunRecord
from shared.config import SupervisionConfig
from shared.metrics import Report, Row
from shared.replay.errors import ReplayError
from shared.replay.info import ReplayMonitor, ServerInfo

REPLAY_POLL_S = 2.0
CAUSE_WAIT_S = 4.0  # a death is known within two polls; errors that follow from it come earlier
CALL_TIMEOUT_S = 10.0


class _Watched:
    """One role's actor and its newest answer."""

    def __init__(self, role: str, actor: Any) -> None:
        self.role = role
        self.actor = actor
        self.pid: int | None = None
        self.report: Report | None = None
        self.death = ""
        self.answered = time.monotonic()
        self._pending: Any = None
        self._pid_pending = actor.pid.remote()

    @property
    def pending(self) -> Any:
        """The outstanding poll; sends one if there is none."""
        if self._pending is None:
            self._pending = self.actor.poll.remote()
        return self._pending

    def take(self) -> Report | None:
        """The poll's answer, which must be there; none when it says that the process is gone."""
        pending, self._pending = self._pending, None
        try:
            if self.pid is None:
                self.pid = ray.get(self._pid_pending, timeout=CALL_TIMEOUT_S)
            self.report = ray.get(pending, timeout=CALL_TIMEOUT_S)
        except RayActorError as error:
            self.death = _describe_death(error)
            return None
        self.answered = time.monotonic()
        return self.report


class Supervisor:
    """Polls every role and the replay server; `tick` raises RunFailed with the first cause."""

    def __init__(
        self, record: RunRecord, limits: SupervisionConfig, monitor: ReplayMonitor, services: dict[str, Any]
    ) -> None:
        """`services`: actors by name that work for the roles and say by `exit_reason()` what ended them."""
        self._record = record
        self._limits = limits
        self._monitor = monitor
        self._services = services
        self._roles: list[_Watched] = []
        self._replay_polled = 0.0
        self._started = time.monotonic()
        self.replay: ServerInfo | None = None

    def watch(self, role: str, actor: Any) -> None:
        self._roles.append(_Watched(role, actor))

    @property
    def states(self) -> dict[str, str]:
        """One word or two on each role, for the console."""
        return {watched.role: _state(watched.report) for watched in self._roles}

    @property
    def done(self) -> bool:
        return all(watched.report is not None and watched.report.done for watched in self._roles)

    def tick(self, seconds: float = 0.5) -> None:
        """Collects reports for about `seconds`. Raises RunFailed, OSError when a row cannot be written."""
        end = time.monotonic() + seconds
        self._poll_roles(seconds)
        self._poll_replay()
        failure = self._failure()
        if failure:
            raise RunFailed(self._find_cause(failure))
        time.sleep(max(end - time.monotonic(), 0))

    def finish(self) -> None:
        """The last reports and the tables' final counts, once all roles are done."""
        self._replay_polled = 0.0
        self.tick(0)

    def stop(self, grace_s: float) -> None:
        """Asks every role to end and waits up to `grace_s` seconds for it."""
        for watched in self._roles:
            watched.actor.stop.remote()
        end = time.monotonic() + grace_s
        while time.monotonic() < end and not all(
            watched.death or (watched.report is not None and watched.report.done) for watched in self._roles
        ):
            self._poll_roles(0.2)

    def _poll_roles(self, seconds: float) -> None:
        alive = {watched.pending: watched for watched in self._roles if not watched.death}
        ready, _ = ray.wait(list(alive), num_returns=len(alive), timeout=seconds) if alive else ([], [])
        for reference in ready:
            watched = alive[reference]
            report = watched.take()
            for row in report.rows if report else []:
                self._record.add(watched.role, row)

    def _poll_replay(self) -> None:
        if time.monotonic() - self._replay_polled < REPLAY_POLL_S:
            return
        try:
            info = self._monitor.poll()
        except ReplayError as error:
            raise RunFailed(self._find_cause(str(error))) from error
        self._replay_polled = time.monotonic()
        if info is not None:
            self.replay = info
            self._record.add(REPLAY, self._replay_row(info))

    def _replay_row(self, info: ServerInfo) -> Row:
        """Every table's counts under its learner's name."""
        row: Row = {"time": time.time(), "env_steps": self._record.env_steps}
        for table in info.tables.values():
            learner = table.name.rpartition("/")[2]
            row[f"{learner}/windows"] = table.size
            row[f"{learner}/inserted"] = table.inserted
            row[f"{learner}/sampled"] = table.sampled
        return row

    def _failure(self) -> str:
        """The first thing wrong with a role, empty while all is well."""
        if self._dead_role():
            return self._dead_role()
        for watched in self._roles:
            silence = time.monotonic() - watched.answered
            if watched.report is None and time.monotonic() - self._started > self._limits.start_seconds:
                return (
                    f"{watched.role} did not start within {self._limits.start_seconds:g} s; is the machine too small "
                    "for this run, or supervision.start_seconds too short?"
                )
            if watched.report is not None and silence > self._limits.heartbeat_seconds:
                return f"{watched.role} (pid {watched.pid}) has not answered for {silence:.0f} s"
            if watched.report is not None and watched.report.error:
                return f"{watched.role} failed: {watched.report.error}"
        reports = {watched.role: watched.report for watched in self._roles if watched.report is not None}
        stall = find_stall(reports, self._limits.progress_seconds)
        return f"{stall}; {self._table_counts()}" if stall else ""

    def _find_cause(self, failure: str) -> str:
        """The death behind `failure`: what follows from a death is often seen before the death itself."""
        end = time.monotonic() + CAUSE_WAIT_S
        while time.monotonic() < end:
            cause = self._dead_service() or self._dead_role()
            if cause:
                return cause
            self._poll_roles(0.2)
        return failure

    def _dead_service(self) -> str:
        for name, actor in self._services.items():
            try:
                reason = ray.get(actor.exit_reason.remote(), timeout=CALL_TIMEOUT_S)
            except RayActorError as error:
                return f"the {name} died: {_describe_death(error)}"
            except GetTimeoutError:
                return f"the {name} does not answer"
            if reason:
                return reason
        return ""

    def _dead_role(self) -> str:
        dead = (f"{each.role} (pid {each.pid}) died: {each.death}" for each in self._roles if each.death)
        return next(dead, "")

    def _table_counts(self) -> str:
        tables = self.replay.tables.values() if self.replay else []
        return ", ".join(f"{t.name}: {t.inserted} inserted, {t.sampled} sampled" for t in tables)

    def details(self) -> str:
        """Tracebacks of all roles that failed, for the run's log."""
        return "\n".join(
            f"{watched.role}:\n{watched.report.details}"
            for watched in self._roles
            if watched.report and watched.report.details
        )


def find_stall(reports: dict[str, Report], limit_s: float) -> str:
    """Who makes no progress for `limit_s` seconds: the role that hangs, else everyone and what they wait for.

    Empty while all is well. A role that has not completed its first call is compiling, a collector before
    its first window is filling; neither hangs. Who waits for one that works is not stalled either.
    """
    running = {role: report for role, report in reports.items() if not report.done}
    stalled = {
        role: report
        for role, report in running.items()
        if report.calls and not report.filling and report.idle_seconds > limit_s
    }
    hanging = [role for role, report in stalled.items() if not report.waiting_for]
    if hanging:
        return f"{hanging[0]} has made no progress for {stalled[hanging[0]].idle_seconds:.0f} s"
    if not stalled or any(not report.waiting_for for report in running.values()):
        return ""
    waits = ", ".join(f"{role} for {report.waiting_for}" for role, report in running.items())
    return f"no progress for {limit_s:g} s, everyone waits: {waits}"


def _state(report: Report | None) -> str:
    if report is None:
        return "starting"
    if report.error:
        return "failed"
    if report.done:
        return "done"
    if report.waiting_for:
        return f"waiting: {report.waiting_for}"
    return "filling" if report.filling else ("working" if report.calls else "compiling")


def _describe_death(error: RayError) -> str:
    if isinstance(error, OutOfMemoryError):
        return "the machine ran out of memory"
    return "its process ended unexpectedly (killed, crashed, or out of memory)"
