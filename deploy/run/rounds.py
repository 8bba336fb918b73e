"""Turns of sources and learners that run in threads of one process.

A round is one unroll of every source, followed by the updates that every learner owes by then. Sources wait for the
learners when they insert, and for the next round before they continue; learners wait for the round's unrolls when they
sample. The order of all reads and writes is therefore fixed, although the loops run in threads.
"""

import threading
from collections.abc import Callable, Mapping
from typing import Any

from learner.learner import Learner, Update
from shared.disk import StoppedWaiting
from shared.replay.codec import Columns
from shared.replay.errors import ReplayStopped
from shared.types import Metrics

TICK_S = 0.5


class Rounds:
    """The state of the current round. Sources are known by index, learners by name."""

    def __init__(self, sources: int, learners: list[str]) -> None:
        self._changed = threading.Condition()
        self._inserted = dict.fromkeys(range(sources), 0)  # rounds in which the source has inserted
        self._waiting = dict.fromkeys(range(sources), 0)  # rounds after which the source waits for the next one
        self._updates = dict.fromkeys(learners, 0)  # updates made, as of the newest sample
        self._finished: set[Any] = set()
        self._open, self._trained, self._owed = 0, 0, 0
        self._stopping = False
        self._error: BaseException | None = None

    # --- called by the threads of sources and learners ---

    def run(self, member: Any, loop: Callable[[], None]) -> threading.Thread:
        """Starts the `loop` of a source (its index), a learner (its name) or the evaluator (its role) in a thread."""

        def main() -> None:
            try:
                loop()
            except (ReplayStopped, StoppedWaiting):
                pass
            except BaseException as error:  # noqa: BLE001 - raised again by the thread that waits for the round
                self._fail(error)
            with self._changed:
                self._finished.add(member)
                self._changed.notify_all()

        thread = threading.Thread(target=main, name=str(member), daemon=True)
        thread.start()
        return thread

    def stop_requested(self, source: int) -> bool:
        """Waits for the next round; True if the run is stopping."""
        with self._changed:
            self._waiting[source] = self._inserted[source]
            self._changed.notify_all()
            self._changed.wait_for(lambda: self._open > self._inserted[source] or self._stopping)
            return self._stopping

    def finish_insert(self, source: int) -> None:
        """Waits until all learners have made the updates that they owe after this round. Raises ReplayStopped."""
        with self._changed:
            self._inserted[source] += 1
            self._changed.notify_all()
            self._wait_for(lambda: self._trained >= self._inserted[source])

    def wait_for_unroll(self) -> None:
        """Waits until every source has inserted its first unroll, or has finished. Raises ReplayStopped."""
        with self._changed:
            self._wait_for(lambda: self._all(self._inserted, 1))

    def wait_for_windows(self, learner: str, updates: int) -> None:
        """Waits until the learner owes an update beyond `updates`. Raises ReplayStopped."""
        with self._changed:
            self._updates[learner] = updates
            self._changed.notify_all()
            self._wait_for(lambda: self._owed > updates)

    @property
    def stopping(self) -> bool:
        return self._stopping

    def check_stopping(self) -> None:
        """Raises ReplayStopped if the run is stopping."""
        if self._stopping:
            raise ReplayStopped("the run is stopping")

    def _wait_for(self, condition: Callable[[], bool]) -> None:
        self._changed.wait_for(lambda: condition() or self._stopping)
        self.check_stopping()

    def _fail(self, error: BaseException) -> None:
        with self._changed:
            self._error = self._error or error
            self._stopping = True
            self._changed.notify_all()

    # --- called by the thread that drives the run ---

    def collect(self, tick: Callable[[], None]) -> bool:
        """Opens a round and waits until every source has inserted; False if all sources have finished before."""
        with self._changed:
            self._open += 1
            self._changed.notify_all()
        self._drive(lambda: self._all(self._inserted, self._open), tick)
        return any(rounds == self._open for rounds in self._inserted.values())

    def train(self, owed: int, tick: Callable[[], None]) -> None:
        """Waits until every learner has made `owed` updates, and every source is ready for the next round."""
        with self._changed:
            self._owed = owed
            self._changed.notify_all()
        self._drive(lambda: self._all(self._updates, owed), tick)
        with self._changed:
            self._trained = self._open
            self._changed.notify_all()
        self._drive(lambda: self._all(self._waiting, self._open), tick)

    def wait(self, condition: Callable[[], bool], tick: Callable[[], None]) -> None:
        """Waits until `condition()`, which `tick` may bring about."""
        self._drive(condition, tick)

    def finish(self, member: Any, tick: Callable[[], None]) -> None:
        """Waits until the loop of `member` has ended."""
        self._drive(lambda: member in self._finished, tick)

    @property
    def common_updates(self) -> int:
        """Updates that every learner has made and reported."""
        with self._changed:
            return min(self._owed if name in self._finished else made for name, made in self._updates.items())

    def stop(self, threads: list[threading.Thread]) -> None:
        """Ends all loops, and waits for updates that are being made."""
        with self._changed:
            self._stopping = True
            self._changed.notify_all()
        for thread in threads:
            thread.join()

    def _all(self, counts: Mapping[Any, int], target: int) -> bool:
        return all(count >= target or member in self._finished for member, count in counts.items())

    def _drive(self, condition: Callable[[], bool], tick: Callable[[], None]) -> None:
        done = False
        while not done:
            with self._changed:
                done = self._changed.wait_for(lambda: condition() or self._error is not None, TICK_S)
            tick()
        if self._error is not None:
            raise self._error


class JointUpdate:
    """One update of several learners of one kind as a single computation, each learner in its own thread."""

    def __init__(self, learners: list[Learner], permits: threading.Semaphore, rounds: Rounds) -> None:
        """`permits` bounds the computations at a time."""
        self._learners, self._permits, self._rounds = learners, permits, rounds
        self._changed = threading.Condition()
        self._windows: dict[str, Columns] = {}
        self._rows: dict[str, Metrics] = {}
        self._made = 0

    def prepare(self) -> None:
        """Compiles the update. If several learners call it at once, JAX compiles once, and all of them wait for it."""
        if len(self._learners) == 1:
            self._learners[0].prepare()
        else:
            Learner.prepare_together(self._learners)

    def of(self, learner: Learner) -> Update:
        """Returns the update of one learner, which waits for the others."""
        return lambda windows: self._join(learner.name, windows)

    def _join(self, name: str, windows: Columns) -> Metrics:
        with self._changed:
            self._windows[name] = windows
            made = self._made
            if len(self._windows) == len(self._learners):
                self._update()
            while self._made == made:
                self._rounds.check_stopping()
                self._changed.wait(TICK_S)
            return self._rows[name]

    def _update(self) -> None:
        names = [learner.name for learner in self._learners]
        with self._permits:
            if len(names) == 1:
                rows = [self._learners[0].update(self._windows[names[0]])]
            else:
                rows = Learner.update_together(self._learners, [self._windows[name] for name in names])
        self._rows, self._windows = dict(zip(names, rows, strict=True)), {}
        self._made += 1
        self._changed.notify_all()
