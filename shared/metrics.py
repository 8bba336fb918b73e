"""Metrics: what roles report, and the files that the driver writes. Roles report to the driver; only the driver writes.

`shared/metrics_catalogue.py` says what each metric means.
"""

import json
import math
import threading
import time
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from shared.files import append_line, to_json
from shared.metrics_catalogue import tensorboard_tag
from shared.position import Position
from shared.roles import Role
from shared.tensorboard import Board

Row = dict[str, Any]
AXES = ("time", "env_steps", "index")
REWOUND_TO = "rewound_to"
MAX_PENDING_ROWS = 4096  # rows in a role's memory; a driver that polls takes them twice a second


class Report(NamedTuple):
    """A role's answer to a poll: what happened since the last poll, and the role's state.

    Attributes:
        rows: metrics of the calls completed since the last poll.
        calls: calls completed since the process started.
        idle_seconds: time since the last completed call.
        waiting_for: what the role waits for right now; empty while it works.
        filling: a source that has not made its first window yet.
        done: the role's work is finished.
        error: one line; empty while all is well.
        details: the error's traceback.
        server: number of the replay server's incarnation that the role uses and has refilled; 0 while it has none.
        lost_server: number of the last incarnation to which the role lost its connection.
        fatal: the error would come again in another process.
        working_seconds: time since the last wait of any kind ended.
        longest_work_seconds: longest time between two waits so far.
        position: position of a source after its last row; none before its first row, and for other roles.
        start: the start of the role's process, in the report after its first call; see `Reporter.describe_start`.
        memory_mb: memory of the role's process; NaN while it is not known.
    """

    rows: list[Row]
    calls: int
    idle_seconds: float
    waiting_for: str
    filling: bool
    done: bool
    error: str
    details: str
    server: int = 0
    lost_server: int = 0
    fatal: bool = False
    working_seconds: float = math.inf
    longest_work_seconds: float = 0.0
    position: Position | None = None
    start: Row | None = None
    memory_mb: float = math.nan


class Reporter:
    """A role's side of reporting: the working thread writes, the thread that answers polls drains.

    At most `MAX_PENDING_ROWS` rows are kept; `dropped_rows` in later rows counts the oldest ones that were dropped.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._rows: deque[Row] = deque(maxlen=MAX_PENDING_ROWS)
        self._dropped = 0
        self._waits: dict[str, float] = defaultdict(float)
        self._waiting_for = ""
        self._waited_within = 0.0  # seconds of the waits within the present one
        self._calls = 0
        self._longest_work = 0.0
        self._last_call = self._last_row = self._last_wait = time.monotonic()
        self._position: Position | None = None
        self.filling = False
        self.server = self.lost_server = 0
        self.sizes: dict[str, Callable[[], float]] = {}
        """Values that every row includes as they are at that moment, such as the length of a queue, by metric."""
        self.describe_start: Callable[[Mapping[str, float]], Row] | None = None
        """Returns metrics of the process's start; gets the seconds of each wait until the end of the first call."""
        self._start: Row | None = None

    @contextmanager
    def waiting(self, what: str) -> Iterator[None]:
        """Times a wait; the next row reports it as `wait/<what>`, a share of wall time.

        A wait inside another one counts for itself only.
        """
        start = time.monotonic()
        self._longest_work = max(self._longest_work, start - self._last_wait)
        outer, waited_before = self._waiting_for, self._waited_within
        self._waiting_for, self._waited_within = what, 0.0
        try:
            yield
        finally:
            self._last_wait = time.monotonic()  # first, or a poll would see old work where a wait just was
            self._waiting_for = outer
            seconds = self._last_wait - start
            self._waits[what] += max(seconds - self._waited_within, 0.0)
            self._waited_within = waited_before + seconds

    def progressed(self) -> None:
        """Counts as progress without a completed call, at the end of a pause that had its reason."""
        with self._lock:
            self._last_call = time.monotonic()

    def row(self, row: Mapping[str, Any], index: int | None = None, position: Position | None = None) -> None:
        """Reports a completed call; adds the time, the waits since the last row, and `sizes`.

        Args:
            row: metrics by name.
            index: counts up along the row's curve, over all incarnations of the role: updates, numbers of unrolls. The
                driver drops a row whose index it has recorded before.
            position: the position of a source after this call.
        """
        now = time.monotonic()
        seconds = max(now - self._last_row, 1e-9)
        waits = {f"wait/{what}": waited / seconds for what, waited in self._waits.items()}
        if self._calls == 0 and self.describe_start is not None:
            self._start = self.describe_start(dict(self._waits))
        for what in self._waits:
            self._waits[what] = 0.0  # stays in later rows, so that curves show the end of the wait
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
        """Returns a report and forgets its rows."""
        with self._lock:
            waiting_for = self._waiting_for  # first: a pause that ends now must not look like idle work
            rows = list(self._rows)
            self._rows.clear()
            start, self._start = self._start, None
            now = time.monotonic()
            return Report(
                rows,
                self._calls,
                now - self._last_call,
                waiting_for,
                self.filling,
                done,
                error,
                details,
                self.server,
                self.lost_server,
                working_seconds=now - self._last_wait,
                longest_work_seconds=self._longest_work,
                position=self._position,
                start=start,
            )


class MetricsWriter:
    """`metrics/<role>.jsonl` (one JSON object a line, the source of truth) and `tensorboard/<curves>/`."""

    def __init__(self, run_dir: Path, newest: Mapping[str, int] | None = None) -> None:
        """Opens the files of a run; later points of a resumed run's TensorBoard curves are purged.

        Args:
            run_dir: the run directory.
            newest: environment steps of the newest valid row of each curve, in a resumed run.
        """
        self._run_dir = Path(run_dir)
        self._newest = newest or {}
        (self._run_dir / "metrics").mkdir(parents=True, exist_ok=True)
        self._boards: dict[str, Board] = {}

    def write(self, role: Role | str, row: Row) -> None:
        """Appends `row`; `env_steps` is TensorBoard's horizontal axis. Raises OSError when the disk is full.

        A number that is not finite becomes null in the file, and has no point in TensorBoard.
        """
        plain = {name: _plain(value) for name, value in row.items()}
        append_line(metrics_file(self._run_dir, role), to_json(plain))
        board = self._board(curves(role, plain))
        step, kind = int(plain.get("env_steps", 0)), str(role).partition("-")[0]
        values = {tensorboard_tag(kind, name): value for name, value in scalars(plain).items()}
        board.add(values, step, plain.get("time"))

    def _board(self, name: str) -> Board:
        if name not in self._boards:
            purge = self._newest[name] + 1 if name in self._newest else None
            self._boards[name] = Board(self._run_dir / "tensorboard" / name, purge)
        return self._boards[name]

    def close(self) -> None:
        """Writes what is left and closes the files; a second call does nothing. Raises OSError on a full disk."""
        boards, self._boards = self._boards, {}
        for board in boards.values():
            board.close()


def curves(role: Role | str, row: Row) -> str:
    """Returns the name of the curves that `row` continues: its role, and its learner if a role reports on several."""
    return f"{role}/{row['learner']}" if "learner" in row else str(role)


def scalars(row: Row) -> dict[str, float]:
    """Returns the metrics of a row that can be drawn: every finite number that is not an axis."""
    numbers = {name: value for name, value in row.items() if isinstance(value, (int, float)) and name not in AXES}
    return {name: value for name, value in numbers.items() if math.isfinite(value)}


def read_metrics(run_dir: Path, role: Role | str) -> list[Row]:
    """Returns the rows of `role` in order, without those that a resumed run has rewound; see `parse_rows`."""
    path = metrics_file(run_dir, role)
    return parse_rows(path.read_bytes()) if path.exists() else []


def read_scalars(run_dir: Path, role: Role | str, numbers: Sequence[str] = ()) -> list[Row]:
    """Returns what `read_metrics` does, in a fraction of the time: rows may lack lists, tables, and null.

    `numbers`: the metrics that the caller needs, all of them numbers; rows may lack all others. Empty: all.
    """
    path = metrics_file(run_dir, role)
    content = path.read_bytes() if path.exists() else b""
    rows = _parse_scalars(content, numbers)
    return parse_rows(content) if rows is None else _without_undone(rows)


def parse_rows(content: bytes) -> list[Row]:
    """Returns the rows in the lines of a metrics file. A null in the file is NaN in the row.

    A line that is damaged, or that a crash cut short, is left out.
    """
    return _without_undone(map(_parse_row, content.split(b"\n")[:-1]))


def _without_undone(lines: Iterable[Row]) -> list[Row]:
    """Returns the rows of `lines` that are neither empty nor rewound by a later line."""
    rows: list[Row] = []
    for row in lines:
        if REWOUND_TO in row:
            rows = [old for old in rows if not _is_undone(old, row)]
        elif row:
            rows.append(row)
    return rows


def _parse_scalars(content: bytes, numbers: Sequence[str]) -> Iterator[Row] | None:
    """Returns a row for each line; None if a line is damaged, or if a metric has values of different types."""
    import pyarrow as pa  # here, because the roles of a run read no metrics
    from pyarrow import json as arrow_json

    known = dict.fromkeys((*numbers, "index", REWOUND_TO), pa.float64()) | {"learner": pa.string()}
    options = arrow_json.ParseOptions(
        explicit_schema=pa.schema([*known.items()]), unexpected_field_behavior="ignore" if numbers else "infer"
    )
    try:
        table = arrow_json.read_json(pa.BufferReader(content), parse_options=options)
    except pa.ArrowInvalid:
        return None
    if len(table) != content.count(b"\n"):  # a line holds several objects, or has no end
        return None
    table = table.select([field.name for field in table.schema if not pa.types.is_nested(field.type)])
    return ({name: value for name, value in row.items() if value is not None} for row in table.to_pylist())


def _parse_row(line: bytes) -> Row:
    """Returns the row in a line; empty if the line holds none."""
    try:
        row = json.loads(line)
    except ValueError:  # also bytes that are no text
        return {}
    return {name: math.nan if value is None else value for name, value in row.items()} if isinstance(row, dict) else {}


def rewind(run_dir: Path, role: Role | str, index: int, learner: str | None = None) -> None:
    """Marks the rows of `role` with an index above `index` as undone: a resumed run will write them again.

    Appends one line; nothing that was written is changed. `learner`: marks only the rows of this learner, where a
    role's file has rows of several. Raises OSError.
    """
    path = metrics_file(run_dir, role)
    if path.exists():
        whose = {} if learner is None else {"learner": learner}
        append_line(path, to_json({"time": time.time(), **whose, REWOUND_TO: index}))


def _is_undone(row: Row, marker: Row) -> bool:
    return row.get("learner") == marker.get("learner") and row.get("index", -1) > marker[REWOUND_TO]


def metrics_files(run_dir: Path) -> list[str]:
    """Names of the roles and events that have a metrics file."""
    return sorted(path.stem for path in (Path(run_dir) / "metrics").glob("*.jsonl"))


def metrics_file(run_dir: Path, role: Role | str) -> Path:
    return Path(run_dir) / "metrics" / f"{role}.jsonl"


def _plain(value: Any) -> Any:
    return value.item() if isinstance(value, np.generic) or hasattr(value, "item") else value
