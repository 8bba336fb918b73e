"""Actors of sources: a collector or a feeder in a process of its own, inserting into the replay server."""

import threading
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, ObjectLostError, RayActorError

from deploy.recovery import snapshots
from deploy.run.actors.role import WritingActor
from deploy.run.sources import Source
from shared.config import Experiment
from shared.envs.registry import make_envs
from shared.params import Policy
from shared.plan import Plan
from shared.position import Position
from shared.replay.audit import AuditLog
from shared.replay.codec import Columns
from shared.replay.reconnecting import ReconnectingInserter, RefillSplit, ServerIncarnation
from shared.roles import Role
from shared.stream.format import ShardSummary

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
        self._shard: ShardSummary | None = None
        self._ready = threading.Event()
        self._snapshots_due = list(plan.snapshot_updates)
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

    def shard(self) -> ShardSummary | None:
        """The shard that this collector wrote, once its work is done."""
        return self._shard

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
            self._parts_due()  # those before the position were written by the predecessor
            source.run(self._pull, self._insert, lambda: self._inserter.room, self._reporter, self._stop.is_set)
            self._shard = source.close()
            with self._reporter.waiting("replay full"):
                self._inserter.flush()
            self._background.wait()
            self._done = not self._stop.is_set()
            self._inserter.keep_filling()
        finally:
            self._inserter.close()

    def _insert(self, number: int, columns: Columns) -> None:
        self._inserter.register_windows(self._opened.position.windows)
        self._inserter.insert(number, columns)
        for part in self._parts_due():
            self._background.write(self._opened.begin_part(part))

    def _parts_due(self) -> list[snapshots.Part]:
        """Parts of the snapshots whose windows are made by now, each returned once."""
        windows = self._opened.position.windows.made // self._experiment.collector.environments
        due = [updates for updates in self._snapshots_due if self._plan.snapshot_windows(updates) <= windows]
        del self._snapshots_due[: len(due)]
        return [snapshots.Part(self._run_dir, updates, self._role) for updates in due]

    def _pull(self, version: int) -> Policy | None:
        """Returns None, too, if the weights died with their learner, whose next incarnation publishes first."""
        try:
            newest = ray.get(self._store.newest.remote(version), timeout=REMOTE_TIMEOUT_S)
            return newest and Policy(newest.version, ray.get(newest.params[0], timeout=REMOTE_TIMEOUT_S))
        except (ObjectLostError, RayActorError, GetTimeoutError):
            return None


class CollectorActor(SourceActor):
    """A collector's actor; the class gives the process its name."""


class FeederActor(SourceActor):
    """A feeder's actor; the class gives the process its name."""
