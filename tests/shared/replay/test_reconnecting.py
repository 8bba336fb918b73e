"""Reconnecting clients of real servers that are killed in every phase of a run, with an account of every window."""

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from deploy.replay.server.process import ReplayServer, TableSpec
from shared.config import Experiment
from shared.envs.base import EnvSpec
from shared.metrics import Reporter
from shared.plan import make_plan
from shared.replay.audit import AuditLog, account, read_audit
from shared.replay.codec import Columns
from shared.replay.errors import ReplayStopped
from shared.replay.info import TableInfo, server_info
from shared.replay.insert import Keys
from shared.replay.reconnecting import (
    UNCONFIRMED,
    ReconnectingInserter,
    ReconnectingSampler,
    RefillSplit,
    ServerIncarnation,
)
from shared.replay.windows import VOID_EPISODE, no_windows
from tests.shared.replay.cases import copied, unroll, wait_until

N, T, K = 4, 5, 3
LEARNER = "deep"
EXPERIMENT = {
    "env": "counting",
    "collector": {"environments": N, "unroll_length": T},
    "algorithm": {"batch_size": 2, "windows_per_update": 2, "minibatches_per_update": 1},
    "replay": {"steps_per_environment": 43, "prefill_steps": 1},
    "budget": {"env_steps": 1200},
}
SPEC = EnvSpec(
    state_size=2, goal_size=1, action_size=1, goal_indices=(0,), episode_length=10, goal_radius=0.5, num_cells=1
)
PLAN = make_plan(Experiment.model_validate(EXPERIMENT), SPEC)
BATCH = PLAN.windows_per_update
STORED = PLAN.stored_unrolls


class Source:
    """One incarnation of a source, with a list as its stream; the next incarnation gets the same list."""

    def __init__(self, folder: Path, stream: list[tuple[int, Columns]], name: str = "source-0") -> None:
        self.stream, self.reporter, self.stop = stream, Reporter(), threading.Event()
        self.windows = no_windows(N)
        self.after_past: Callable[[], object] = lambda: None
        audit = AuditLog(folder / f"{name}.keys")
        self.inserter = ReconnectingInserter(PLAN, 0, N, self.past, self.reporter, self.stop, 20.0, audit)
        for number, columns in stream:
            self._register(number, columns)

    def past(self, first: int) -> Iterator[tuple[int, Columns]]:
        yield from (unroll for unroll in list(self.stream) if unroll[0] >= first)
        self.after_past()

    def add(self, number: int, columns: Columns | None = None) -> None:
        columns = unroll(number, N, T) if columns is None else columns
        self.stream.append((number, columns))
        self._register(number, columns)
        self.inserter.insert(number, columns)

    def _register(self, number: int, columns: Columns) -> None:
        self.windows = self.windows.after(number, columns.ints, K)
        self.inserter.register_windows(self.windows)


class Run:
    """A source, a learner and its table over the incarnations of the server, with the driver's part in restarts."""

    def __init__(self, folder: Path, python: Path) -> None:
        self._folder, self._python = folder, python
        self.audit = folder / "audit"
        self.source = Source(self.audit, [])
        self.reporter, self.stop = Reporter(), threading.Event()
        self.sampler = ReconnectingSampler(PLAN, LEARNER, copied, self.reporter, self.stop, 20.0)
        self.sampler.open(4, taken=0)
        self.batches: list[Columns] = []
        self.errors: list[Exception] = []
        self.threads: list[threading.Thread] = []
        self.num_incarnations = 0
        self.incarnation: ServerIncarnation
        self.spec: TableSpec
        self.server: ReplayServer | None = None

    def start_server(self, split: RefillSplit = RefillSplit(0, 0), taken: int = 0, limited: bool = True) -> None:  # noqa: B008
        """Starts the next server, and does not announce it."""
        self.num_incarnations += 1
        self.spec = TableSpec(
            f"run-{self.num_incarnations}/{LEARNER}",
            PLAN.max_windows,
            PLAN.prefill_windows,
            PLAN.samples_per_insert if limited else None,
            PLAN.error_buffer if limited else None,
            split.inserted,
            taken,
            split.refilled,
        )
        self.server = ReplayServer(self._python, self._folder / "server.log")
        address = self.server.start([self.spec])
        tables = {LEARNER: self.spec.name}
        self.incarnation = ServerIncarnation(self.num_incarnations, address, tables, split.inserted)

    def announce(self) -> None:
        self.source.inserter.connect(self.incarnation)
        self.sampler.connect(self.incarnation)

    def kill_server(self) -> None:
        assert self.server is not None
        assert self.server.pid is not None
        os.kill(self.server.pid, signal.SIGKILL)
        self.server.stop()

    def replace_server(self) -> RefillSplit:
        """Starts a server after one was killed, and announces it to source and learner."""
        split, taken = self.source.inserter.disconnect(), self.sampler.disconnect()
        assert taken is not None
        self.start_server(split, taken)
        self.announce()
        return split

    def table(self) -> TableInfo:
        return server_info(self.incarnation.address).tables[self.spec.name]

    def start_thread(self, work: Callable[[], object]) -> threading.Thread:
        """Starts a thread that calls `work`, and appends its exception to `errors`."""

        def main() -> None:
            try:
                work()
            except Exception as error:  # noqa: BLE001 - tests check `errors`
                self.errors.append(error)

        thread = threading.Thread(target=main)
        self.threads.append(thread)
        thread.start()
        return thread

    def collect(self, unrolls: int = PLAN.unrolls) -> None:
        self.source.inserter.open()
        for number in range(unrolls):
            self.source.add(number)
        self.source.inserter.flush()

    def learn(self, updates: int = PLAN.updates) -> None:
        while len(self.batches) < updates:
            self.batches.append(self.sampler.sample())

    def keys(self, *numbers: int) -> set[int]:
        return set(Keys(0, N, 1).of(numbers)[..., 1:].ravel().tolist())

    def close(self) -> None:
        self.stop.set()
        self.source.stop.set()
        for thread in self.threads:
            thread.join(10)
        self.source.inserter.close()
        self.sampler.close()
        if self.server is not None:
            self.server.stop()
        assert not any(thread.is_alive() for thread in self.threads)


@pytest.fixture
def run(tmp_path: Path, reverb_python: Path) -> Iterator[Run]:
    run = Run(tmp_path, reverb_python)
    yield run
    run.close()


def wait_until_full(run: Run) -> int:
    """Waits until the limiter blocks the source, and returns the number of windows inserted."""
    inserted = -1
    while run.table().inserted != inserted or not inserted:
        inserted = run.table().inserted
        time.sleep(0.3)
    return inserted


def check_limits(run: Run) -> None:
    """Checks that the learner has not sampled more than the limiter allows, and nothing before the refill was done."""
    table, spec = run.table(), run.spec
    if table.sampled:
        assert table.inserted >= min(spec.refilled, table.min_size_to_sample)
        ahead = (spec.inserted + table.inserted - PLAN.prefill_windows) * PLAN.samples_per_insert + PLAN.error_buffer
        assert spec.sampled + table.sampled <= ahead


def check_batches(batches: list[Columns]) -> None:
    """Checks that all planned batches came and have whole windows, although servers died while batches arrived."""
    assert len(batches) == PLAN.updates
    for batch in batches:
        assert (np.diff(batch.ints[..., 1], axis=1) == 1).all()
        assert (batch.ints[..., 0] == batch.ints[:, :1, 0]).all()
        assert (batch.floats == batch.ints).all()


def check_account(run: Run, counted: dict[int, int]) -> None:
    ints = ((number, columns.ints) for number, columns in run.source.stream)
    result = account([ints], N, 1, K, read_audit(run.audit), counted)
    assert result == (PLAN.windows, 0, 0)


def test_a_run_over_three_servers_counts_like_a_run_over_one(run: Run) -> None:
    """Kills two servers while source and learner work: counts continue, and no window is lost or held twice."""
    run.start_server()
    assert not run.source.inserter.room
    run.announce()
    threads = run.start_thread(run.collect), run.start_thread(run.learn)
    for updates in (PLAN.updates // 3, 2 * PLAN.updates // 3):
        while len(run.batches) < updates:
            check_limits(run)
            assert run.errors == []
            time.sleep(0.01)
        run.kill_server()
        split = run.replace_server()
        assert split.inserted > 0
        assert split.refilled == PLAN.max_windows
        assert run.spec.sampled >= len(run.batches) * BATCH
    while any(thread.is_alive() for thread in threads):
        check_limits(run)
        time.sleep(0.01)
    assert run.errors == []
    check_batches(run.batches)
    table, held = run.table(), read_audit(run.audit)[run.incarnation.number]
    assert run.spec.inserted + table.inserted == PLAN.windows
    assert run.spec.sampled + table.sampled == PLAN.updates * BATCH == run.sampler.taken
    assert table.size == PLAN.max_windows
    assert held == run.keys(*range(run.spec.inserted // N + K - 1, PLAN.unrolls))
    assert table.inserted == len(held)
    assert run.sampler.windows_inserted() == PLAN.windows
    assert run.source.inserter.room
    assert (run.reporter.server, run.source.reporter.server) == (3, 3)
    check_account(run, {run.incarnation.number: table.inserted})


def test_nothing_is_sampled_before_the_refill_is_done(run: Run) -> None:
    unrolls, updates = 14, 18
    run.start_server()
    run.announce()
    threads = run.start_thread(lambda: run.collect(unrolls)), run.start_thread(lambda: run.learn(updates))
    for thread in threads:
        thread.join(60)
    run.kill_server()
    split, taken = run.source.inserter.disconnect(), run.sampler.disconnect()
    assert taken is not None
    run.start_server(split, taken)
    run.sampler.connect(run.incarnation)
    learner = run.start_thread(lambda: run.learn(taken // BATCH + 1))
    insert_part_of_refill(run, list(range(unrolls - STORED, unrolls - 1)))
    time.sleep(0.5)
    assert (run.table().inserted, run.table().sampled) == (split.refilled - N, 0)
    run.source.inserter.connect(run.incarnation)
    run.start_thread(run.source.inserter.keep_filling)
    learner.join(60)
    assert run.errors == []
    assert len(run.batches) == taken // BATCH + 1
    assert run.table().inserted == split.refilled


def insert_part_of_refill(run: Run, numbers: list[int]) -> None:
    """Inserts the unrolls `numbers` as a source would that is slow to insert the rest of its refill."""
    reporter, stop = Reporter(), threading.Event()
    past = [entry for entry in run.source.stream if entry[0] in numbers]
    slow = ReconnectingInserter(PLAN, 0, N, lambda first: iter(past), reporter, stop, 20.0)
    slow.register_windows(run.source.windows._replace(number=numbers[-1]))
    slow.disconnect()
    slow.connect(run.incarnation)
    slow.open()
    slow.flush()
    slow.close()


def test_servers_may_die_while_the_source_is_blocked_and_during_the_refill(run: Run) -> None:
    """Kills one server while the limiter blocks the source, the next while it blocks the refill; no window is lost."""
    run.start_server()
    run.announce()
    run.start_thread(run.collect)
    confirmed = wait_until_full(run)
    assert run.source.windows.made > confirmed
    run.kill_server()
    split = run.replace_server()
    assert split.inserted + split.refilled == run.source.windows.made
    part = wait_until_full(run)
    assert 0 < part < split.refilled
    run.kill_server()
    assert run.replace_server() == split
    learner = run.start_thread(run.learn)
    learner.join(60)
    assert wait_until(lambda: run.spec.inserted + run.table().inserted == PLAN.windows)
    assert run.errors == []
    assert len(run.batches) == PLAN.updates
    check_account(run, {run.incarnation.number: run.table().inserted})


def test_a_server_may_die_right_after_the_last_unroll_of_its_refill(run: Run) -> None:
    """Kills a server that gets no further unroll, so that no insert fails; the next server is still refilled."""
    run.start_server(limited=False)
    run.source.inserter.connect(run.incarnation)
    run.collect(unrolls=12)

    sent, resume = threading.Event(), threading.Event()

    def wait() -> None:
        sent.set()
        resume.wait(20)

    run.kill_server()
    run.start_server(run.source.inserter.disconnect(), limited=False)
    run.source.after_past = wait
    run.source.inserter.connect(run.incarnation)
    run.start_thread(run.source.inserter.keep_filling)
    assert sent.wait(20)
    run.kill_server()
    run.start_server(run.source.inserter.disconnect(), limited=False)
    run.source.inserter.connect(run.incarnation)
    resume.set()
    assert wait_until(lambda: run.table().inserted == run.spec.refilled == PLAN.max_windows)
    assert run.source.reporter.server == 3


def test_a_batch_that_is_decoded_during_the_disconnect_is_trained_on(run: Run) -> None:
    """Counts such a batch as taken, so that the next server does not send its windows again."""
    arrived = threading.Event()

    def slow_copy(columns: Columns) -> Columns:
        if not arrived.is_set():
            arrived.set()
            sampler = run.sampler._sampler
            assert sampler is not None
            assert wait_until(lambda: sampler._closed)
            time.sleep(0.2)  # the learner has found its sampler closed by now
        return copied(columns)

    run.sampler = ReconnectingSampler(PLAN, LEARNER, slow_copy, run.reporter, run.stop, 20.0)
    run.sampler.open(4, taken=0)
    run.start_server(limited=False)
    run.announce()
    run.collect(unrolls=12)
    learning = run.start_thread(run.learn)
    assert arrived.wait(20)
    run.kill_server()
    split, taken = run.source.inserter.disconnect(), run.sampler.disconnect()
    assert taken == BATCH
    run.start_server(split, taken, limited=False)
    run.announce()
    run.start_thread(run.source.inserter.keep_filling)
    learning.join(60)
    assert run.errors == []
    assert len(run.batches) == PLAN.updates


def test_a_server_may_be_dead_before_any_client_connects(run: Run) -> None:
    run.start_server()
    run.kill_server()
    threads = run.start_thread(run.collect), run.start_thread(run.learn)
    run.announce()
    assert wait_until(lambda: run.source.reporter.lost_server == run.reporter.lost_server == 1)
    assert (run.source.reporter.server, run.reporter.server) == (0, 0)
    assert run.replace_server() == RefillSplit(0, 0)
    for thread in threads:
        thread.join(60)
    assert run.errors == []
    assert len(run.batches) == PLAN.updates
    check_account(run, {run.incarnation.number: run.table().inserted})


def test_a_restarted_source_sends_only_windows_that_may_be_missing(run: Run) -> None:
    """Closes a source while its last windows may be unconfirmed; the next incarnation sends only these again."""
    run.start_server(limited=False)
    first, unrolls = run.source, 12
    first.inserter.connect(run.incarnation)
    first.inserter.open()
    for number in range(unrolls):
        first.add(number)
    first.inserter.close()
    run.source = Source(run.audit, first.stream, "again")
    run.source.inserter.connect(run.incarnation)
    run.source.inserter.open()
    run.source.add(unrolls)
    run.source.inserter.flush()
    assert run.table().inserted == run.source.windows.made == (unrolls + 1 - K + 1) * N
    assert run.table().size == PLAN.max_windows
    assert set(os.listdir(run.audit)) == {"source-0.keys", "again.keys"}
    (run.audit / "source-0.keys").unlink()
    assert read_audit(run.audit) == {1: run.keys(*range(unrolls - UNCONFIRMED, unrolls + 1))}


def test_no_window_spans_a_gap_or_a_void_chunk_in_any_incarnation(run: Run) -> None:
    run.start_server(limited=False)
    run.source.inserter.connect(run.incarnation)
    run.source.inserter.open()
    for number in (0, 1, 2, 4, 5, 6, 7, 8):  # unroll 3 is missing, as after a restart of the collector
        columns = unroll(number, N, T)
        if number == 5:
            columns.ints[1, :, 0] = VOID_EPISODE
        run.source.add(number, columns)
    run.source.inserter.flush()
    held = run.keys(2, 6, 7, 8) - set(Keys(0, N, 1).of((6, 7))[:, 1, 1].tolist())
    assert read_audit(run.audit) == {1: held}
    assert run.table().inserted == len(held) == run.source.windows.made
    run.kill_server()
    split = run.source.inserter.disconnect()
    run.start_server(split, limited=False)
    run.source.inserter.connect(run.incarnation)
    run.source.add(9)
    run.source.inserter.flush()
    assert split == RefillSplit(N, len(held) - N)  # the refill starts at unroll 1, without the windows of unroll 0
    assert read_audit(run.audit)[2] == (held | run.keys(9)) - run.keys(2)
    assert run.table().inserted == split.refilled + N


def test_a_finished_source_refills_the_next_server(run: Run) -> None:
    run.start_server(limited=False)
    run.source.inserter.connect(run.incarnation)
    run.collect(unrolls=12)
    refilling = run.start_thread(run.source.inserter.keep_filling)
    run.kill_server()
    split = run.source.inserter.disconnect()
    assert split == RefillSplit(run.source.windows.made - PLAN.max_windows, PLAN.max_windows)
    run.start_server(split, limited=False)
    run.source.inserter.connect(run.incarnation)
    assert wait_until(lambda: run.table().size == PLAN.max_windows)
    assert run.table().inserted == split.refilled
    run.source.stop.set()
    refilling.join(2)
    assert not refilling.is_alive()
    assert [type(error) for error in run.errors] == [ReplayStopped]


def test_stop_ends_the_wait_for_a_server(run: Run) -> None:
    for stop, work in ((run.source.stop, run.source.inserter.open), (run.stop, run.sampler.sample)):
        thread = run.start_thread(work)
        time.sleep(0.2)
        assert thread.is_alive()
        stop.set()
        thread.join(2)
        assert not thread.is_alive()
    assert [type(error) for error in run.errors] == [ReplayStopped, ReplayStopped]
