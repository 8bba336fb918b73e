"""The driver's part of snapshots: learners first, then sources, then the file that completes the snapshot.

A source writes its part only when the parts of all learners are complete. So its part holds every window on which a
learner has trained by then, however far apart several sources are.
"""

from collections.abc import Callable

from deploy.mode import Mode
from deploy.recovery import snapshots
from deploy.run.record import RunRecord
from shared.roles import Role, learner_roles, source_roles


class SnapshotTaker:
    """Completes snapshots whose parts are written, and removes old ones."""

    def __init__(
        self, record: RunRecord, mode: Mode, request_part: Callable[[Role, int], None] = lambda role, updates: None
    ) -> None:
        """`request_part(role, updates)` asks a source for its part; it is called again until the part is written."""
        self._record, self._mode, self._request_part = record, mode, request_part
        experiment = record.experiment
        self._learners = list(experiment.all_learners)
        self._sources = source_roles(experiment)
        self._roles: list[Role | str] = [*learner_roles(experiment), *self._sources]
        if mode is not Mode.DISTRIBUTED:
            self._roles.append(snapshots.DRIVER)
        begun = int(record.snapshot.folder.name) if record.snapshot else 0
        self.last = begun
        """Updates of the last complete snapshot of this incarnation; 0 before the first."""
        self._remaining = [updates for updates in record.plan.snapshot_updates if updates > begun]

    def add(self, updates: int) -> None:
        """Adds a snapshot that is not planned."""
        self._remaining = sorted({*self._remaining, updates})

    def tick(self) -> None:
        """Completes the newest snapshot of which all parts are written and all evaluations are recorded."""
        run_dir = self._record.run_dir
        sealed = [updates for updates in self._remaining if self._is_sealed(updates)]
        whole = [updates for updates in sealed if self._is_evaluated(updates)]
        if whole:
            self._remaining = [later for later in self._remaining if later > whole[-1]]
            self.finish(whole[-1])
            return
        # A slow evaluator must not fill the disk. Of the snapshots that wait for it, the first is complete soonest and
        # the last is worth most; those in between are dropped.
        for updates in sealed[1:-1]:
            self._remaining.remove(updates)
            snapshots.drop(run_dir, updates)

    def due(self, updates: int, unplanned: bool = False) -> bool:
        """True if a snapshot is due in a run whose learners have made `updates`; each snapshot is due once.

        `unplanned`: a snapshot is due wherever none has been taken.
        """
        planned = [earlier for earlier in self._remaining if earlier <= updates]
        self._remaining = self._remaining[len(planned) :]
        wanted = bool(planned) or (unplanned and updates > self.last)
        return wanted and updates < self._record.plan.updates

    def finish(self, updates: int) -> None:
        """Completes the snapshot at `updates`, whose parts are all written. Raises OSError."""
        record, experiment = self._record, self._record.experiment
        steps = experiment.collector.environments * record.plan.unroll_length
        info, seals = snapshots.finish(
            record.run_dir,
            updates,
            self._roles,
            self._mode,
            dict.fromkeys(self._learners, updates),
            self._time_at_goal(updates),
            steps,
        )
        row = {
            "updates": updates,
            "bytes": sum(seal.bytes for seal in seals),
            "pause_seconds": max(seal.pause_seconds for seal in seals),
            "background_seconds": max(seal.seconds for seal in seals),
        }
        record.note("snapshots", {"env_steps": info.env_steps, **row})
        self.last = updates
        snapshots.prune(record.run_dir, experiment.snapshots.keep)

    def _is_sealed(self, updates: int) -> bool:
        """True once all parts are written. Requests the parts of sources once those of all learners are written."""
        run_dir = self._record.run_dir
        if not snapshots.sealed(run_dir, updates, learner_roles(self._record.experiment)):
            return False
        missing = [role for role in self._sources if not snapshots.sealed(run_dir, updates, [role])]
        for role in missing:
            self._request_part(role, updates)
        return not missing

    def _is_evaluated(self, updates: int) -> bool:
        """True once all evaluations up to `updates` are recorded; a resumed run would not repeat them."""
        due = max(u for u in self._record.plan.evaluation_updates if u <= updates)
        return all(self._record.evaluated(name) >= due for name in self._learners)

    def _time_at_goal(self, updates: int) -> float | None:
        newest = []
        for name in self._learners:
            rows = [row for row in self._record.evaluations(name) if row["updates"] <= updates]
            newest += [rows[-1]["time_at_goal"]] if rows else []
        return sum(newest) / len(newest) if newest else None
