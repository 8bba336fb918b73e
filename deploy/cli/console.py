"""The console of a run: a live table, or plain lines if there is no terminal."""

import time
from collections import defaultdict, deque
from collections.abc import Mapping
from types import TracebackType

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from deploy.run.record import RunRecord
from shared.metrics import Row
from shared.roles import EVALUATOR, Role, learner_roles, source_roles

PLAIN_EVERY_S = 10.0
STATUS_EVERY_S = 2.0
NARROW = 100  # columns of a terminal


class Rate:
    """Growth of a count, from one change of the count to a later one."""

    WINDOW_S = 30.0
    LEAST_S = 5.0
    """Shortest time from which a rate is computed: counts are looked at twice a second."""

    def __init__(self) -> None:
        self._changes: deque[tuple[float, int]] = deque()
        self._last: int | None = None

    def update(self, now: float, count: int) -> None:
        """Adds the count at `now`, in seconds. The first change is where the rate begins: that call compiled."""
        if count != self._last and self._last is not None:
            self._changes.append((now, count))
        self._last = count
        while len(self._changes) > 2 and now - self._changes[1][0] > self.WINDOW_S:
            self._changes.popleft()

    @property
    def per_second(self) -> float | None:
        """The newest rate; None until it spans `LEAST_S` seconds."""
        if not self._changes:
            return None
        (start, first), (end, last) = self._changes[0], self._changes[-1]
        return (last - first) / (end - start) if end - start >= self.LEAST_S else None


class RunConsole:
    """Shows one run and keeps its status.json fresh; `update` is called about twice a second."""

    def __init__(self, record: RunRecord, console: Console) -> None:
        self._record = record
        self._console = console
        on_screen = console.is_interactive and console.file.isatty()  # a log may be coloured, too
        self._live = Live(console=console, auto_refresh=False, redirect_stdout=False) if on_screen else None
        self._progress = Progress(
            BarColumn(), TextColumn("{task.percentage:>3.0f}%"), TimeElapsedColumn(), TextColumn("left"),
            TimeRemainingColumn(), console=console,
        )  # fmt: skip
        total = 2 * record.plan.env_steps * record.plan.updates
        self._task = self._progress.add_task("run", total=total, completed=self._done)
        self._rates: dict[Role, Rate] = defaultdict(Rate)
        self._printed = self._written = 0.0

    def __enter__(self) -> "RunConsole":
        if self._live:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live:
            self._live.stop()

    def say(self, text: str) -> None:
        self._console.print(text, soft_wrap=True)

    def update(self, states: Mapping[Role, str]) -> None:
        """Redraws the table. `states`: one word or two on each role that is shown."""
        now = time.monotonic()
        if now - self._written > STATUS_EVERY_S:
            self._record.status("running")
            self._written = now
        record, plan = self._record, self._record.plan
        env_steps = f"{record.env_steps:,} of {plan.env_steps:,} environment steps"
        text = f"{env_steps}, {self._updates:,} of {plan.updates:,} updates"
        if record.phase:
            text = f"{record.phase}: {text}"
        for role in self._roles:
            self._rates[role].update(now, self._steps(role))
        if self._live:
            self._progress.update(self._task, completed=self._done)
            self._live.update(Group(text, self._progress, self._table(states)), refresh=True)
        elif now - self._printed > PLAIN_EVERY_S:
            self._printed = now
            self.say(f"[{now_text(record.started)}] {text}{self._newest_results()}")

    @property
    def _roles(self) -> list[Role]:
        experiment = self._record.experiment
        return [*source_roles(experiment), *learner_roles(experiment), EVALUATOR]

    @property
    def _updates(self) -> int:
        return min(self._record.updates(name) for name in self._record.experiment.all_learners)

    @property
    def _done(self) -> int:
        """Progress towards twice the product of environment steps and updates, to which both contribute a half."""
        plan = self._record.plan
        return self._record.env_steps * plan.updates + self._updates * plan.env_steps

    def _steps(self, role: Role) -> int:
        """Returns the environment steps of a source, or the gradient steps of a learner, so far."""
        record, plan = self._record, self._record.plan
        if role.is_learner:
            return record.updates(role.id) * plan.minibatches_per_update
        position = record.position(role)
        return position.unrolls * record.experiment.collector.environments * plan.unroll_length if position else 0

    def _table(self, states: Mapping[Role, str]) -> Table:
        # 80 columns hold all figures beside the names of usual roles; longer names and states go on in a second line.
        table = Table(box=None, pad_edge=False, collapse_padding=self._console.width < NARROW)
        table.add_column("role", overflow="fold")
        table.add_column("state")
        for heading in ("steps/s", "waits", "samples\n/insert", "lag", "sample\nage", "time at\ngoal"):
            table.add_column(heading, justify="right", no_wrap=True)
        for role in self._roles:
            if role in states:
                table.add_row(str(role), states[role], *self._cells(role))
        return table

    def _cells(self, role: Role) -> list[str]:
        """Returns the columns after role and state; empty where a figure has no meaning for the role."""
        rows = self._record.recent(role)
        if not rows:
            return [""] * 6
        newest, rate = rows[-1], self._rates[role].per_second
        steps = age = lag = ratio = result = ""
        if rate is not None:
            steps = f"{rate:,.0f} {'grad' if role.is_learner else 'env'}"
        if role.is_source:
            lag = str(newest.get("policy_lag", ""))
        elif role.is_learner:
            ratio, age = f"{newest['samples_per_insert']:.2f}", f"{newest['sample_age']:.0f}"
            evaluations = self._record.evaluations(role.id)
            result = f"{evaluations[-1]['time_at_goal']:.1f}" if evaluations else ""
        return [steps, f"{waiting_share(rows):.0%}", ratio, lag, age, result]

    def _newest_results(self) -> str:
        results = []
        for name in self._record.experiment.all_learners:
            evaluations = self._record.evaluations(name)
            if evaluations:
                results.append(f"{name} {evaluations[-1]['time_at_goal']:.1f}")
        return "; time at goal: " + ", ".join(results) if results else ""


def waiting_share(rows: list[Row]) -> float:
    """Returns the share of wall time that `rows` spent in waits of any kind; 0 if no row knows its wall time."""
    rows = [row for row in rows if "seconds" in row]  # evaluations in one process are timed by the learners' rows
    waited = sum(value * row["seconds"] for row in rows for name, value in row.items() if name.startswith("wait/"))
    return waited / max(sum(row["seconds"] for row in rows), 1e-9)


def now_text(started: float) -> str:
    minutes, seconds = divmod(int(time.time() - started), 60)
    return f"{minutes:02d}:{seconds:02d}"
