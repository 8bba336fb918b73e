"""The driver's watch over all roles: what they report, whether they live, and what is done where they do not."""

import time
from collections import defaultdict, deque
from collections.abc import Callable
from typing import Any, NamedTuple

import ray
from ray.exceptions import OutOfMemoryError, RayActorError, RayError

from deploy.replay.service import ReplayService
from deploy.run.record import RunRecord
from deploy.scheduling.processes import end_actor, end_at
from shared.config import SupervisionConfig
from shared.disk import DISK_SPACE, Disk, DiskNotices
from shared.errors import RunFailed
from shared.metrics import Report
from shared.replay.errors import ReplayError
from shared.roles import COLLECTOR_LEARNER, EVALUATOR, REPLAY, STORE, Role, learner_role

CALL_TIMEOUT_S = 10.0
LAST_COUNTS_S = 10.0
HOUR_S = 3600.0
STORE_POLL_S = 2.0
SERVER_DEATH_S = 6.0  # by then a server that died was found dead


class _Watched:
    """One process of a role, and its newest answer."""

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
                self.pid, self.node = ray.get(self._where, timeout=CALL_TIMEOUT_S)
            self.report = ray.get(pending, timeout=CALL_TIMEOUT_S)
        except RayActorError as error:
            self.death = _describe_death(error)
            return None
        self.answered = time.monotonic()
        return self.report

    @property
    def done(self) -> bool:
        return self.report is not None and self.report.done and not self.report.error


class _Fault(NamedTuple):
    """What was wrong with a role since when, for the record of its recovery."""

    cause: str
    since: float


class Supervisor:
    """Polls every role and the replay server, and starts again what died or hangs.

    `tick` raises RunFailed with the cause where that is of no use: too often within an hour, or an error
    that would come again.
    """

    def __init__(
        self,
        record: RunRecord,
        limits: SupervisionConfig,
        make: Callable[[Role], Any],
        store: Any,
        replay: ReplayService,
        say: Callable[[str], None],
    ) -> None:
        """`make(role)`: the role's next process."""
        self._record, self._limits, self._make, self._say = record, limits, make, say
        self._store, self._replay = store, replay
        self._disk = DiskNotices(Disk(record.run_dir, limits.disk_reserve_gb), say)
        self._roles: dict[Role, _Watched] = {}
        self._deaths: dict[Role, deque[float]] = defaultdict(deque)
        self._faults: dict[Role, _Fault] = {}
        self._unbroken = time.monotonic()
        self._store_asked: Any = None
        self._store_at: tuple[int, str] | None = None
        self._store_answered = time.monotonic()

    def watch(self, role: Role, actor: Any) -> None:
        self._roles[role] = _Watched(role, actor)

    @property
    def states(self) -> dict[Role, str]:
        """One word or two on each role, for the console."""
        return {role: _state(watched.report) for role, watched in self._roles.items()}

    @property
    def done(self) -> bool:
        return all(watched.done for watched in self._roles.values())

    def tick(self, seconds: float = 0.5) -> None:
        """Collects reports for about `seconds`. Raises RunFailed, OSError when a row cannot be written."""
        end = time.monotonic() + seconds
        self._poll_roles(seconds)
        for watched in list(self._roles.values()):
            cause = self._wrong_with(watched)
            if cause:
                self._restart(watched, cause)
        self._disk.tell({role: one.report.waiting_for for role, one in self._roles.items() if one.report is not None})
        self._tend_replay()
        self._tend_store()
        self._check_stall()
        self._note_recoveries()
        time.sleep(max(end - time.monotonic(), 0))

    def finish(self) -> None:
        """The last reports and the tables' final counts, once all roles are done."""
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

    def actor(self, role: Role) -> Any:
        """The role's present process."""
        return self._roles[role].actor

    def _poll_roles(self, seconds: float) -> None:
        alive = {watched.pending: watched for watched in self._roles.values() if not watched.death}
        ready, _ = ray.wait(list(alive), num_returns=len(alive), timeout=seconds) if alive else ([], [])
        for reference in ready:
            watched = alive[reference]
            report = watched.take()
            if report:
                for row in report.rows:
                    self._record.add(watched.role, row)
                self._record.move(watched.role, report.position)

    def _wrong_with(self, watched: _Watched) -> str:
        """Why this process must go, empty while all is well. Raises RunFailed for what would come again."""
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
            self._log(watched)
            if report.fatal:
                raise RunFailed(f"{role} failed: {report.error}")
            return f"{role} (pid {watched.pid}) failed: {report.error}"
        if now - watched.answered > self._limits.heartbeat_seconds:
            return f"{role} (pid {watched.pid}) has not answered for {now - watched.answered:.0f} s"
        return ""

    def _restart(self, watched: _Watched, cause: str) -> None:
        """A new process in the role's place. Raises RunFailed where it had too many."""
        role = watched.role
        self._spend(role, cause)
        end_actor(watched.actor, watched.pid, watched.node, dump=not watched.death)
        was_done = watched.done
        if role == COLLECTOR_LEARNER:
            self._store.clear.remote()  # what it published went with it
        self.watch(role, self._make(role))
        if role == EVALUATOR:
            for name in self._record.experiment.all_learners:
                self._roles[learner_role(name)].actor.resubmit.remote(self._roles[role].actor)
            return
        if role.is_learner:
            if not was_done:
                self._replay.forget_samples()
        else:
            self._replay.forget_refill(watched.report.life if watched.report else 0)
        self._replay.attach(role, self._roles[role].actor)

    def _spend(self, role: Role, cause: str) -> None:
        """One more restart of `role`. Raises RunFailed where it had as many as are allowed within an hour."""
        now, deaths, allowed = time.monotonic(), self._deaths[role], self._limits.restarts_per_hour
        while deaths and now - deaths[0] > HOUR_S:
            deaths.popleft()
        if len(deaths) >= allowed:
            often = f"; it was restarted {allowed} times within an hour (supervision.restarts_per_hour)"
            raise RunFailed(cause + often * bool(allowed))
        deaths.append(now)
        self._faults[role] = _Fault(cause, self._faults[role].since if role in self._faults else now)
        self._say(f"{cause}; starting it again")

    def _tend_replay(self) -> None:
        actors = {role: watched.actor for role, watched in self._roles.items() if role != EVALUATOR}
        cause = self._replay.tick(actors) or self._broken_connection()
        if cause:
            self._spend(REPLAY, cause)
            self._replay.replace()

    def _broken_connection(self) -> str:
        """Whose connection broke although the server lives: what was on its way is lost, and only refills mend that."""
        life = self._replay.life
        broken = [
            role
            for role, watched in self._roles.items()
            if life is not None and watched.report and not watched.report.life
            if watched.report.lost_server == life.number
        ]
        if not broken:
            self._unbroken = time.monotonic()
        if time.monotonic() - self._unbroken < SERVER_DEATH_S:
            return ""
        return f"{broken[0]} lost its connection to the replay server"

    def _tend_store(self) -> None:
        """Ray starts a store that died again, empty; one that hangs is killed."""
        now = time.monotonic()
        if self._store_asked is None:
            if now - self._store_answered > STORE_POLL_S:
                self._store_asked = [self._store.where.remote(), self._store.empty.remote()]
            return
        ready, _ = ray.wait(self._store_asked, num_returns=2, timeout=0)
        if len(ready) == 2:
            asked, self._store_asked = self._store_asked, None
            where, empty = ray.get(asked, timeout=CALL_TIMEOUT_S)
            if self._store_at not in (None, where):
                cause = f"the {STORE.title} (pid {self._store_at[0]}) died"
                self._spend(STORE, cause)
                self._faults[STORE] = _Fault(cause, self._store_answered)
            self._store_at, self._store_answered = where, now
            if empty and COLLECTOR_LEARNER in self._roles:
                self._roles[COLLECTOR_LEARNER].actor.republish.remote()
        elif now - self._store_answered > self._limits.heartbeat_seconds and self._store_at is not None:
            end_at(*self._store_at, dump=False)  # asked again when Ray has started it again
            self._store_answered = now

    def _check_stall(self) -> None:
        """A role that hangs is started again; when everyone waits for someone, no restart helps. Raises RunFailed."""
        if not self._replay.up or self._faults:
            return
        reports = {role: watched.report for role, watched in self._roles.items() if watched.report is not None}
        stall = find_stall(reports, self._limits.progress_seconds)
        if stall.role:
            self._restart(self._roles[stall.role], f"{stall.role} {stall.reason}")
        elif stall.reason:
            raise RunFailed(f"{stall.reason}; {self._replay.counts()}")

    def _note_recoveries(self) -> None:
        for role, fault in list(self._faults.items()):
            if self._recovered(role):
                del self._faults[role]
                seconds = time.monotonic() - fault.since
                self._record.recovery(role, fault.cause, seconds)
                self._say(f"{role.title} works again after {seconds:.1f} s{self._refill_text(role)}")

    def _recovered(self, role: Role) -> bool:
        life = self._replay.life
        if role == REPLAY:
            sources = [w.report for r, w in self._roles.items() if r.is_source]
            return life is not None and all(report and report.life == life.number for report in sources)
        if role == STORE:
            return self._store_at is not None
        report = self._roles[role].report
        if report is None:
            return False
        if role == EVALUATOR:
            return bool(report.calls or report.waiting_for or report.done)
        return report.done or (life is not None and report.life == life.number)

    def _refill_text(self, role: Role) -> str:
        return f", with {self._replay.refilled:,} windows put in again" if role == REPLAY else ""

    def _log(self, watched: _Watched) -> None:
        """The traceback, for the run's log."""
        if watched.report and watched.report.details:
            with open(self._record.run_dir / "logs" / "errors.log", "a", encoding="utf-8") as log:
                log.write(f"{watched.role}:\n{watched.report.details}\n")


class Stall(NamedTuple):
    """`role`: the one that hangs; none where everyone waits. `reason`: empty while all is well."""

    role: Role | None
    reason: str


def find_stall(reports: dict[Role, Report], limit_s: float) -> Stall:
    """Who makes no progress for `limit_s` seconds: the role that hangs, else everyone and what they wait for.

    A role that has not completed its first call is compiling, a collector before its first window is
    filling; neither hangs. Who waits for one that works, or that waited less than `limit_s` seconds, is not stalled
    either, and while one waits for room on the disk everyone may: that ends when somebody makes room.
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
    if not stalled or any(_may_go_on(report, limit_s) for report in running.values()):
        return Stall(None, "")
    waits = ", ".join(f"{role} for {report.waiting_for}" for role, report in running.items())
    return Stall(None, f"no progress for {limit_s:g} s, everyone waits: {waits}")


def _may_go_on(report: Report, limit_s: float) -> bool:
    return report.waiting_for in ("", DISK_SPACE) or report.idle_seconds <= limit_s


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
