"""Actors of sources: a collector or a feeder in a process of its own, inserting into the replay server."""

import threading
from pathlib import Path
from typing import Any

from deploy.recovery import snapshots
from deploy.run.actors.role import WritingActor
from deploy.run.sources import Source
from deploy.scheduling.calls import CallError, get_answer
from shared.config import Experiment
from shared.envs.registry import make_envs
from shared.params import Policy
from shared.plan import Plan
from shared.position import Position
from shared.replay.announcements import ServerIncarnation
from shared.replay.audit import AuditLog
from shared.replay.codec import Columns
from shared.replay.reconnecting import ReconnectingInserter, RefillSplit
from shared.roles import Role

REMOTE_TIMEOUT_S = 60.0  # for weights in the object store: they are there, or their owner is gone


class SourceActor(WritingActor):
    def __init__(
        self,
        stacks_path: str,
        experiment: Experiment,
        plan: Plan,
        role: Role,
        reported: Position | None,
        run_dir: str,
        store: Any = None,
        snapshot: str | None = None,
    ) -> None:
        """Prepares the connection to the replay server.

        Args:
            reported: the position that the driver has recorded of this role; none before its first row.
            store: the parameter store, from which a collector pulls policies.
            snapshot: the collector's part of the snapshot whose environments it resumes; none: fresh environments.
        """
        super().__init__(stacks_path, experiment, run_dir)
        self._plan, self._role, self._reported = plan, role, reported
        self._store, self._snapshot = store, Path(snapshot) if snapshot else None
        self._source: Source | None = None
        self._inserter = ReconnectingInserter(
            plan,
            int(role.id),
            experiment.collector.environments,
            lambda first: self._opened.past(first),
            self._reporter,
            self._stop,
            experiment.replay.timeout_seconds,
            AuditLog(self._run_dir / "audit" / f"source-{role.id}.keys") if experiment.replay.audit else None,
            self._paused,
        )
        self._ready = threading.Event()
        self._parts_requested: set[int] = set()  # by the updates of their snapshots
        self._parts_begun: set[int] = set()
        self._reporter.sizes["queue/unconfirmed"] = lambda: self._inserter.in_flight

    @property
    def _opened(self) -> Source:
        assert self._source is not None, "the source is opened first"
        return self._source

    def connect(self, server: ServerIncarnation) -> None:
        self._inserter.connect(server)

    def disconnect(self) -> RefillSplit | None:
        """See `ReconnectingInserter`; none while the position is not known yet."""
        return self._inserter.disconnect() if self._ready.is_set() else None

    def take_part(self, updates: int) -> None:
        """Requests the source's part of the snapshot at `updates`, which is written after the present unroll."""
        self._parts_requested.add(updates)

    def work(self) -> None:
        env = make_envs(self._experiment).training
        self._source = source = Source(
            self._experiment, self._plan, env, self._role, self._reported, self._run_dir, self._wait_for_room
        )
        position = source.recover(self._inserter.register_windows)
        self._ready.set()
        try:
            self._inserter.open()
            source.start(position, self._snapshot)
            source.run(self._pull, self._insert, lambda: self._inserter.room, self._reporter, self._stop.is_set)
            source.close()
            with self._reporter.waiting("replay full"):
                self._inserter.flush()
            self._background.wait()
            self._done = not self._stop.is_set()
            self._inserter.keep_filling(self._write_parts)
        finally:
            self._inserter.close()

    def _insert(self, number: int, columns: Columns) -> None:
        self._inserter.register_windows(self._opened.position.windows)
        self._inserter.insert(number, columns)
        self._write_parts()

    def _write_parts(self) -> None:
        for updates in sorted(self._parts_requested - self._parts_begun):
            self._parts_begun.add(updates)
            part = snapshots.Part(self._run_dir, updates, self._role)
            self._background.write(self._opened.begin_part(part))

    def _pull(self, version: int) -> Policy | None:
        """Returns None, too, if the weights died with their learner, whose next incarnation publishes first."""
        try:
            newest = get_answer(self._store.newest.remote(version), REMOTE_TIMEOUT_S)
            return newest and Policy(newest.version, get_answer(newest.params[0], REMOTE_TIMEOUT_S))
        except CallError:
            return None


class CollectorActor(SourceActor):
    """A collector's actor; the class gives the process its name."""


class FeederActor(SourceActor):
    """A feeder's actor; the class gives the process its name."""
