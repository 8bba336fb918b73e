"""What roles report, and the files it ends up in. Roles report to the driver; only the driver writes."""

import json
import math
import os
import threading
import time
from collections import defaultdict, deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from tensorboardX import SummaryWriter

from shared.position import Position
from shared.roles import Role

Row = dict[str, Any]
AXES = ("time", "env_steps", "index")
REWOUND_TO = "rewound_to"
MAX_PENDING_ROWS = 4096  # of a role in its memory; a driver that polls takes them twice a second


class Report(NamedTuple):
    """One answer of a role: what happened since the last one.

    `calls`: completed calls since the start; `idle_seconds`: time since the last one; `waiting_for`: what
    the role waits for right now, empty while it works; `filling`: it has not yet reached its first window;
    `done`: its work is finished; `error`: one line, empty while all is well; `details`: its traceback.
    `life`: of the replay server that it works with, filled where that was its part; 0 while there is none.
    `lost_server`: the last one that it lost by itself. `fatal`: the error would come again in another process.
    `working_seconds`: time since its last wait ended, of any kind. `position`: of a source, after the last of its
    rows; none before its first row, and for other roles.
    """

    rows: list[Row]
    calls: int
    idle_seconds: float
    waiting_for: str
    filling: bool
    done: bool
    error: str
    details: str
    life: int = 0
    lost_server: int = 0
    fatal: bool = False
    working_seconds: float = math.inf
    position: Position | None = None


class Reporter:
    """A role's side of reporting. Written by the thread that works, drained by the one that answers.

    Of rows that nobody drains the newest `MAX_PENDING_ROWS` are kept; later ones say in `dropped_rows` how many went.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._rows: deque[Row] = deque(maxlen=MAX_PENDING_ROWS)
        self._dropped = 0
        self._waits: dict[str, float] = defaultdict(float)
        self._waiting_for = ""
        self._waited_within = 0.0  # seconds of the waits within the present one
        self._calls = 0
        self._last_call = self._last_row = self._last_wait = time.monotonic()
        self._position: Position | None = None
        self.filling = False
        self.life = self.lost_server = 0
        self.sizes: dict[str, Callable[[], float]] = {}
        """By metric: what every row tells as it is at that moment, such as the length of a queue."""

    @contextmanager
    def waiting(self, what: str) -> Iterator[None]:
        """Times a wait; the next row reports it as a share of wall time under `wait/<what>`.

        A wait within another one is no part of that one.
        """
        start = time.monotonic()
        outer, waited_before = self._waiting_for, self._waited_within
        self._waiting_for, self._waited_within = what, 0.0
        try:
            yield
        finally:
            self._last_wait = time.monotonic()  # first: who polls must not see old work where a wait just was
            self._waiting_for = outer
            seconds = self._last_wait - start
            self._waits[what] += max(seconds - self._waited_within, 0.0)
            self._waited_within = waited_before + seconds

    def progressed(self) -> None:
        """Counts as progress, though no call is completed: a pause that had its reason is over."""
        with self._lock:
            self._last_call = time.monotonic()

    def row(self, row: Mapping[str, Any], index: int | None = None, position: Position | None = None) -> None:
        """Reports a completed call; adds the time and the waits since the last one, and `sizes`.

        Args:
            row: metrics by name.
            index: counts up along the row's curve, over all incarnations of the role: updates, numbers of unrolls. The
                driver drops a row whose index it has recorded before.
            position: the position of a source after this call.
        """
        now = time.monotonic()
        seconds = max(now - self._last_row, 1e-9)
        waits = {f"wait/{what}": waited / seconds for what, waited in self._waits.items()}
        for what in self._waits:
            self._waits[what] = 0.0  # kept at 0: a wait that ended must be seen to have ended
        sizes = {name: size() for name, size in self.sizes.items()}
        with self._lock:
            self._dropped += len(self._rows) == MAX_PENDING_ROWS
            dropped = {"dropped_rows": self._dropped} if self._dropped else {}
            place = {} if index is None else {"index": index}
            self._rows.append({"time": time.time(), "seconds": seconds, **place, **row, **waits, **sizes, **dropped})
            self._position = position or self._position
            self._calls += 1
            self._last_call = self._last_row = now

    def drain(self, done: bool = False, error: str = "", details: str = "") -> Report:
        with self._lock:
            waiting_for = self._waiting_for  # first: a pause that ends now is not over before it counts as progress
            rows = list(self._rows)
            self._rows.clear()
            now = time.monotonic()
            idle = now - self._last_call
            return Report(
                rows,
                self._calls,
                idle,
                waiting_for,
                self.filling,
                done,
                error,
                details,
                self.life,
                self.lost_server,
                working_seconds=now - self._last_wait,
                position=self._position,
            )


class MetricsWriter:
    """`metrics/<role>.jsonl` (one JSON object a line, the source of truth) and `tensorboard/<curves>/`."""

    def __init__(self, run_dir: Path, newest: Mapping[str, int] | None = None) -> None:
        """`newest`: environment steps up to which each curve holds what was written before; what lies after, in
        TensorBoard's files, is purged.
        """
        self._run_dir = Path(run_dir)
        self._newest = newest or {}
        (self._run_dir / "metrics").mkdir(parents=True, exist_ok=True)
        self._boards: dict[str, SummaryWriter] = {}

    def write(self, role: Role | str, row: Row) -> None:
        """Appends `row`; `env_steps` is TensorBoard's horizontal axis. Raises OSError when the disk is full."""
        plain = {name: _plain(value) for name, value in row.items()}
        _append(metrics_file(self._run_dir, role), plain)
        board = self._board(curves(role, plain))
        step = int(plain.get("env_steps", 0))
        for name, value in scalars(plain).items():
            board.add_scalar(name, value, step, walltime=plain.get("time"))

    def _board(self, name: str) -> SummaryWriter:
        if name not in self._boards:
            purge = self._newest[name] + 1 if name in self._newest else None
            folder = str(self._run_dir / "tensorboard" / name)
            self._boards[name] = SummaryWriter(folder, purge_step=purge, write_to_disk=True)
        return self._boards[name]

    def close(self) -> None:
        for board in self._boards.values():
            board.close()


def curves(role: Role | str, row: Row) -> str:
    """The curves that `row` continues: its role's; where it is of one of several learners, that learner's."""
    return f"{role}/{row['learner']}" if "learner" in row else str(role)


def scalars(row: Row) -> dict[str, float]:
    """What can be drawn: every number but the two that are axes."""
    return {name: value for name, value in row.items() if isinstance(value, (int, float)) and name not in AXES}


def read_metrics(run_dir: Path, role: Role | str) -> list[Row]:
    """Returns the rows of `role` in order, without those that a resumed run has rewound.

    A last line that a crash cut short is left out.
    """
    path = metrics_file(run_dir, role)
    return parse_rows(path.read_text(encoding="utf-8")) if path.exists() else []


def parse_rows(text: str) -> list[Row]:
    """Returns the rows in the lines of a metrics file; see `read_metrics`."""
    rows: list[Row] = []
    for line in text.splitlines():
        try:
            row = json.loads(line)
        except json.JSONDecodeError:
            break
        if REWOUND_TO in row:
            rows = [old for old in rows if not _is_undone(old, row)]
        else:
            rows.append(row)
    return rows


def rewind(run_dir: Path, role: Role | str, index: int, learner: str | None = None) -> None:
    """Marks the rows of `role` with an index above `index` as undone: a resumed run will write them again.

    Appends one line; nothing that was written is changed. `learner`: marks only the rows of this learner, where a
    role's file has rows of several. Raises OSError.
    """
    path = metrics_file(run_dir, role)
    if path.exists():
        whose = {} if learner is None else {"learner": learner}
        _append(path, {"time": time.time(), **whose, REWOUND_TO: index})


def _is_undone(row: Row, marker: Row) -> bool:
    return row.get("learner") == marker.get("learner") and row.get("index", -1) > marker[REWOUND_TO]


def metrics_files(run_dir: Path) -> list[str]:
    """Names of the roles and events that have a metrics file."""
    return sorted(path.stem for path in (Path(run_dir) / "metrics").glob("*.jsonl"))


def metrics_file(run_dir: Path, role: Role | str) -> Path:
    return Path(run_dir) / "metrics" / f"{role}.jsonl"


def _append(path: Path, row: Row) -> None:
    with open(path, "a+b") as file:
        _cut_half_line(file)
        file.write(json.dumps(row).encode() + b"\n")


def _cut_half_line(file: BinaryIO) -> None:
    """Cuts off half a line at the end, which a crash may have left."""
    end = file.seek(0, os.SEEK_END)
    if end == 0:
        return
    file.seek(end - 1)
    if file.read(1) != b"\n":
        file.seek(0)
        file.truncate(file.read().rfind(b"\n") + 1)


def _plain(value: Any) -> Any:
    return value.item() if isinstance(value, np.generic) or hasattr(value, "item") else value
