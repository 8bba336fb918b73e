"""What roles report, and the files it ends up in. Roles report to the driver; only the driver writes."""

import json
import math
import threading
import time
from collections import defaultdict, deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from tensorboardX import SummaryWriter

Row = dict[str, Any]
AXES = ("time", "env_steps")
ROWS_UNTOLD = 4096  # of a role in its memory; a driver that polls takes them twice a second


class Report(NamedTuple):
    """One answer of a role: what happened since the last one.

    `calls`: completed calls since the start; `idle_seconds`: time since the last one; `waiting_for`: what
    the role waits for right now, empty while it works; `filling`: it has not yet reached its first window;
    `done`: its work is finished; `error`: one line, empty while all is well; `details`: its traceback.
    `life`: of the replay server that it works with, filled where that was its part; 0 while there is none.
    `lost_life`: the last one that it lost by itself. `fatal`: the error would come again in another process.
    `working_seconds`: time since its last wait ended, of any kind.
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
    lost_life: int = 0
    fatal: bool = False
    working_seconds: float = math.inf


class Reporter:
    """A role's side of reporting. Written by the thread that works, drained by the one that answers.

    Of rows that nobody drains the newest `ROWS_UNTOLD` are kept; later ones say in `dropped_rows` how many went.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._rows: deque[Row] = deque(maxlen=ROWS_UNTOLD)
        self._dropped = 0
        self._waits: dict[str, float] = defaultdict(float)
        self._waiting_for = ""
        self._waited_within = 0.0  # seconds of the waits within the present one
        self._calls = 0
        self._last_call = self._last_row = self._last_wait = time.monotonic()
        self.filling = False
        self.life = self.lost_life = 0
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

    def row(self, row: Mapping[str, Any]) -> None:
        """Reports a completed call; adds the time and the waits since the last one, and `sizes`."""
        now = time.monotonic()
        seconds = max(now - self._last_row, 1e-9)
        waits = {f"wait/{what}": waited / seconds for what, waited in self._waits.items()}
        for what in self._waits:
            self._waits[what] = 0.0  # kept at 0: a wait that ended must be seen to have ended
        sizes = {name: size() for name, size in self.sizes.items()}
        with self._lock:
            self._dropped += len(self._rows) == ROWS_UNTOLD
            dropped = {"dropped_rows": self._dropped} if self._dropped else {}
            self._rows.append({"time": time.time(), "seconds": seconds, **row, **waits, **sizes, **dropped})
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
                self.lost_life,
                working_seconds=now - self._last_wait,
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
        self._roles: set[str] = set()
        self._boards: dict[str, SummaryWriter] = {}

    def write(self, role: str, row: Row) -> None:
        """Appends `row`; `env_steps` is TensorBoard's horizontal axis. Raises OSError when the disk is full."""
        plain = {name: _plain(value) for name, value in row.items()}
        path = self._run_dir / "metrics" / f"{role}.jsonl"
        if role not in self._roles:
            _cut_half_line(path)
            self._roles.add(role)
        with open(path, "a", encoding="utf-8") as file:
            file.write(json.dumps(plain) + "\n")
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


def curves(role: str, row: Row) -> str:
    """The curves that `row` continues: its role's; where it is of one of several learners, that learner's."""
    return f"{role}/{row['learner']}" if "learner" in row else role


def scalars(row: Row) -> dict[str, float]:
    """What can be drawn: every number but the two that are axes."""
    return {name: value for name, value in row.items() if isinstance(value, (int, float)) and name not in AXES}


def read_metrics(run_dir: Path, role: str) -> list[Row]:
    """Every row that `role` wrote; a last line cut short by a crash is left out."""
    path = Path(run_dir) / "metrics" / f"{role}.jsonl"
    rows = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return rows


def _cut_half_line(path: Path) -> None:
    """A crash may have left half a line at the end, which the next one must not be appended to."""
    if path.is_file():
        whole = path.read_bytes().rpartition(b"\n")[0]
        path.write_bytes(whole + b"\n" if whole else b"")


def _plain(value: Any) -> Any:
    return value.item() if isinstance(value, np.generic) or hasattr(value, "item") else value
