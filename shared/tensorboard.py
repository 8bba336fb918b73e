"""TensorBoard's event files, written in the caller's thread.

tensorboardX's `SummaryWriter` has a thread behind a bounded queue. The thread ends at the first error, as on a full
disk; then the queue fills, and its next caller waits without end.
"""

import time
from collections.abc import Mapping
from pathlib import Path

from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.summary import Summary, scalar

FLUSH_S = 60.0


class Board:
    """Curves in one folder. Every member raises OSError when the disk is full."""

    def __init__(self, folder: Path, purge_step: int | None = None) -> None:
        """Opens a new file in `folder`. TensorBoard drops points of older files from `purge_step` on."""
        folder.mkdir(parents=True, exist_ok=True)
        self._events = EventsWriter(str(folder / "events"))
        if purge_step is not None:
            started = SessionLog(status=SessionLog.START)
            self._events.write_event(Event(step=purge_step, session_log=started))
        self._next_flush = 0.0

    def add(self, values: Mapping[str, float], step: int, wall_time: float | None = None) -> None:
        """Adds a point to the curve of each tag in `values`."""
        if not values:
            return
        points = [point for tag, value in values.items() for point in scalar(tag, value).value]
        now = time.time() if wall_time is None else wall_time
        self._events.write_event(Event(step=step, wall_time=now, summary=Summary(value=points)))
        if time.monotonic() >= self._next_flush:
            self._events.flush()
            self._next_flush = time.monotonic() + FLUSH_S

    def close(self) -> None:
        self._events.close()
