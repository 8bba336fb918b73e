"""The record of a run while it is going: what the driver writes, and the newest of it for console and summary."""

import shutil
import time
from collections import deque
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from collector.evaluator import holds_episodes
from deploy.layout import SNAPSHOTS, STATE, STREAM
from deploy.recovery.snapshots import Snapshot, read_position
from deploy.run.phase import Phases
from deploy.run.provenance import write_config
from deploy.run.run_dir import read_status
from shared.config import Experiment
from shared.files import write_json
from shared.metrics import MetricsWriter, Row, curves, metrics_files, read_metrics
from shared.plan import Plan
from shared.position import Position
from shared.roles import EVALUATOR, REPLAY, Role, learner_role, source_roles
from shared.start import process_seconds

RECOVERY, START, MEMORY = "recovery", "start", "memory"  # events, in metrics files of their own
ROWS_KEPT = 8  # newest rows of each role in memory, from which rates are computed


class RunRecord:
    """The driver's knowledge of a run, and the writer of its directory.

    Metrics rows go to files and are never read back for recovery: what a restarted process needs (`position`,
    `updates`, `evaluated`) is kept here apart from them.
    """

    def __init__(self, run_dir: Path, experiment: Experiment, plan: Plan, snapshot: Snapshot | None = None) -> None:
        """`snapshot`: the point from which the run resumes, to which its directory was restored; none: it begins."""
        self.run_dir = Path(run_dir)
        self.experiment = experiment
        self.plan = plan
        self.snapshot = snapshot
        self.started = self._begun = time.time()
        self._rows: dict[str, deque[Row]] = {}
        self._evaluations: dict[str, list[Row]] = {name: [] for name in experiment.all_learners}
        self._indices: dict[str, int] = {}
        self._positions: dict[Role, Position] = {}
        self._before: dict[str, Any] = {"seconds": 0.0, "resumed": []}
        self.run_dir.mkdir(parents=True, exist_ok=True)
        write_config(self.run_dir, experiment)  # first: it makes the folder that of a run
        newest = self._resume(snapshot) if snapshot else {}
        self._writer = MetricsWriter(self.run_dir, newest)
        self.watchers: list[Callable[[Role, Row], None]] = []
        """Each gets every role's rows as they are written."""
        self._phase = ""
        self._phases = Phases(process_seconds())
        self._starts: dict[str, Row] = {}
        self._memory: dict[str, float] = {}
        self.ending = ""
        """Reason for which the run is about to end, in its status from then on; empty before."""

    def _resume(self, snapshot: Snapshot) -> dict[str, int]:
        """Restores indices and positions from the snapshot; returns the newest environment steps of every curve."""
        info = snapshot.info
        for name, updates in info.updates.items():
            self._indices[str(learner_role(name))] = updates
            self._indices[f"{EVALUATOR}/{name}"] = max(u for u in self.plan.evaluation_updates if u <= updates)
        for role in source_roles(self.experiment):
            self._positions[role] = read_position(snapshot.folder / str(role))
            self._indices[str(role)] = self._positions[role].windows.number
        status = read_status(self.run_dir)
        seconds = status.get("seconds", 0.0)
        resumed = {"time": time.time(), "seconds": seconds, "updates": int(snapshot.folder.name)}
        self._before = {"seconds": seconds, "resumed": [*status.get("resumed", []), resumed]}
        self.started = status.get("started", self.started)
        newest: dict[str, int] = {}
        for name in metrics_files(self.run_dir):
            rows = list(map(_without_episodes, read_metrics(self.run_dir, name)))
            self._rows[name] = deque(rows, maxlen=ROWS_KEPT)
            for row in rows:
                newest[curves(name, row)] = row.get("env_steps", 0)
                if name == str(EVALUATOR):
                    self._evaluations[row["learner"]].append(row)
        return newest

    def add(self, role: Role, row: Row) -> None:
        """Writes one row of `role`, unless a row with its index was written before. Raises OSError on a full disk."""
        curve, index = curves(role, row), row.get("index")
        if index is not None:
            if index <= self._indices.get(curve, -1):
                return  # a restarted process repeats what its predecessor has reported
            self._indices[curve] = index
        if role.is_learner and not self._phases.over:
            self._phases.enter("")
            phases = {f"phase/{name}": seconds for name, seconds in self._phases.seconds.items()}
            row_of_run = {"env_steps": self.env_steps, "role": "run", "seconds": sum(phases.values()), **phases}
            self.note(START, row_of_run)
        self._write(role, row)

    def add_counts(self, counts: Row) -> None:
        """Writes the counts of replay's tables, at the environment steps so far. Raises OSError on a full disk."""
        steps = self.env_steps
        self._write(REPLAY, {"index": steps, "env_steps": steps, **counts})

    def _write(self, role: Role, row: Row) -> None:
        self._writer.write(role, row)
        row = _without_episodes(row)
        self._rows.setdefault(str(role), deque(maxlen=ROWS_KEPT)).append(row)
        if role == EVALUATOR:
            self._evaluations[row["learner"]].append(row)
        for watch in self.watchers:
            watch(role, row)

    def move(self, role: Role, position: Position | None) -> None:
        """Records the position of a source after its last row; none leaves it as it was."""
        if position is not None:
            self._positions[role] = position

    def recovery(self, role: Role, cause: str, seconds: float) -> None:
        """Records that `role` works again, `seconds` after its fault was found."""
        self.note(RECOVERY, {"env_steps": self.env_steps, "role": role.title, "cause": cause, "seconds": seconds})

    def note(self, event: str, row: Row) -> None:
        """Writes a row about the run itself to the metrics file of `event`."""
        self._writer.write(event, {"time": time.time(), **row})

    def position(self, role: Role) -> Position | None:
        """The position of a source after its last row; none before its first."""
        return self._positions.get(role)

    def updates(self, learner: str) -> int:
        """Updates of a learner up to its last row."""
        return self._indices.get(str(learner_role(learner)), 0)

    def evaluated(self, learner: str) -> int:
        """Updates of a learner's last evaluated policy; -1 before the first evaluation."""
        return self._indices.get(f"{EVALUATOR}/{learner}", -1)

    @property
    def stream_dir(self) -> Path:
        """The folder of this run's own stream."""
        return self.run_dir / STREAM

    def remove_backups(self) -> None:
        """Removes what only an unfinished run needs: snapshots, learners' states, a stream that was not asked for."""
        for folder in (STATE, SNAPSHOTS):
            shutil.rmtree(self.run_dir / folder, ignore_errors=True)
        if not self.experiment.record:
            shutil.rmtree(self.stream_dir, ignore_errors=True)

    def recent(self, role: Role) -> list[Row]:
        """The newest few rows of `role`; its file has all of them."""
        return list(self._rows.get(str(role), ()))

    def evaluations(self, learner: str) -> list[Row]:
        return self._evaluations[learner]

    @property
    def env_steps(self) -> int:
        """Environment steps of all sources so far."""
        unroll_steps = self.experiment.collector.environments * self.plan.unroll_length
        return unroll_steps * sum(position.unrolls for position in self._positions.values())

    @property
    def windows(self) -> int:
        """Windows of all sources so far; every learner's table gets each of them."""
        return sum(position.windows.made for position in self._positions.values())

    def status(self, state: str, reason: str = "") -> None:
        """Writes status.json.

        `started` is the start of the first incarnation of the run, `seconds` the wall time of all incarnations.
        `resumed` has an entry for each later one: its start, the seconds before it, and the update it resumed from.

        Args:
            state: running, done, failed or interrupted; while it is running, `phase` says more before it trains.
            reason: one line on how it ended.
        """
        if state == "running" and self.ending:  # whoever ends this process now leaves a true status behind
            state, reason = "interrupted", self.ending
        write_json(
            self.run_dir / "status.json",
            {
                "state": state,
                "reason": reason,
                "phase": self.phase,
                "env_steps": self.env_steps,
                "budget": self.plan.env_steps,
                "updates": {name: self.updates(name) for name in self.experiment.all_learners},
                "updates_planned": self.plan.updates,
                "started": self.started,
                "seconds": self._before["seconds"] + time.time() - self._begun,
                "resumed": self._before["resumed"],
            },
            sync=state != "running",
        )

    @property
    def phase(self) -> str:
        """Activity of the run before it trains, in its status; empty once it trains."""
        return self._phase

    @phase.setter
    def phase(self, phase: str) -> None:
        if phase and phase != self._phase and not self._phases.over:
            self._phases.enter(phase)
        self._phase = phase

    def enter(self, phase: str) -> None:
        """Writes to status.json what the run is doing before it trains."""
        self.phase = phase
        self.status("running")

    def note_start(self, role: Role, row: Row) -> None:
        """Records the start of a role's process; see `describe_start`."""
        self._starts[str(role)] = row
        self.note(START, {"env_steps": self.env_steps, "role": str(role), **row})

    def note_memory(self, megabytes: Mapping[str, float]) -> None:
        """Records the memory of the run's processes by role, and of all together."""
        row = {**megabytes, "total": sum(megabytes.values())}
        self._memory = {name: max(value, self._memory.get(name, 0.0)) for name, value in row.items()}
        self.note(MEMORY, {"env_steps": self.env_steps, **row})

    @property
    def start(self) -> Row:
        """The start of this incarnation: `phases` with their seconds up to the first update, and each role's row."""
        return {"phases": self._phases.seconds, "roles": self._starts}

    @property
    def memory(self) -> Row:
        """Most memory of each role, and of all together at one time, in MB."""
        return self._memory

    def close(self) -> None:
        self._writer.close()


def _without_episodes(row: Row) -> Row:
    """Returns a row for the memory: the table of its episodes is in its file alone."""
    return {name: value for name, value in row.items() if not holds_episodes(name)}
