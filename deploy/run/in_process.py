"""A whole run in one process, synchronous and deterministic: no Ray, no Reverb.

It is the oracle against which the distributed path is tested, and all that a small machine needs. All roles run the
same loops as in processes of their own, here in threads. Sources and learners take turns (`rounds.py`), with a ring of
windows in the place of the replay server. The evaluator works beside them.
"""

import threading
import time
import zlib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import jax
import numpy as np

from collector.evaluator import Evaluator
from deploy.mode import Mode
from deploy.recovery import snapshots
from deploy.recovery.background import BackgroundWriter, on_host
from deploy.run.evaluations import Evaluations
from deploy.run.interrupt import Interruption
from deploy.run.memory_watch import MemoryWatch
from deploy.run.phase import describe_phase, describe_state
from deploy.run.record import RunRecord
from deploy.run.rounds import JointUpdate, Rounds
from deploy.run.snapshot_taker import SnapshotTaker
from deploy.run.sources import Source
from learner.acting import evaluation_policies
from learner.learner import Learner
from shared import checkpoint
from shared.config import ACTIVE
from shared.disk import DISK_SPACE, Disk, DiskNotices
from shared.envs.registry import Envs
from shared.metrics import Reporter, Row
from shared.params import ParamStore
from shared.replay.codec import Columns
from shared.replay.ring import WindowRing
from shared.roles import EVALUATOR, Role, learner_role, learner_roles, source_roles
from shared.start import describe_start, jax_watch, process_seconds
from shared.stream.format import describe
from shared.stream.write import write_manifest


class InProcessRun:
    """Sources, a ring of windows, all learners and the evaluator, taking turns."""

    def __init__(
        self,
        record: RunRecord,
        envs: Envs,
        say: Callable[[str], None] = lambda text: None,
        mode: Mode = Mode.IN_PROCESS,
        interruption: Interruption | None = None,
    ) -> None:
        """Prepares the run, from its snapshot if the record has one.

        Args:
            envs: training and evaluation environment.
            say: gets what the user should know while the run is going: waits for room on its disk.
            mode: TOGETHER uses this process's one device, and equals IN_PROCESS up to rounding.
            interruption: the signal that asks the run to end; none: no signal is handled.
        """
        self._interruption = interruption or Interruption()
        self._say = say
        self.record, self._experiment, self._plan = record, record.experiment, record.plan
        self._envs = envs
        self._disk = Disk(record.run_dir, self._experiment.supervision.disk_reserve_gb)
        self._notices = DiskNotices(self._disk, say)
        self._roles = source_roles(self._experiment)
        roles = (*self._roles, *learner_roles(self._experiment), EVALUATOR)
        jax_watch()
        self._reporters = {role: _reporter(_thread_name(role), process_seconds()) for role in roles}
        self._memory = MemoryWatch(record)
        names = list(self._experiment.all_learners)
        self._rounds = Rounds(len(self._roles), names)
        at_once = _at_once(len(names))
        with ThreadPoolExecutor(at_once) as pool:
            learners, sources = pool.map(self._make_learner, names), pool.map(self._make_source, self._roles)
            self.learners, self._sources = dict(zip(names, learners, strict=True)), list(sources)
        self._permits = threading.Semaphore(at_once)
        self._updates = _joint_updates(list(self.learners.values()), mode, self._permits, self._rounds)
        spec = envs.training.spec
        self._ring = WindowRing(self._plan, self._experiment.collector.actors, spec.row_floats)
        self._ring_lock = threading.Lock()
        self._store = ParamStore()
        policies = evaluation_policies(self._experiment, spec)
        evaluator = Evaluator(self._experiment, self._plan, envs.evaluations, policies)
        self._evaluations = Evaluations(record, evaluator, self._permits, self._rounds)
        self._rows: list[tuple[int, int, Role, Row]] = []  # not recorded yet; see `_record_rows`
        drawing = {name: ACTIVE if self._experiment.replay.same_batches else name for name in names}
        self._rngs = {
            name: np.random.default_rng([self._experiment.seed, zlib.crc32(by.encode())])
            for name, by in drawing.items()
        }
        self._background = BackgroundWriter()
        self._being_written: int | None = None  # updates of a snapshot
        self._taker = SnapshotTaker(record, mode)
        if record.snapshot:
            self._resume()

    def run(self, on_progress: Callable[[dict[Role, str]], None] = lambda states: None) -> None:
        """Spends the budget, then writes every learner's checkpoint.

        `on_progress` gets a word or two on each role, twice a second.
        """
        threads: list[threading.Thread] = []
        try:
            threads += [self._rounds.run(EVALUATOR, partial(self._evaluations.run, self._reporters[EVALUATOR]))]
            threads += [self._rounds.run(name, partial(self._learn, name)) for name in self.learners]
            threads += [self._rounds.run(source.index, partial(self._collect, source)) for source in self._sources]
            with self._interruption.deferred():
                self._spend_budget(partial(self._tick, on_progress))
        finally:
            self._rounds.stop(threads)
            self._background.wait()  # a run that resumes in this folder must not meet the writer
        shards = [shard for source in self._sources if (shard := source.close())]
        if self._experiment.record:
            description = describe(self._experiment, self._plan, self._envs.training.spec)
            write_manifest(self.record.stream_dir, description, shards)
        self._pause_for_room()
        for name, learner in self.learners.items():
            checkpoint.save(self.record.run_dir / "checkpoints" / name, learner.state)

    @property
    def windows(self) -> int:
        """Windows inserted so far."""
        return sum(source.position.windows.made for source in self._sources)

    # --- loops of the roles, each in a thread ---

    def _learn(self, name: str) -> None:
        learner = self.learners[name]
        learner.run(
            sample=partial(self._sample, learner),
            windows_inserted=lambda: self.windows,
            publish=self._store.publish if name == ACTIVE else None,
            submit=partial(self._evaluations.submit, name),
            save=lambda: None,
            reporter=self._reporters[learner_role(name)],
            should_stop=lambda: False,
            update=self._updates[name].of(learner),
            prepare=partial(self._prepare, name),
        )

    def _prepare(self, name: str) -> None:
        self._rounds.wait_for_unroll()  # tracing the update at the same time would delay it
        self._updates[name].prepare()

    def _sample(self, learner: Learner) -> Columns:
        self._evaluations.wait_for_room(learner.name)
        self._rounds.wait_for_windows(learner.name, learner.updates)
        with self._ring_lock:
            rng, every_environment = self._rngs[learner.name], self._experiment.replay.sampling == "every_environment"
            return self._ring.sample(self._plan.windows_per_update, rng, every_environment)

    def _collect(self, source: Source) -> None:
        source.run(
            pull=self._store.newest,
            insert=partial(self._insert, source.index),
            room=lambda: False,
            reporter=self._reporters[source.role],
            should_stop=lambda: self._rounds.stop_requested(source.index),
        )

    def _insert(self, index: int, number: int, columns: Columns) -> None:
        with self._ring_lock:
            self._ring.insert(index, number, columns)
        self._rounds.finish_insert(index)

    # --- the thread that drives the run ---

    def _spend_budget(self, tick: Callable[[], None]) -> None:
        while self._rounds.collect(tick):
            for source in self._sources:
                self.record.move(source.role, source.position)
            windows = self.windows
            self.record.add_counts({"time": time.time()} | {f"{name}/inserted": windows for name in self.learners})
            self._rounds.train(self._plan.updates_after(windows), tick)
            self._take_snapshot(tick)
            if self.record.ending:
                self._finish_snapshot(tick)
                self._interruption.check(done=True)
        self._rounds.finish(EVALUATOR, tick)
        self._finish_snapshot(tick)

    def _tick(self, on_progress: Callable[[dict[Role, str]], None]) -> None:
        reports = {role: reporter.drain() for role, reporter in self._reporters.items()}
        for role, report in reports.items():
            if report.start:
                self.record.note_start(role, report.start)
        self._memory.tick()
        for order, (role, report) in enumerate(reports.items()):
            if role.is_source:
                for row in report.rows:
                    self.record.add(role, row)
            elif role == EVALUATOR:
                self._evaluations.record_rows(report.rows)
            else:
                self._rows += [(row["index"], order, role, row) for row in report.rows]
        self._notices.update({role: report.waiting_for for role, report in reports.items()})
        self._record_rows()
        self.record.phase = describe_phase(reports)
        on_progress({role: describe_state(report) for role, report in reports.items()})
        if (name := self._interruption.requested) and not self.record.ending:
            self.record.ending = f"stopped by {name}"
            self._say(f"{name}: the run ends after a snapshot of this round")
        self._interruption.check()

    def _record_rows(self) -> None:
        """Records the rows up to the updates that all learners have made, in the order of updates and learners."""
        common = self._rounds.common_updates
        self._rows.sort(key=lambda entry: entry[:2])
        while self._rows and self._rows[0][0] <= common:
            _, _, role, row = self._rows.pop(0)
            self.record.add(role, row)

    def _take_snapshot(self, tick: Callable[[], None]) -> None:
        """Takes a snapshot if one is due, or if the run is about to end.

        All threads wait, and all learners have made equally many updates.
        """
        if not self._background.busy and self._evaluations.complete(self._being_written or 0):
            self._finish_snapshot(tick)
        updates = min(learner.updates for learner in self.learners.values())
        if not self._taker.due(updates, unplanned=bool(self.record.ending)):
            return
        self._finish_snapshot(tick)
        self._pause_for_room()
        run_dir = self.record.run_dir
        writes: list[Callable[[], None]] = []
        for name, learner in self.learners.items():
            began, state = time.monotonic(), on_host(learner.state)
            part = snapshots.Part(run_dir, updates, learner_role(name))
            writes.append(partial(snapshots.write_learner, part, state, time.monotonic() - began))
        for source in self._sources:
            writes.append(source.begin_part(snapshots.Part(run_dir, updates, source.role)))
        rngs = {name: rng.bit_generator.state for name, rng in self._rngs.items()}
        writes.append(partial(snapshots.write_driver, snapshots.Part(run_dir, updates, snapshots.DRIVER), rngs))
        self._background.write(_call_all, writes)
        self._being_written = updates

    def _finish_snapshot(self, tick: Callable[[], None]) -> None:
        """Completes the snapshot that is being written, if there is one. Raises the writer's error.

        A run that resumes from it makes no evaluation of its policies, or of older ones: they are recorded before.
        """
        updates, self._being_written = self._being_written, None
        self._background.wait()
        if updates is not None:
            self._rounds.wait(lambda: self._evaluations.complete(updates), tick)
            self._taker.finish(updates)

    def _resume(self) -> None:
        """Restores learners, generators and the ring; sources have restored themselves."""
        assert self.record.snapshot is not None
        folder = self.record.snapshot.folder
        for name, learner in self.learners.items():
            like = jax.eval_shape(lambda learner=learner: learner.state)
            learner.resume(snapshots.read_state(folder / str(learner_role(name)), like))
        for name, state in snapshots.read_driver(folder / snapshots.DRIVER).items():
            self._rngs[name].bit_generator.state = state
        for source in self._sources:
            first = max(source.position.windows.number - 2 * self._plan.stored_unrolls, 0)
            for number, columns in source.past(first):
                self._ring.insert(source.index, number, columns)

    def _make_learner(self, name: str) -> Learner:
        threading.current_thread().name = name  # its start counts what it compiles
        spec, reports = self._envs.training.spec, self.record.run_dir / "reports"
        return Learner(self._experiment, self._plan, spec, name, reports)

    def _make_source(self, role: Role) -> Source:
        threading.current_thread().name = _thread_name(role)
        record, env = self.record, self._envs.training
        position, wait = record.position(role), partial(self._wait_for_room, role)
        source = Source(self._experiment, self._plan, env, role, position, record.run_dir, wait)
        source.start(position, record.snapshot.folder / str(role) if record.snapshot else None)
        return source

    def _wait_for_room(self, role: Role) -> None:
        """Waits in the thread of `role` while the disk is short of room. Raises StoppedWaiting on a stop."""
        self._disk.wait_for_room(self._reporters[role], lambda: self._rounds.stopping)

    def _pause_for_room(self) -> None:
        """Waits in the thread that drives the run while the disk is short of room, and says so."""
        if self._disk.short:
            self._notices.update({"the run": DISK_SPACE})
            self._disk.wait_for_room(Reporter(), lambda: False)
            self._notices.update({"the run": ""})


def _thread_name(role: Role) -> str:
    """Returns the name of the thread in which `Rounds` runs a role's loop."""
    return role.id or str(role)


def _reporter(thread: str, process: float) -> Reporter:
    """Returns the reporter of a role whose work is in `thread`; `process`: seconds before that."""
    reporter = Reporter()
    reporter.describe_start = lambda waits: describe_start(process, waits, thread)
    return reporter


def _call_all(calls: Sequence[Callable[[], None]]) -> None:
    for call in calls:
        call()


def _joint_updates(
    learners: Sequence[Learner], mode: Mode, permits: threading.Semaphore, rounds: Rounds
) -> dict[str, JointUpdate]:
    """Returns the update of each learner by name, shared by learners of one kind in mode TOGETHER."""
    groups: dict[Any, list[Learner]] = {}
    for learner in learners:
        groups.setdefault(learner.kind if mode is Mode.TOGETHER else learner.name, []).append(learner)
    updates: dict[str, JointUpdate] = {}
    for group in groups.values():
        joint = JointUpdate(group, permits, rounds)
        updates |= {learner.name: joint for learner in group}
    return updates


def _at_once(learners: int) -> int:
    """Returns how many computations of learners and of the evaluator run at the same time.

    On two cores, three learners at a time take two thirds of the time that they take one after the other. An
    accelerator computes one after the other anyway, and learners that span several devices would wait for each other.
    """
    return learners + 1 if jax.default_backend() == "cpu" and jax.local_device_count() == 1 else 1
