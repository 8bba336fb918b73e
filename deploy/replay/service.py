"""The replay service: starts the replay server, watches it, and replaces it when it dies.

A replacement goes through phases. *ending*: the old process ends for certain. *asking*: every role disconnects and says
how far it is. *starting*: a new server starts, whose rate limiters count on from there; sources refill it from their
streams. *up*: the server is watched.
"""

import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

import ray

from deploy.replay.server.process import TableSpec
from deploy.scheduling.calls import CallError, CallFailed, NoAnswer, ProcessDied, get_answer
from deploy.scheduling.processes import end_actor
from shared.config import ACTIVE, Experiment
from shared.errors import RunFailed
from shared.metrics import Row
from shared.plan import Plan
from shared.replay.announcements import ServerIncarnation
from shared.replay.errors import ReplayError
from shared.replay.info import ReplayMonitor, ServerInfo
from shared.replay.reconnecting import RefillSplit
from shared.roles import Role, learner_role, source_roles

POLL_S = 2.0
ANSWER_S = 10.0  # longest silence of the server's actor, which only looks at its child
STOP_S = 8.0

Phase = Literal["ending", "asking", "starting", "up"]


class ReplayService:
    """One replay server at a time. `tick` never waits; it raises RunFailed where no server can be started."""

    def __init__(
        self,
        experiment: Experiment,
        plan: Plan,
        run_dir: Path,
        run_id: str,
        make_actor: Callable[[], Any],
        report: Callable[[Row], None],
        say: Callable[[str], None],
        resumed: bool = False,
    ) -> None:
        """Creates the server's actor; the first `tick` starts the server.

        Args:
            run_dir: the run directory; the server's log goes there.
            run_id: part of the tables' names.
            make_actor: returns a new actor that owns a server's process.
            report: gets every table's counts.
            say: gets what the user should know.
            resumed: the run resumes from a snapshot, so the first server is refilled, too.
        """
        self._experiment, self._plan, self._log = experiment, plan, run_dir / "logs" / "replay_server.log"
        self._run_id, self._make_actor, self._report, self._say = run_id, make_actor, report, say
        self._resumed = resumed
        self._sources, self._row = source_roles(experiment), Row()
        self._create_actor()
        self._phase: Phase = "asking"
        self._answers: dict[Role, tuple[Any, Any]] = {}  # the actor that was asked, and its pending answer
        self._pending: Any = None  # answer of the server's actor
        self._since = time.monotonic()  # start of the phase, or of the last question to the server's actor
        self._tables: dict[str, str] = {}
        self._sampled: dict[str, int] = {}
        self._inserted = 0
        self.refilled = 0
        """Windows that were inserted again into the current server."""
        self._polled = 0.0
        self._exposure: Any = None
        self._monitor: ReplayMonitor | None = None
        self._incarnations = 0
        self.server: ServerIncarnation | None = None

    @property
    def up(self) -> bool:
        return self._phase == "up"

    def replace(self) -> None:
        """Ends the current server, dead or alive, and begins to start the next."""
        if self.up:
            with suppress(ReplayError):  # its last counts, if it is alive
                self.poll()
        self.server = None
        if self._monitor is not None:
            self._monitor.close()
            self._monitor = None
        self._enter("ending", self._actor.stop.remote())

    def forget_samples(self, learner: str) -> None:
        """Replaces the server after the death of a learner whose table is limited.

        The limiter has counted samples that were lost on their way; only a new server can get other counts.
        """
        if self._phase in ("starting", "up") and is_limited(self._experiment, learner):
            self.replace()

    def forget_refill(self, refilled_server: int) -> None:
        """Replaces the server if a source died before it had refilled it; `refilled_server` is the last it refilled."""
        current = self.server is not None and self.server.number != refilled_server
        if self.refilled and (self._phase == "starting" or current):
            self.replace()

    def attach(self, role: Role, actor: Any) -> None:
        """Connects a role's new process to the current server, if there is one."""
        self._answers.pop(role, None)
        if self.server is not None:
            actor.connect.remote(self.server)

    def tick(self, actors: Mapping[Role, Any]) -> str:
        """Advances the current phase.

        Args:
            actors: the actors that work with replay.

        Returns:
            What is wrong with a server that was up, or that starts in the place of one; empty while all is well.
        """
        if self._phase == "ending":
            self._end()
        elif self._phase == "asking":
            self._ask(actors)
        elif self._phase == "starting":
            return self._await_start(actors)
        else:
            return self._watch()
        return ""

    def poll(self, timeout_s: float | None = None) -> None:
        """Reports the tables' counts. Raises ReplayError if the server is gone or another one answers."""
        self._polled = time.monotonic()
        info = self._monitor.poll(timeout_s) if self._monitor is not None else None
        if info is not None:
            self._row = self._counts(info)
            self._report(self._row)

    def stop(self, timeout_s: float) -> None:
        """Stops the server at the run's end, within `timeout_s` seconds."""
        with suppress(CallError):  # gone, or hung and about to be killed
            get_answer(self._actor.stop.remote(), timeout_s)
        if self._monitor is not None:
            self._monitor.close()

    def describe_counts(self) -> str:
        """Returns every table's counts for a person who wonders which role waits for which."""
        row, names = self._row, self._experiment.all_learners
        counts = (f"{n}: {row.get(f'{n}/inserted', 0)} inserted, {row.get(f'{n}/sampled', 0)} sampled" for n in names)
        return ", ".join(counts)

    def _create_actor(self) -> None:
        self._actor = self._make_actor()
        self._actor_where = self._actor.where.remote()

    def _kill_actor(self) -> None:
        """Kills the server's actor; its child, the server, ends with it."""
        try:
            end_actor(self._actor, *get_answer(self._actor_where, 0))
        except (ProcessDied, NoAnswer):
            end_actor(self._actor)

    def _enter(self, phase: Phase, pending: Any = None) -> None:
        self._phase, self._pending, self._since = phase, pending, time.monotonic()

    def _end(self) -> None:
        ready, _ = ray.wait([self._pending], timeout=0)
        if not ready and time.monotonic() - self._since < STOP_S:
            return
        try:
            get_answer(self._pending, 0)
        except CallError:
            self._kill_actor()
            self._create_actor()
        self._answers = {}
        self._enter("asking")

    def _ask(self, actors: Mapping[Role, Any]) -> None:
        """Asks every role to disconnect. A role that is still starting, or restarts, is asked again."""
        if not self._incarnations and not self._resumed:
            self._start({role: RefillSplit(0, 0) if role in self._sources else 0 for role in actors})
            return
        for role, actor in actors.items():
            if role not in self._answers or self._answers[role][0] is not actor:
                self._answers[role] = (actor, actor.disconnect.remote())
        pending = [answer for _, answer in self._answers.values()]
        ready, _ = ray.wait(pending, num_returns=len(pending), timeout=0)
        answers: dict[Role, Any] = {}
        for role, (_, answer) in list(self._answers.items()):
            if answer not in ready:
                continue
            try:
                answers[role] = get_answer(answer, ANSWER_S)
            except CallError:
                answers[role] = None  # asked again; the supervisor restarts a dead one
            if answers[role] is None:
                del self._answers[role]
        if all(answers.get(role) is not None for role in actors):
            self._start(answers)

    def _start(self, answers: Mapping[Role, Any]) -> None:
        sources = [answers[role] for role in self._sources]
        self._inserted, self.refilled = sum(s.inserted for s in sources), sum(s.refilled for s in sources)
        self._incarnations += 1
        experiment = self._experiment
        self._tables = {name: f"{self._run_id}-{self._incarnations}/{name}" for name in experiment.all_learners}
        self._sampled = {name: answers[learner_role(name)] for name in experiment.all_learners}
        specs = [
            table_spec(experiment, self._plan, name, table, self._inserted, self._sampled[name], self.refilled)
            for name, table in self._tables.items()
        ]
        self._enter("starting", self._actor.start.remote(specs, experiment.replay.port, str(self._log)))

    def _await_start(self, actors: Mapping[Role, Any]) -> str:
        """Connects all roles once the server has started. Returns why it has not started, if it had one before it.

        Raises RunFailed if the run's first server does not start: then the next would not start either.
        """
        experiment = self._experiment
        ready, _ = ray.wait([self._pending], timeout=0)
        if not ready and time.monotonic() - self._since < experiment.supervision.start_seconds:
            return ""
        try:
            address = get_answer(self._pending, 0)
        except CallError as error:
            cause = "the replay server did not start; see logs/replay_server.log"
            if isinstance(error, CallFailed):
                cause = f"replay.port: {error.__cause__}" if experiment.replay.port else str(error.__cause__)
            if self._incarnations > 1:
                return cause
            raise RunFailed(cause) from error
        self.server = ServerIncarnation(self._incarnations, address, self._tables, self._inserted)
        self._monitor = ReplayMonitor(address, self._tables.values())
        for actor in actors.values():
            actor.connect.remote(self.server)
        self._exposure = self._actor.exposure.remote(address)
        self._enter("up", self._actor.exit_reason.remote())
        return ""

    def _watch(self) -> str:
        """Looks at the server and its actor every two seconds; returns what is wrong with them."""
        ready, _ = ray.wait([self._pending], timeout=0)
        try:
            if ready:
                reason = get_answer(self._pending, 0)
                if reason:
                    return str(reason)
                self._warn()
                if time.monotonic() - self._since > POLL_S:
                    self._enter("up", self._actor.exit_reason.remote())
            elif time.monotonic() - self._since > ANSWER_S:
                return "the replay server's process does not answer"
        except CallError as error:
            return f"the replay server's process died: {error}"
        if time.monotonic() - self._polled > POLL_S:
            try:
                self.poll()
            except ReplayError as error:
                return self._ask_why() or str(error)
        return ""

    def _ask_why(self) -> str:
        """Returns why the server has ended, as its actor says; empty if it runs, or if the actor does not answer."""
        with suppress(CallError):
            return get_answer(self._actor.exit_reason.remote(), POLL_S) or ""
        return ""

    def _warn(self) -> None:
        """Says once for each server if public addresses reach it. A check that fails says nothing: it is a hint."""
        exposure, self._exposure = self._exposure, None
        with suppress(CallError):
            if exposure is not None and (text := get_answer(exposure, ANSWER_S)):
                self._say(text)

    def _counts(self, info: ServerInfo) -> Row:
        """Returns every table's counts over all incarnations, under its learner's name."""
        row: Row = {"time": time.time(), "incarnation": self._incarnations, "already_inserted": self._inserted}
        for table in info.tables.values():
            learner = table.name.rpartition("/")[2]
            row[f"{learner}/windows"] = table.size
            row[f"{learner}/inserted"] = self._inserted + table.inserted
            row[f"{learner}/sampled"] = self._sampled[learner] + table.sampled
        return row


def is_limited(experiment: Experiment, learner: str) -> bool:
    """True if the learner's table limits its pace: every table in lockstep, else the collector learner's alone."""
    return experiment.replay.pace == "lockstep" or learner == ACTIVE


def table_spec(
    experiment: Experiment, plan: Plan, name: str, table: str, inserted: int = 0, sampled: int = 0, refilled: int = 0
) -> TableSpec:
    """Returns the table of the learner `name`; see `TableSpec` for the last three."""
    limited = is_limited(experiment, name)
    return TableSpec(
        name=table,
        max_size=plan.max_windows,
        min_size_to_sample=plan.prefill_windows,
        samples_per_insert=plan.samples_per_insert if limited else None,
        error_buffer=plan.error_buffer if limited else None,
        inserted=inserted,
        sampled=sampled,
        refilled=refilled,
    )
