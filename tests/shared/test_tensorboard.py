"""TensorBoard's files on a disk that fills up."""

import errno
from collections.abc import Callable
from pathlib import Path

import pytest

from shared.tensorboard import Board


@pytest.mark.processes
@pytest.mark.timeout(20)
def test_a_full_disk_is_an_error_and_never_a_wait(mount_disk: Callable[[str], Path]) -> None:
    board = Board(mount_disk("size=64k") / "learner-a")
    board.add({"loss": 0.5}, step=0)
    faults = []
    for step in range(1_000):
        try:
            board.add({f"loss {number}": 1.0 for number in range(10)}, step)
        except OSError as error:
            faults.append(error.errno)
    assert len(faults) > 20
    assert set(faults) == {errno.ENOSPC}
    with pytest.raises(OSError, match="No space left on device"):
        board.close()
