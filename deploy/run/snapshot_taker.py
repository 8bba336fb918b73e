"""The driver's part of snapshots: it completes a snapshot once all roles have written their parts."""

from deploy.mode import Mode
from deploy.recovery import snapshots
from deploy.run.record import RunRecord
from shared.roles import Role, learner_roles, source_roles


class SnapshotTaker:
    """Completes snapshots whose parts are written, and removes old ones."""

    def __init__(self, record: RunRecord, mode: Mode) -> None:
        self._record, self._mode = record, mode
        experiment = record.experiment
        self._learners = list(experiment.all_learners)
        self._roles: list[Role | str] = [*learner_roles(experiment), *source_roles(experiment)]
        if mode is not Mode.DISTRIBUTED:
            self._roles.append(snapshots.DRIVER)
        begun = int(record.snapshot.folder.name) if record.snapshot else 0
        self._remaining = [updates for updates in record.plan.snapshot_updates if updates > begun]

    def tick(self) -> None:
        """Completes the newest snapshot of which all parts are written and all evaluations are recorded."""
        run_dir = self._record.run_dir
        sealed = [updates for updates in self._remaining if snapshots.sealed(run_dir, updates, self._roles)]
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

    def due(self, updates: int) -> bool:
        """True if a snapshot is due in a run whose learners have made `updates`; each snapshot is due once."""
        planned = [earlier for earlier in self._remaining if earlier <= updates]
        self._remaining = self._remaining[len(planned) :]
        return bool(planned) and updates < self._record.plan.updates

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
        snapshots.prune(record.run_dir, experiment.snapshots.keep)

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
