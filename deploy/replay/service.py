"""The replay server over its lives, as the driver sees it: started, watched, replaced by one that counts on.

A server's end is a beginning: once the old process is surely gone, every role lets go and says what it had;
the next server's limiters count on from there, and the sources fill it from their streams.
"""

import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

import ray
from ray.exceptions import GetTimeoutError, RayActorError, RayTaskError

from deploy.replay.server.process import TableSpec
from deploy.scheduling.processes import end_actor
from shared.config import ACTIVE, Experiment
from shared.errors import RunFailed
from shared.metrics import Row
from shared.plan import Plan
from shared.replay.errors import ReplayError
from shared.replay.info import ReplayMonitor, ServerInfo
from shared.replay.reconnecting import RefillSplit, ServerIncarnation
from shared.roles import Role, learner_role, source_roles

POLL_S = 2.0
ANSWER_S = 10.0  # the keeper only asks its child's state
STOP_S = 8.0

Phase = Literal["ending", "asking", "starting", "up"]


class ReplayService:
    """One replay server at a time. `tick` moves on without waiting; raises RunFailed where none can be started."""

    def __init__(
        self,
        experiment: Experiment,
        plan: Plan,
        run_dir: Path,
        run_id: str,
        make_keeper: Callable[[], Any],
        report: Callable[[Row], None],
        say: Callable[[str], None],
        resumed: bool = False,
    ) -> None:
        """Starts nothing yet; the first `tick` does.

        Args:
            experiment: the run's.
            plan: the run's.
            run_dir: where the server's log goes.
            run_id: part of the tables' names.
            make_keeper: returns a new actor that owns a server's process.
            report: gets every table's counts.
            say: gets what the user should know.
            resumed: roles resume from a snapshot, so the first server is refilled from the stream.
        """
        self._experiment, self._plan, self._log = experiment, plan, run_dir / "logs" / "replay_server.log"
        self._run_id, self._make_keeper, self._report, self._say = run_id, make_keeper, report, say
        self._resumed = resumed
        self._row: Row = {}
        self._hire()
        self._phase: Phase = "asking"
        self._answers: dict[Role, tuple[Any, Any]] = {}  # by role: who was asked, and the answer to come
        self._pending: Any = None  # of the keeper
        self._since = time.monotonic()  # the phase began, or the keeper was asked
        self._tables: dict[str, str] = {}
        self._sampled: dict[str, int] = {}
        self._inserted = 0
        self.refilled = 0
        """Windows that were put into this life's server again."""
        self._polled = 0.0
        self._exposure: Any = None
        self._monitor: ReplayMonitor | None = None
        self._lives = 0
        self.life: ServerIncarnation | None = None
        self.info: ServerInfo | None = None

    def _hire(self) -> None:
        self._keeper = self._make_keeper()
        self._keeper_at = self._keeper.where.remote()

    @property
    def up(self) -> bool:
        return self._phase == "up"

    def replace(self) -> None:
        """Ends the server there is, if it still lives, and begins the next life."""
        if self._phase == "up":
            with suppress(ReplayError):  # its last counts, if it lives
                self.poll()
        self.life = self.info = None
        if self._monitor is not None:
            self._monitor.close()
            self._monitor = None
        self._enter("ending", self._keeper.stop.remote())

    def forget_samples(self) -> None:
        """What was on its way to a learner that died is lost to its table's limiter; only a new server can be told."""
        if self._phase in ("starting", "up"):
            self.replace()

    def forget_refill(self, filled: int) -> None:
        """A source died that filled life `filled`'s server last. What it was to put into this one would be missing."""
        if self.refilled and (self._phase == "starting" or (self.life is not None and self.life.number != filled)):
            self.replace()

    def attach(self, role: Role, actor: Any) -> None:
        """A role's new process: it works with the server that there is, if there is one."""
        self._answers.pop(role, None)
        if self.life is not None:
            actor.connect.remote(self.life)

    def tick(self, actors: Mapping[Role, Any]) -> str:
        """Goes on with the phase it is in; returns what is wrong with a server that was up, or nothing.

        `actors`: those that work with replay, by role.
        """
        if self._phase == "ending":
            self._end()
        elif self._phase == "asking":
            self._ask(actors)
        elif self._phase == "starting":
            self._await_start(actors)
        else:
            return self._watch()
        return ""

    def poll(self, timeout_s: float | None = None) -> None:
        """Counts for the record. Raises ReplayError when the server is gone or another one answers."""
        self._polled = time.monotonic()
        info = self._monitor.poll(timeout_s) if self._monitor is not None else None
        if info is not None:
            self.info = info
            self._row = self._counts(info)
            self._report(self._row)

    def stop(self, timeout_s: float) -> None:
        """At the run's end. Bounded."""
        with suppress(RayActorError, RayTaskError, GetTimeoutError):  # gone, or hung and about to be killed
            ray.get(self._keeper.stop.remote(), timeout=timeout_s)
        if self._monitor is not None:
            self._monitor.close()

    def counts(self) -> str:
        """What every table counts, for a person who wonders who waits for whom."""
        row, names = self._row, self._experiment.all_learners
        told = (f"{n}: {row.get(f'{n}/inserted', 0)} inserted, {row.get(f'{n}/sampled', 0)} sampled" for n in names)
        return ", ".join(told)

    def _dismiss(self) -> None:
        """Ends the keeper, and its child with it: a parent's death is a child's."""
        try:
            end_actor(self._keeper, *ray.get(self._keeper_at, timeout=0))
        except (RayActorError, GetTimeoutError):
            end_actor(self._keeper)

    def _enter(self, phase: Phase, pending: Any = None) -> None:
        self._phase, self._pending, self._since = phase, pending, time.monotonic()

    def _end(self) -> None:
        """The old server must be gone before anyone says how far it was."""
        ready, _ = ray.wait([self._pending], timeout=0)
        if not ready and time.monotonic() - self._since < STOP_S:
            return
        try:
            ray.get(self._pending, timeout=0)
        except (RayActorError, RayTaskError, GetTimeoutError):
            self._dismiss()
            self._hire()
        self._answers = {}
        self._enter("asking")

    def _ask(self, actors: Mapping[Role, Any]) -> None:
        """What every role has behind it. One that only starts, or starts again, is asked again."""
        if not self._lives and not self._resumed:
            self._start({role: RefillSplit(0, 0) if role in self._sources else 0 for role in actors})
            return
        for role, actor in actors.items():
            if role not in self._answers or self._answers[role][0] is not actor:
                self._answers[role] = (actor, actor.disconnect.remote())
        pending = [answer for _, answer in self._answers.values()]
        ready, _ = ray.wait(pending, num_returns=len(pending), timeout=0)
        said: dict[Role, Any] = {}
        for role, (_, answer) in list(self._answers.items()):
            if answer not in ready:
                continue
            try:
                said[role] = ray.get(answer, timeout=ANSWER_S)
            except RayActorError:
                said[role] = None  # it will be replaced
            if said[role] is None:
                del self._answers[role]
        if all(said.get(role) is not None for role in actors):
            self._start(said)

    @property
    def _sources(self) -> list[Role]:
        return source_roles(self._experiment)

    def _start(self, said: Mapping[Role, Any]) -> None:
        sources = [said[role] for role in self._sources]
        inserted, self.refilled = sum(s.inserted for s in sources), sum(s.refilled for s in sources)
        self._lives += 1
        experiment, plan = self._experiment, self._plan
        self._tables = {name: f"{self._run_id}-{self._lives}/{name}" for name in experiment.all_learners}
        self._sampled = {name: said[learner_role(name)] for name in experiment.all_learners}
        self._inserted = inserted
        specs = [
            table_spec(experiment, plan, name, table, inserted, self._sampled[name], self.refilled)
            for name, table in self._tables.items()
        ]
        self._enter("starting", self._keeper.start.remote(specs, experiment.replay.port, str(self._log)))

    def _await_start(self, actors: Mapping[Role, Any]) -> None:
        experiment = self._experiment
        ready, _ = ray.wait([self._pending], timeout=0)
        if not ready and time.monotonic() - self._since < experiment.supervision.start_seconds:
            return
        try:
            address = ray.get(self._pending, timeout=0)
        except RayTaskError as error:
            raise RunFailed(f"replay.port: {error.cause}" if experiment.replay.port else str(error.cause)) from error
        except (GetTimeoutError, RayActorError):
            if self._lives > 1:
                self.replace()
                return
            raise RunFailed("the replay server did not start; see logs/replay_server.log") from None
        self.life = ServerIncarnation(self._lives, address, self._tables, self._inserted)
        self._monitor = ReplayMonitor(address, self._tables.values())
        for actor in actors.values():
            actor.connect.remote(self.life)
        self._exposure = self._keeper.exposure.remote(address)
        self._enter("up", self._keeper.exit_reason.remote())

    def _watch(self) -> str:
        """What is wrong with the server or its keeper; looks every two seconds."""
        ready, _ = ray.wait([self._pending], timeout=0)
        try:
            if ready:
                reason = ray.get(self._pending, timeout=0)
                if reason:
                    return str(reason)
                self._warn()
                if time.monotonic() - self._since > POLL_S:
                    self._enter("up", self._keeper.exit_reason.remote())
            elif time.monotonic() - self._since > ANSWER_S:
                return "the replay server's process does not answer"
        except RayActorError:
            return "the replay server's process died"
        if time.monotonic() - self._polled > POLL_S:
            try:
                self.poll()
            except ReplayError as error:
                return str(error)
        return ""

    def _warn(self) -> None:
        """Once in each life: the keeper has answered this before it says how its child is."""
        exposure, self._exposure = self._exposure, None
        if exposure is not None and (text := ray.get(exposure, timeout=ANSWER_S)):
            self._say(text)

    def _counts(self, info: ServerInfo) -> Row:
        """Every table's counts over all lives under its learner's name."""
        row: Row = {"time": time.time(), "life": self._lives}
        row["behind"] = self._inserted
        for table in info.tables.values():
            learner = table.name.rpartition("/")[2]
            row[f"{learner}/windows"] = table.size
            row[f"{learner}/inserted"] = self._inserted + table.inserted
            row[f"{learner}/sampled"] = self._sampled[learner] + table.sampled
        return row


def table_spec(
    experiment: Experiment, plan: Plan, name: str, table: str, inserted: int = 0, sampled: int = 0, refilled: int = 0
) -> TableSpec:
    """`name`'s table. Free pace limits the collector learner's alone. See `TableSpec` for the last three."""
    limited = experiment.replay.pace == "lockstep" or name == ACTIVE
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
