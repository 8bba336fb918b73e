"""Bounds and counts of the messages and batches that clients hold, and time-outs of paused clients."""

import threading
import time
from collections.abc import Callable

import pytest

from shared.replay.errors import ReplayTimeout
from shared.replay.info import server_info
from shared.replay.insert import MESSAGES_IN_FLIGHT, MOST_KEPT_CHUNKS, Inserter
from shared.replay.sample import Sampler
from tests.shared.replay.cases import F, T, copied, unroll, wait_until


def test_messages_in_flight_and_batches_ready_go_up_and_down(address: str) -> None:
    """Uses a table that takes 16 windows before the first sample, and 70 environments in two streams."""
    chunks = MOST_KEPT_CHUNKS // 70 + 2
    inserter = Inserter(address, ["queued"], chunks, 70, timeout_s=20)
    for _ in range(chunks - 1):
        inserter.insert(unroll(0, 70))
    inserter.flush(timeout_s=10)
    assert inserter.in_flight == 0
    for _ in range(MESSAGES_IN_FLIGHT):
        inserter.insert(unroll(0, 70))
    assert inserter.in_flight == 2 * MESSAGES_IN_FLIGHT
    blocked = threading.Thread(target=inserter.insert, args=(unroll(0, 70),))
    blocked.start()
    assert not wait_until(lambda: inserter.in_flight != 2 * MESSAGES_IN_FLIGHT, seconds=0.5)

    sampler = Sampler(address, "queued", 10, chunks * T, F, copied, max_windows=200)
    assert not wait_until(lambda: server_info(address).tables["queued"].sampled > 0, seconds=0.5)
    sampler.start()
    assert wait_until(lambda: sampler.batches_ready == 2)
    assert not wait_until(lambda: sampler.batches_ready > 2, seconds=0.5)
    assert server_info(address).tables["queued"].sampled == 20
    for _ in range(20):
        sampler.sample()
    assert sampler.batches_ready == 0
    blocked.join(10)
    assert not blocked.is_alive()
    inserter.flush(timeout_s=10)
    assert inserter.in_flight == 0
    inserter.close()
    sampler.close()


def test_paused_time_does_not_count_towards_a_timeout(address: str) -> None:
    paused = threading.Event()

    def seconds_to_timeout(call: Callable[[], object]) -> float:
        """Returns the seconds until `call` timed out; the first 1.2 of them are paused."""
        paused.set()
        timer = threading.Timer(1.2, paused.clear)
        timer.start()
        started = time.monotonic()
        with pytest.raises(ReplayTimeout):
            call()
        timer.join()
        return time.monotonic() - started

    sampler = Sampler(address, "empty", 4, T, F, copied, timeout_s=1.0, paused=paused.is_set)
    assert 2.0 <= seconds_to_timeout(sampler.sample) < 5
    sampler.close()
    inserter = Inserter(address, ["full"], 1, 4, timeout_s=1.0, paused=paused.is_set)
    inserter.insert(unroll(0, 4))
    assert 2.0 <= seconds_to_timeout(lambda: inserter.flush(1.0)) < 5
    inserter.close()
