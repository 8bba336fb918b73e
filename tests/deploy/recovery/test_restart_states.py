"""Restart states of a learner: restoring the newest readable state, and writing that does not delay training."""

import shutil
import threading
import time
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deploy.recovery.background import BackgroundWriter, on_host
from deploy.recovery.restart_states import KEPT, REST, RestartStates
from shared import checkpoint
from shared.disk import Disk

ALL_REPORTED = 10**9


def state(updates: int) -> dict[str, Any]:
    return {"weights": jnp.full((3, 4), float(updates)), "key": jax.random.key(updates)}


LIKE = jax.eval_shape(lambda: state(0))


def restart_states(folder: Path, background: BackgroundWriter | None = None) -> RestartStates:
    folder.mkdir(exist_ok=True)
    return RestartStates(folder, background or BackgroundWriter(), Disk(folder, 0.0))


def weight(held: Any) -> float:
    return float(held["weights"][0, 0])


def test_the_newest_state_is_found(tmp_path: Path) -> None:
    states = restart_states(tmp_path / "states")
    assert states.newest(LIKE, ALL_REPORTED) is None
    for updates in (8, 9, 10):
        states.save(updates, state(updates))
    assert weight(restart_states(tmp_path / "states").newest(LIKE, ALL_REPORTED)) == 10
    assert sorted(path.name for path in (tmp_path / "states").iterdir()) == ["10", "9"]
    assert KEPT == 2


def test_a_state_that_the_driver_recorded_is_preferred_to_a_newer_one(tmp_path: Path) -> None:
    states = restart_states(tmp_path)
    for updates in (8, 9):
        states.save(updates, state(updates))
    assert [weight(states.newest(LIKE, last_reported)) for last_reported in (7, 8, 9)] == [9, 8, 9]


def test_random_keys_are_restored(tmp_path: Path) -> None:
    states = restart_states(tmp_path)
    states.save(3, state(3))
    held = states.newest(LIKE, ALL_REPORTED)
    assert jax.random.normal(held["key"]) == jax.random.normal(jax.random.key(3))


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # raised in Orbax by a failed restore
@pytest.mark.parametrize("damage", ["emptied", "cut", "altered", "half removed"])
def test_the_state_before_a_damaged_one_is_used(damage: str, tmp_path: Path) -> None:
    states = restart_states(tmp_path)
    for updates in (8, 9):
        states.save(updates, state(updates))
    spoil(tmp_path / "9", damage)
    assert weight(states.newest(LIKE, ALL_REPORTED)) == 8
    spoil(tmp_path / "8", damage)
    assert states.newest(LIKE, ALL_REPORTED) is None


def spoil(folder: Path, damage: str) -> None:
    if damage == "half removed":
        for path in [path for path in folder.iterdir() if path.is_dir()]:
            shutil.rmtree(path)
    for path in [path for path in folder.rglob("*") if path.is_file()]:
        data = path.read_bytes()
        path.write_bytes({"emptied": b"", "cut": data[: len(data) // 2], "altered": altered(data)}.get(damage, data))


def altered(data: bytes) -> bytes:
    return bytes(255 - byte for byte in data)


def test_a_state_that_is_being_written_is_not_found(tmp_path: Path) -> None:
    states = restart_states(tmp_path)
    states.save(3, state(3))
    shutil.copytree(tmp_path / "3", tmp_path / "4.orbax-checkpoint-tmp")
    assert weight(states.newest(LIKE, ALL_REPORTED)) == 3


def test_offers_leave_most_of_the_time_for_training(tmp_path: Path) -> None:
    """After each write the writer rests nine times as long, so that writing takes at most a tenth of the time."""
    background, updates = BackgroundWriter(), 1
    states = restart_states(tmp_path, background)
    on_host(state(0))  # compiles before the clock starts
    began = time.monotonic()
    states.save(updates, state(updates))
    written = time.monotonic()
    while states_in(tmp_path) == {1}:
        updates += 1
        states.offer(updates, state(updates))
        background.wait()
        assert time.monotonic() - written < 60
    assert updates > 3
    assert states_in(tmp_path) == {1, updates}
    assert time.monotonic() - written > REST / 2 * (written - began)


def states_in(folder: Path) -> set[int]:
    return {int(path.name) for path in folder.iterdir()}


def test_an_offer_does_not_wait_for_a_write_in_progress(tmp_path: Path) -> None:
    background, resume = BackgroundWriter(), threading.Event()
    states = restart_states(tmp_path, background)
    background.write(lambda: resume.wait(20))
    began = time.monotonic()
    states.offer(1, state(1))
    assert time.monotonic() - began < 5
    resume.set()
    background.wait()
    assert states_in(tmp_path) == set()
    states.offer(2, state(2))
    background.wait()
    assert states_in(tmp_path) == {2}


def test_no_state_is_written_to_a_full_disk(tmp_path: Path) -> None:
    background = BackgroundWriter()
    states = RestartStates(tmp_path, background, Disk(tmp_path, reserve_gb=1e9))
    states.offer(1, state(1))
    background.wait()
    assert states_in(tmp_path) == set()


def test_a_later_update_does_not_change_the_written_state(tmp_path: Path) -> None:
    """Each update overwrites the donated buffers while the copy waits to be written."""
    background, resume = BackgroundWriter(), threading.Event()
    update = jax.jit(partial(jax.tree.map, lambda x: x + 1), donate_argnums=0)
    weights = {"weights": jnp.full((300, 400), 5.0)}
    copy = on_host(weights)

    def write_late() -> None:
        resume.wait(20)
        checkpoint.save(tmp_path / "5", copy)

    background.write(write_late)
    for _ in range(3):
        weights = update(weights)
    resume.set()
    background.wait()
    held = checkpoint.load(tmp_path / "5", weights)
    assert (np.asarray(held["weights"]) == 5).all()
    assert (np.asarray(weights["weights"]) == 8).all()


def test_an_error_in_the_background_is_raised_by_the_next_call() -> None:
    background = BackgroundWriter()

    def fail() -> None:
        raise OSError(28, "No space left on device")

    background.write(fail)
    with pytest.raises(OSError, match="No space left"):
        background.wait()
    background.wait()  # an error is raised only once
    background.write(fail)
    with pytest.raises(OSError, match="No space left"):
        background.write(lambda: None)
    assert not background.busy
