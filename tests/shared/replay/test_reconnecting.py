"""Clients that outlast their server: real servers, killed at the worst moments, and every window accounted for."""

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

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


def unroll(number: int) -> Columns:
    """Rows say their environment, their step and their unroll."""
    environment, row = np.indices((N, T))
    ints = np.stack([environment, number * T + row, 0 * row + number], axis=-1).astype(np.int32)
    return Columns(ints.astype(np.float32), ints)


class Source:
    """A source whose stream is a list: what a process of the role would do, and what outlives it."""

    def __init__(self, folder: Path, stream: list[tuple[int, Columns]], name: str = "source-0") -> None:
        self.stream, self.reporter, self.stop = stream, Reporter(), threading.Event()
        self.windows = no_windows(N)
        self.end_of_past: Callable[[], object] = lambda: None
        audit = AuditLog(folder / f"{name}.keys")
        self.inserter = ReconnectingInserter(PLAN, 0, N, self.past, self.reporter, self.stop, 20.0, audit)
        for number, columns in stream:
            self._know(number, columns)

    def past(self, first: int) -> Iterator[tuple[int, Columns]]:
        yield from (unroll for unroll in list(self.stream) if unroll[0] >= first)
        self.end_of_past()

    def add(self, number: int, columns: Columns | None = None) -> None:
        columns = unroll(number) if columns is None else columns
        self.stream.append((number, columns))
        self._know(number, columns)
        self.inserter.insert(number, columns)

    def _know(self, number: int, columns: Columns) -> None:
        self.windows = self.windows.after(number, columns.ints, K)
        self.inserter.register_windows(self.windows)


class World:
    """One table of one learner over the lives of its server, as the driver keeps it."""

    def __init__(self, folder: Path, python: Path) -> None:
        self._folder, self._python = folder, python
        self.audit = folder / "audit"
        self.source = Source(self.audit, [])
        self.reporter, self.stop = Reporter(), threading.Event()
        self.sampler = ReconnectingSampler(PLAN, LEARNER, copied, self.reporter, self.stop, 20.0)
        self.sampler.open(3, taken=0)
        self.batches: list[Columns] = []
        self.errors: list[Exception] = []
        self.threads: list[threading.Thread] = []
        self.lives = 0
        self.life: ServerIncarnation
        self.spec: TableSpec
        self.server: ReplayServer | None = None

    def begin(self, behind: RefillSplit = RefillSplit(0, 0), taken: int = 0, limited: bool = True) -> None:  # noqa: B008
        """The next server, which nobody knows of yet."""
        self.lives += 1
        self.spec = TableSpec(
            f"run-{self.lives}/{LEARNER}",
            PLAN.max_windows,
            PLAN.prefill_windows,
            PLAN.samples_per_insert if limited else None,
            PLAN.error_buffer if limited else None,
            behind.inserted,
            taken,
            behind.refilled,
        )
        self.server = ReplayServer(self._python, self._folder / "server.log")
        address = self.server.start([self.spec])
        self.life = ServerIncarnation(self.lives, address, {LEARNER: self.spec.name}, behind.inserted)

    def announce(self) -> None:
        self.source.inserter.connect(self.life)
        self.sampler.connect(self.life)

    def kill(self) -> None:
        assert self.server is not None
        assert self.server.pid is not None
        os.kill(self.server.pid, signal.SIGKILL)
        self.server.stop()

    def replace(self) -> RefillSplit:
        """A new server after one that was killed, announced to both sides."""
        behind, taken = self.source.inserter.disconnect(), self.sampler.disconnect()
        assert taken is not None
        self.begin(behind, taken)
        self.announce()
        return behind

    def table(self) -> TableInfo:
        return server_info(self.life.address).tables[self.spec.name]

    def work(self, what: Callable[[], object]) -> threading.Thread:
        """Does it in a thread; what goes wrong there is in `errors`."""

        def main() -> None:
            try:
                what()
            except Exception as error:  # noqa: BLE001 - the test asks for it
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
def world(tmp_path: Path, reverb_python: Path) -> Iterator[World]:
    world = World(tmp_path, reverb_python)
    yield world
    world.close()


def copied(columns: Columns) -> Columns:
    return Columns(np.copy(columns.floats), np.copy(columns.ints))


def wait_for(what: Callable[[], Any], seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < deadline, "it never came"
        time.sleep(0.02)


def wait_until_full(world: World) -> int:
    """Until the limiter holds the source back; what the table holds then."""
    inserted = -1
    while world.table().inserted != inserted or not inserted:
        inserted = world.table().inserted
        time.sleep(0.3)
    return inserted


def check_limits(world: World) -> None:
    """The learner has not run ahead, and was given nothing before the refill was done."""
    table, spec = world.table(), world.spec
    if table.sampled:
        assert table.inserted >= min(spec.refilled, table.min_size_to_sample)
        ahead = (spec.inserted + table.inserted - PLAN.prefill_windows) * PLAN.samples_per_insert + PLAN.error_buffer
        assert spec.sampled + table.sampled <= ahead


def check_batches(batches: list[Columns]) -> None:
    """All that were planned, each of whole windows, though servers died with some half received."""
    assert len(batches) == PLAN.updates
    for batch in batches:
        assert (np.diff(batch.ints[..., 1], axis=1) == 1).all()
        assert (batch.ints[..., 0] == batch.ints[:, :1, 0]).all()
        assert (batch.floats == batch.ints).all()


def check_account(world: World, counted: dict[int, int]) -> None:
    ints = ((number, columns.ints) for number, columns in world.source.stream)
    result = account([ints], N, 1, K, read_audit(world.audit), counted)
    assert result == (PLAN.windows, 0, 0)


def test_a_run_over_three_servers_is_a_run_over_one(world: World) -> None:
    """Two servers die while both sides are at work: counts go on, and every window is held once."""
    world.begin()
    assert not world.source.inserter.room
    world.announce()
    both = world.work(world.collect), world.work(world.learn)
    for updates in (PLAN.updates // 3, 2 * PLAN.updates // 3):
        while len(world.batches) < updates:
            check_limits(world)
            assert world.errors == []
            time.sleep(0.01)
        world.kill()
        behind = world.replace()
        assert behind.inserted > 0
        assert behind.refilled == PLAN.max_windows
        assert world.spec.sampled >= len(world.batches) * BATCH
    while any(thread.is_alive() for thread in both):
        check_limits(world)
        time.sleep(0.01)
    assert world.errors == []
    check_batches(world.batches)
    table, held = world.table(), read_audit(world.audit)[world.lives]
    assert world.spec.inserted + table.inserted == PLAN.windows
    assert world.spec.sampled + table.sampled == PLAN.updates * BATCH == world.sampler.taken
    assert table.size == PLAN.max_windows
    assert held == world.keys(*range(world.spec.inserted // N + K - 1, PLAN.unrolls))
    assert table.inserted == len(held)
    assert world.sampler.windows_inserted() == PLAN.windows
    assert world.source.inserter.room
    assert (world.reporter.server, world.source.reporter.server) == (3, 3)
    check_account(world, {world.lives: table.inserted})


def test_nothing_is_sampled_before_the_refill_is_done(world: World) -> None:
    unrolls, updates = 14, 18
    world.begin()
    world.announce()
    both = world.work(lambda: world.collect(unrolls)), world.work(lambda: world.learn(updates))
    for thread in both:
        thread.join(60)
    world.kill()
    behind, taken = world.source.inserter.disconnect(), world.sampler.disconnect()
    assert taken is not None
    world.begin(behind, taken)
    world.sampler.connect(world.life)
    again = world.work(lambda: world.learn(taken // BATCH + 1))
    put_in_by_hand(world, list(range(unrolls - STORED, unrolls - 1)))
    time.sleep(0.5)
    assert (world.table().inserted, world.table().sampled) == (behind.refilled - N, 0)
    world.source.inserter.connect(world.life)
    world.work(world.source.inserter.keep_filling)
    again.join(60)
    assert world.errors == []
    assert len(world.batches) == taken // BATCH + 1
    assert world.table().inserted == behind.refilled


def put_in_by_hand(world: World, numbers: list[int]) -> None:
    """As a source that is slow to put in its last unroll."""
    reporter, stop = Reporter(), threading.Event()
    past = [entry for entry in world.source.stream if entry[0] in numbers]
    slow = ReconnectingInserter(PLAN, 0, N, lambda first: iter(past), reporter, stop, 20.0)
    slow.register_windows(world.source.windows._replace(number=numbers[-1]))
    slow.disconnect()
    slow.connect(world.life)
    slow.open()
    slow.flush()
    slow.close()


def test_a_server_may_die_while_windows_wait_and_while_it_is_filled(world: World) -> None:
    """The limiter holds the source back, and without a learner the refill as well; nothing is missing at the end."""
    world.begin()
    world.announce()
    world.work(world.collect)
    confirmed = wait_until_full(world)
    assert world.source.windows.made > confirmed
    world.kill()
    first = world.replace()
    assert first.inserted + first.refilled == world.source.windows.made
    part = wait_until_full(world)
    assert 0 < part < first.refilled
    world.kill()
    assert world.replace() == first
    learner = world.work(world.learn)
    learner.join(60)
    wait_for(lambda: world.spec.inserted + world.table().inserted == PLAN.windows)
    assert world.errors == []
    assert len(world.batches) == PLAN.updates
    check_account(world, {world.lives: world.table().inserted})


def test_a_server_may_die_when_its_last_unroll_was_just_sent(world: World) -> None:
    """Nothing is sent to it that could fail; the next server is filled all the same."""
    world.begin(limited=False)
    world.source.inserter.connect(world.life)
    world.collect(unrolls=12)

    sent, resume = threading.Event(), threading.Event()

    def wait() -> None:
        sent.set()
        resume.wait(20)

    world.kill()
    world.begin(world.source.inserter.disconnect(), limited=False)
    world.source.end_of_past = wait
    world.source.inserter.connect(world.life)
    world.work(world.source.inserter.keep_filling)
    assert sent.wait(20)
    world.kill()
    world.begin(world.source.inserter.disconnect(), limited=False)
    world.source.inserter.connect(world.life)
    resume.set()
    wait_for(lambda: world.table().inserted == world.spec.refilled == PLAN.max_windows)
    assert world.source.reporter.server == 3


def test_a_batch_that_is_decoded_while_its_server_is_left_is_trained_on(world: World) -> None:
    """It counts as taken, so the next server does not give it again."""
    arrived = threading.Event()

    def slow(columns: Columns) -> Columns:
        if not arrived.is_set():
            arrived.set()
            sampler = world.sampler._sampler
            assert sampler is not None
            wait_for(lambda: sampler._closed)
            time.sleep(0.2)  # the learner has found its sampler closed by now
        return copied(columns)

    world.sampler = ReconnectingSampler(PLAN, LEARNER, slow, world.reporter, world.stop, 20.0)
    world.sampler.open(3, taken=0)
    world.begin(limited=False)
    world.announce()
    world.collect(unrolls=12)
    learning = world.work(world.learn)
    assert arrived.wait(20)
    world.kill()
    behind, taken = world.source.inserter.disconnect(), world.sampler.disconnect()
    assert taken == BATCH
    world.begin(behind, taken, limited=False)
    world.announce()
    world.work(world.source.inserter.keep_filling)
    learning.join(60)
    assert world.errors == []
    assert len(world.batches) == PLAN.updates


def test_a_server_may_be_dead_before_anyone_connects(world: World) -> None:
    world.begin()
    world.kill()
    both = world.work(world.collect), world.work(world.learn)
    world.announce()
    wait_for(lambda: world.source.reporter.lost_server == world.reporter.lost_server == 1)
    assert (world.source.reporter.server, world.reporter.server) == (0, 0)
    assert world.replace() == RefillSplit(0, 0)
    for thread in both:
        thread.join(60)
    assert world.errors == []
    assert len(world.batches) == PLAN.updates
    check_account(world, {world.lives: world.table().inserted})


def test_a_new_process_of_a_source_sends_only_what_may_be_missing(world: World) -> None:
    """Its predecessor died with windows on their way to a server that lives on."""
    world.begin(limited=False)
    first, unrolls = world.source, 12
    first.inserter.connect(world.life)
    first.inserter.open()
    for number in range(unrolls):
        first.add(number)
    first.inserter.close()
    world.source = Source(world.audit, first.stream, "again")
    world.source.inserter.connect(world.life)
    world.source.inserter.open()
    world.source.add(unrolls)
    world.source.inserter.flush()
    assert world.table().inserted == world.source.windows.made == (unrolls + 1 - K + 1) * N
    assert world.table().size == PLAN.max_windows
    assert set(os.listdir(world.audit)) == {"source-0.keys", "again.keys"}
    (world.audit / "source-0.keys").unlink()
    assert read_audit(world.audit) == {1: world.keys(*range(unrolls - UNCONFIRMED, unrolls + 1))}


def test_no_window_spans_a_gap_or_a_void_chunk_in_any_life(world: World) -> None:
    world.begin(limited=False)
    world.source.inserter.connect(world.life)
    world.source.inserter.open()
    for number in (0, 1, 2, 4, 5, 6, 7, 8):  # 3 is left out: another life of the collector
        columns = unroll(number)
        if number == 5:
            columns.ints[1, :, 0] = VOID_EPISODE
        world.source.add(number, columns)
    world.source.inserter.flush()
    held = world.keys(2, 6, 7, 8) - set(Keys(0, N, 1).of((6, 7))[:, 1, 1].tolist())
    assert read_audit(world.audit) == {1: held}
    assert world.table().inserted == len(held) == world.source.windows.made
    world.kill()
    behind = world.source.inserter.disconnect()
    world.begin(behind, limited=False)
    world.source.inserter.connect(world.life)
    world.source.add(9)
    world.source.inserter.flush()
    assert behind == RefillSplit(N, len(held) - N)  # unroll 0 is out of replay, and with it the first window
    assert read_audit(world.audit)[2] == (held | world.keys(9)) - world.keys(2)
    assert world.table().inserted == behind.refilled + N


def test_a_source_that_is_done_fills_the_next_server(world: World) -> None:
    world.begin(limited=False)
    world.source.inserter.connect(world.life)
    world.collect(unrolls=12)
    keeper = world.work(world.source.inserter.keep_filling)
    world.kill()
    behind = world.source.inserter.disconnect()
    assert behind == RefillSplit(world.source.windows.made - PLAN.max_windows, PLAN.max_windows)
    world.begin(behind, limited=False)
    world.source.inserter.connect(world.life)
    wait_for(lambda: world.table().size == PLAN.max_windows)
    assert world.table().inserted == behind.refilled
    world.source.stop.set()
    keeper.join(2)
    assert not keeper.is_alive()
    assert [type(error) for error in world.errors] == [ReplayStopped]


def test_waiting_for_a_server_ends_when_asked(world: World) -> None:
    for stop, work in ((world.source.stop, world.source.inserter.open), (world.stop, world.sampler.sample)):
        thread = world.work(work)
        time.sleep(0.2)
        assert thread.is_alive()
        stop.set()
        thread.join(2)
        assert not thread.is_alive()
    assert [type(error) for error in world.errors] == [ReplayStopped, ReplayStopped]
