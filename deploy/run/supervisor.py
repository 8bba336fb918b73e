"""Supervision of a run by its driver: polls roles, records their rows, and restarts what died or hangs."""

import time
from collections import defaultdict, deque
from collections.abc import Callable
from typing import Any, NamedTuple

import ray

from deploy.replay.service import ReplayService
from deploy.run.limits import work_limit_s
from deploy.run.phase import describe_phase, describe_state
from deploy.run.record import RunRecord
from deploy.run.stall import find_stall
from deploy.scheduling.calls import CallError, CallFailed, NoAnswer, ProcessDied, get_answer
from deploy.scheduling.processes import end_actor, end_at
from shared.config import SupervisionConfig
from shared.disk import Disk, DiskNotices
from shared.errors import RunFailed
from shared.metrics import Report
from shared.replay.errors import ReplayError
from shared.roles import COLLECTOR_LEARNER, EVALUATOR, REPLAY, STORE, Role, learner_roles

CALL_TIMEOUT_S = 10.0
LAST_COUNTS_S = 10.0
HOUR_S = 3600.0
STORE_POLL_S = 2.0
SERVER_DEATH_S = 6.0  # a dead server is found within this time


class _Watched:
    """One process of a role, and its newest report."""

    def __init__(self, role: Role, actor: Any) -> None:
        self.role = role
        self.actor = actor
        self.pid: int | None = None
        self.node = ""
        self.report: Report | None = None
        self.death = ""
        self.started = self.answered = time.monotonic()
        self._pending: Any = None
        self._where = actor.where.remote()

    def poll(self, others_work: bool) -> Any:
        """Returns the outstanding poll; sends one if there is none."""
        if self._pending is None:
            self._pending = self.actor.poll.remote(others_work)
        return self._pending

    def take(self) -> Report | None:
        """Returns the answer to the poll, which has arrived; None if the process is dead or its answer is lost."""
        pending, self._pending = self._pending, None
        try:
            if self.pid is None:
                self.pid, self.node = get_answer(self._where, CALL_TIMEOUT_S)
            self.report = get_answer(pending, CALL_TIMEOUT_S)
        except (ProcessDied, CallFailed) as error:
            self.death = str(error)
            return None
        except NoAnswer:  # the answer lies on a node that cannot be reached now
            return None
        self.answered = time.monotonic()
        return self.report

    @property
    def done(self) -> bool:
        return self.report is not None and self.report.done and not self.report.error


class _Fault(NamedTuple):
    """The cause and the time of a fault, for the record of its recovery."""

    cause: str
    since: float


class Supervisor:
    """Polls every role, the replay server and the parameter store, and restarts what died or hangs.

    `tick` raises RunFailed where a restart is of no use: after too many restarts within an hour, or for an error that
    would come again.
    """

    def __init__(
        self,
        record: RunRecord,
        limits: SupervisionConfig,
        first_call_s: float,
        make: Callable[[Role], Any],
        store: Any,
        replay: ReplayService,
        say: Callable[[str], None],
    ) -> None:
        """Supervises nothing yet; see `watch`.

        Args:
            record: gets the rows and positions that roles report.
            limits: when a role counts as dead, and how often it is restarted.
            first_call_s: longest time for the first call of a role.
            make: returns a started actor for a role.
            store: the parameter store's actor.
            replay: the replay service.
            say: gets what the user should know.
        """
        self._record, self._limits, self._make, self._say = record, limits, make, say
        self._store, self._replay, self._first_call_s = store, replay, first_call_s
        self._notices = DiskNotices(Disk(record.run_dir, limits.disk_reserve_gb), say)
        self._roles: dict[Role, _Watched] = {}
        self._restarts: dict[Role, deque[float]] = defaultdict(deque)
        self._faults: dict[Role, _Fault] = {}
        self._all_connected = time.monotonic()
        self._store_question: Any = None
        self._store_at: tuple[int, str] | None = None
        self._store_answered = time.monotonic()

    def watch(self, role: Role, actor: Any) -> None:
        self._roles[role] = _Watched(role, actor)

    @property
    def states(self) -> dict[Role, str]:
        """One word or two on each role, for the console."""
        return {role: describe_state(watched.report) for role, watched in self._roles.items()}

    @property
    def phase(self) -> str:
        """Activity of the run before it trains; see `describe_phase`."""
        return describe_phase({role: watched.report for role, watched in self._roles.items()})

    @property
    def done(self) -> bool:
        return all(watched.done for watched in self._roles.values())

    @property
    def memory(self) -> dict[int, tuple[str, float]]:
        """Name and memory in MB of each role that runs, by its process id."""
        found = ((watched, watched.report) for watched in self._roles.values())
        return {one.pid: (str(one.role), report.memory_mb) for one, report in found if one.pid and report}

    def actor(self, role: Role) -> Any:
        """The actor that fills `role` now."""
        return self._roles[role].actor

    def tick(self, seconds: float = 0.5) -> None:
        """Collects reports for about `seconds`. Raises RunFailed, and OSError if a row cannot be written."""
        end = time.monotonic() + seconds
        self._poll_roles(seconds)
        for watched in list(self._roles.values()):
            cause = self._find_fault(watched)
            if cause:
                self._restart(watched, cause)
        self._notices.update(
            {role: one.report.waiting_for for role, one in self._roles.items() if one.report is not None}
        )
        self._tend_replay()
        self._tend_store()
        self._check_stall()
        self._record_recoveries()
        time.sleep(max(end - time.monotonic(), 0))

    def finish(self) -> None:
        """Collects the last reports and the tables' final counts, once all roles are done."""
        self._poll_roles(0)
        if not self._replay.up:
            self._say("the last counts of replay are missing: its server was being replaced")
            return
        try:
            self._replay.poll(LAST_COUNTS_S)
        except ReplayError as error:
            self._say(f"the last counts of replay are missing: {error}")

    def stop(self, grace_s: float) -> None:
        """Asks every role to end and waits up to `grace_s` seconds for it."""
        for watched in self._roles.values():
            watched.actor.stop.remote()
        end = time.monotonic() + grace_s
        while time.monotonic() < end and not all(
            watched.death or (watched.report is not None and watched.report.done) for watched in self._roles.values()
        ):
            self._poll_roles(0.2)

    def _poll_roles(self, seconds: float) -> None:
        alive = {
            watched.poll(self._others_work(role)): watched for role, watched in self._roles.items() if not watched.death
        }
        ready, _ = ray.wait(list(alive), num_returns=len(alive), timeout=seconds) if alive else ([], [])
        for reference in ready:
            watched = alive[reference]
            report = watched.take()
            if report:
                for row in report.rows:
                    self._record.add(watched.role, row)
                self._record.move(watched.role, report.position)
                if report.start:
                    self._record.note_start(watched.role, report.start)

    def _limit_s(self, report: Report) -> float:
        return work_limit_s(report, self._limits.progress_seconds, self._first_call_s)

    def _others_work(self, role: Role) -> bool:
        """True if another role works within its limit, so that a wait of `role` for it is no fault."""
        reports = [watched.report for other, watched in self._roles.items() if other != role]
        return any(
            not report.done and not report.waiting_for and report.working_seconds <= self._limit_s(report)
            for report in reports
            if report is not None
        )

    def _find_fault(self, watched: _Watched) -> str:
        """Returns why a process must be replaced; empty while all is well. Raises RunFailed for a fatal error."""
        role, report, now = watched.role, watched.report, time.monotonic()
        if watched.death:
            return f"{role} (pid {watched.pid}) died: {watched.death}"
        if report is None:
            if now - watched.started <= self._limits.start_seconds:
                return ""
            raise RunFailed(
                f"{role} did not start within {self._limits.start_seconds:g} s; is the machine too small "
                "for this run, or supervision.start_seconds too short?"
            )
        if report.error:
            self._log(watched.role, report.details)
            if report.fatal:
                raise RunFailed(f"{role} failed: {report.error}")
            return f"{role} (pid {watched.pid}) failed: {report.error}"
        if now - watched.answered > self._limits.heartbeat_seconds:
            return f"{role} (pid {watched.pid}) has not answered for {now - watched.answered:.0f} s"
        return ""

    def _restart(self, watched: _Watched, cause: str) -> None:
        """Replaces a process. Raises RunFailed if its role was restarted too often."""
        role = watched.role
        self._count_restart(role, cause)
        end_actor(watched.actor, watched.pid, watched.node, dump=not watched.death)
        was_done = watched.done
        if role == COLLECTOR_LEARNER:
            self._store.clear.remote()  # its published weights died with it
        self.watch(role, self._make(role))
        if role == EVALUATOR:
            for learner in learner_roles(self._record.experiment):
                self._roles[learner].actor.resubmit.remote(self._roles[role].actor)
            return
        if role.is_learner:
            if not was_done:
                self._replay.forget_samples(role.id)
        else:
            self._replay.forget_refill(watched.report.server if watched.report else 0)
        self._replay.attach(role, self._roles[role].actor)

    def _count_restart(self, role: Role, cause: str) -> None:
        """Raises RunFailed if `role` was restarted as often as is allowed within an hour."""
        now, restarts, allowed = time.monotonic(), self._restarts[role], self._limits.restarts_per_hour
        while restarts and now - restarts[0] > HOUR_S:
            restarts.popleft()
        if len(restarts) >= allowed:
            often = f"; it was restarted {allowed} times within an hour (supervision.restarts_per_hour)"
            raise RunFailed(cause + often * bool(allowed))
        restarts.append(now)
        self._faults[role] = _Fault(cause, self._faults[role].since if role in self._faults else now)
        self._say(f"{cause}; starting it again")

    def _tend_replay(self) -> None:
        actors = {role: watched.actor for role, watched in self._roles.items() if role != EVALUATOR}
        cause = self._replay.tick(actors) or self._find_lost_connection()
        if cause:
            self._count_restart(REPLAY, cause)
            self._replay.replace()

    def _find_lost_connection(self) -> str:
        """Returns which role lost its connection although the server lives; empty while all are connected.

        Messages on their way are lost then, which only a refill of a new server mends.
        """
        server = self._replay.server
        lost = [
            role
            for role, watched in self._roles.items()
            if server is not None and watched.report and not watched.report.server
            if watched.report.lost_server == server.number
        ]
        if not lost:
            self._all_connected = time.monotonic()
        if time.monotonic() - self._all_connected < SERVER_DEATH_S:
            return ""
        return f"{lost[0]} lost its connection to the replay server"

    def _tend_store(self) -> None:
        """Watches the parameter store: Ray restarts a dead one without content; a hanging one is killed here."""
        now = time.monotonic()
        if self._store_question is None:
            if now - self._store_answered > STORE_POLL_S:
                self._store_question = [self._store.where.remote(), self._store.empty.remote()]
            return
        ready, _ = ray.wait(self._store_question, num_returns=2, timeout=0)
        if len(ready) == 2:
            question, self._store_question = self._store_question, None
            try:
                where, empty = get_answer(question, CALL_TIMEOUT_S)
            except CallError:  # asked again, after Ray's restart
                return
            if self._store_at not in (None, where):
                cause = f"the {STORE.title} (pid {self._store_at[0]}) died"
                self._count_restart(STORE, cause)
                self._faults[STORE] = _Fault(cause, self._store_answered)
            self._store_at, self._store_answered = where, now
            if empty and COLLECTOR_LEARNER in self._roles:
                self._roles[COLLECTOR_LEARNER].actor.republish.remote()
        elif now - self._store_answered > self._limits.heartbeat_seconds and self._store_at is not None:
            end_at(*self._store_at, dump=False)  # the same question is answered after Ray's restart
            self._store_answered = now

    def _check_stall(self) -> None:
        """Restarts a role that hangs. Raises RunFailed if every role waits, which no restart mends."""
        if not self._replay.up or self._faults:
            return
        reports = {role: watched.report for role, watched in self._roles.items() if watched.report is not None}
        stall = find_stall(reports, {role: self._limit_s(report) for role, report in reports.items()})
        if stall.role:
            self._restart(self._roles[stall.role], f"{stall.role} {stall.reason}")
        elif stall.reason:
            raise RunFailed(f"{stall.reason}; {self._replay.describe_counts()}")

    def _record_recoveries(self) -> None:
        for role, fault in list(self._faults.items()):
            if self._has_recovered(role):
                del self._faults[role]
                seconds = time.monotonic() - fault.since
                self._record.recovery(role, fault.cause, seconds)
                refill = f", with {self._replay.refilled:,} windows put in again" if role == REPLAY else ""
                self._say(f"{role.title} works again after {seconds:.1f} s{refill}")

    def _has_recovered(self, role: Role) -> bool:
        server = self._replay.server
        if role == REPLAY:
            sources = [watched.report for role, watched in self._roles.items() if role.is_source]
            return server is not None and all(report and report.server == server.number for report in sources)
        if role == STORE:
            return self._store_at is not None
        report = self._roles[role].report
        if report is None:
            return False
        if role == EVALUATOR:
            return bool(report.calls or report.waiting_for or report.done)
        return report.done or (server is not None and report.server == server.number)

    def _log(self, role: Role, details: str) -> None:
        if details:
            with open(self._record.run_dir / "logs" / "errors.log", "a", encoding="utf-8") as log:
                log.write(f"{role}:\n{details}\n")
