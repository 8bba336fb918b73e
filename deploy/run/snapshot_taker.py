"""The driver's part of snapshots: it completes a snapshot once all roles have written their parts."""

from deploy.mode import Mode
from deploy.recovery import snapshots
from deploy.run.record import RunRecord
from shared.roles import Role, learner_roles, source_roles


class SnapshotTaker:
    """The driver's part: writes the info of every snapshot whose parts are there, and clears up after it."""

    def __init__(self, record: RunRecord, mode: Mode) -> None:
        self._record, self._mode = record, mode
        experiment = record.experiment
        self._learners = list(experiment.all_learners)
        self._roles: list[Role | str] = [*learner_roles(experiment), *source_roles(experiment)]
        if mode is not Mode.DISTRIBUTED:
            self._roles.append(snapshots.DRIVER)
        begun = int(record.snapshot.folder.name) if record.snapshot else 0
        self._to_come = [updates for updates in record.plan.snapshot_updates if updates > begun]

    def tick(self) -> None:
        """Looks whether a snapshot is whole by now: all parts are there, and all evaluations up to there."""
        run_dir = self._record.run_dir
        sealed = [updates for updates in self._to_come if snapshots.sealed(run_dir, updates, self._roles)]
        whole = [updates for updates in sealed if self._is_evaluated(updates)]
        if whole:
            self._to_come = [later for later in self._to_come if later > whole[-1]]
            self.finish(whole[-1])
            return
        # An evaluator that is far behind must not fill the disk: of those that wait for it, the first will be whole
        # soonest, the last is worth most.
        for updates in sealed[1:-1]:
            self._to_come.remove(updates)
            snapshots.drop(run_dir, updates)

    def due(self, updates: int) -> bool:
        """Whether one was planned that was not taken yet, in a run that has come to `updates`."""
        planned = [earlier for earlier in self._to_come if earlier <= updates]
        self._to_come = self._to_come[len(planned) :]
        return bool(planned) and updates < self._record.plan.updates

    def finish(self, updates: int) -> None:
        """All parts of the snapshot of `updates` are there. Raises OSError."""
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
        """As far as there: evaluations that come after the info would be cut off."""
        due = max(u for u in self._record.plan.evaluation_updates if u <= updates)
        return all(self._record.evaluated(name) >= due for name in self._learners)

    def _time_at_goal(self, updates: int) -> float | None:
        newest = []
        for name in self._learners:
            rows = [row for row in self._record.evaluations(name) if row["updates"] <= updates]
            newest += [rows[-1]["time_at_goal"]] if rows else []
        return sum(newest) / len(newest) if newest else None
