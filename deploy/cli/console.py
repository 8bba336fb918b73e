"""The console of a run: a live table, or plain lines if there is no terminal."""

import time
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


class RunConsole:
    """Shows one run and keeps its status.json fresh; `update` is called about twice a second."""

    def __init__(self, record: RunRecord, console: Console) -> None:
        self._record = record
        self._console = console
        self._live = Live(console=console, auto_refresh=False, redirect_stdout=False) if console.is_terminal else None
        self._progress = Progress(
            TextColumn("{task.fields[text]}"), BarColumn(), TextColumn("{task.percentage:>3.0f}%"),
            TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn(), console=console,
        )  # fmt: skip
        self._task = self._progress.add_task("run", total=1.0, text="")
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
        self._console.print(text, highlight=False, markup=False)

    def update(self, states: dict[Role, str] | None = None) -> None:
        """Redraws the table. `states`: one word or two on each role; none for an in-process run."""
        now = time.monotonic()
        if now - self._written > STATUS_EVERY_S:
            self._record.status("running")
            self._written = now
        record, plan = self._record, self._record.plan
        updates = min(record.updates(name) for name in record.experiment.all_learners)
        done = 0.5 * record.env_steps / plan.env_steps + 0.5 * updates / plan.updates
        text = f"{record.env_steps:,} of {plan.env_steps:,} environment steps, {updates} of {plan.updates} updates"
        self._progress.update(self._task, completed=done, text=text)
        if self._live:
            self._live.update(Group(self._progress, self._table(states or {})), refresh=True)
        elif now - self._printed > PLAIN_EVERY_S:
            self._printed = now
            self.say(f"[{now_text(record.started)}] {text}{self._newest_results()}")

    def _table(self, states: dict[Role, str]) -> Table:
        table = Table(box=None, pad_edge=False)
        for heading in ("role", "state"):
            table.add_column(heading)
        for heading in ("steps/s", "waiting", "samples/insert", "lag", "sample age", "time at goal"):
            table.add_column(heading, justify="right")
        experiment = self._record.experiment
        roles = [*source_roles(experiment), *learner_roles(experiment), EVALUATOR]
        for role in roles:
            table.add_row(str(role), states.get(role, ""), *self._cells(role))
        return table

    def _cells(self, role: Role) -> list[str]:
        """Returns the columns after role and state; empty where a figure has no meaning for the role."""
        rows = self._record.recent(role)
        if not rows:
            return [""] * 6
        newest, seconds = rows[-1], sum(row["seconds"] for row in rows)
        plan = self._record.plan
        steps = age = lag = ratio = result = ""
        if role.is_source:
            environments = self._record.experiment.collector.environments
            steps = f"{len(rows) * environments * plan.unroll_length / seconds:,.0f} env"
            lag = str(newest.get("policy_lag", ""))
        elif role.is_learner:
            steps = f"{len(rows) * plan.minibatches_per_update / seconds:,.0f} grad"
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
    """Returns the share of wall time that `rows` spent in waits of any kind."""
    waited = sum(value * row["seconds"] for row in rows for name, value in row.items() if name.startswith("wait/"))
    return waited / max(sum(row["seconds"] for row in rows), 1e-9)


def now_text(started: float) -> str:
    minutes, seconds = divmod(int(time.time() - started), 60)
    return f"{minutes:02d}:{seconds:02d}"
