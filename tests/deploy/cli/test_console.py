"""The console of a run on terminals of 80 and 120 columns and in a log, its rates, and the table at the end."""

import io
import os
import re
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from deploy.cli.console import Rate, RunConsole
from deploy.cli.output import printed_as_is
from deploy.run.record import RunRecord
from deploy.run.summary import table
from shared.config import ACTIVE, Experiment
from shared.envs.registry import make_envs
from shared.plan import make_plan
from shared.position import start_position
from shared.roles import EVALUATOR, Role, learner_role, learner_roles, source_roles

EXPERIMENT = Experiment.model_validate(
    {
        "env": "point_u_maze",
        "collector": {"environments": 64},
        "learners": {"shallow": {}, "deep": {"depth": 1024}},
        "algorithm": {"minibatches_per_update": 100},
    }
)
PLAN = make_plan(EXPERIMENT, make_envs(EXPERIMENT).training.spec)
(COLLECTOR,) = source_roles(EXPERIMENT)
STATES: dict[Role, str] = {
    COLLECTOR: "waiting: replay full",
    learner_role(ACTIVE): "waiting: replay starved",
    learner_role("shallow"): "working",
    learner_role("deep"): "waiting: disk space",
    EVALUATOR: "waiting: policies",
}
CONTROL = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
LEARNER_ROW = {"seconds": 0.5, "wait/replay starved": 1.0, "samples_per_insert": 1.0, "sample_age": 12345.0}


@pytest.fixture
def record(tmp_path: Path) -> Iterator[RunRecord]:
    """The record of a run in its middle."""
    record = RunRecord(tmp_path, EXPERIMENT, PLAN)
    add_rows(record, 1)
    for name in EXPERIMENT.all_learners:
        record.add(EVALUATOR, {"index": 0, "learner": name, "time_at_goal": 1234.5, "env_steps": 0})  # untimed
    yield record
    record.close()


def add_rows(record: RunRecord, index: int) -> None:
    """Records unroll or update `index` of every role, each within a microsecond."""
    record.add(COLLECTOR, {"seconds": 1e-6, "index": index, "policy_lag": 1, "wait/replay full": 1.0})
    record.move(COLLECTOR, start_position(64, 4)._replace(unrolls=index, visits=np.zeros(4)))
    for role in learner_roles(EXPERIMENT):
        record.add(role, {"index": index, **LEARNER_ROW})


Terminal = Callable[[int], tuple[Console, Callable[[], str]]]


@pytest.fixture
def terminal() -> Iterator[Terminal]:
    """`terminal(width)` opens a pseudo-terminal: its console, and a function that closes it and returns its content."""
    opened = []

    def open_terminal(width: int) -> tuple[Console, Callable[[], str]]:
        master, slave = os.openpty()
        file, content = os.fdopen(slave, "w"), bytearray()

        def read() -> None:
            while True:
                try:
                    content.extend(os.read(master, 4096))
                except OSError:  # closed by its writer
                    return

        reader = threading.Thread(target=read)
        reader.start()
        opened.append((master, file, reader))

        def close() -> str:
            file.close()
            reader.join()
            return content.decode()

        return printed_as_is(file=file, width=width, height=24, force_terminal=True, _environ={}), close

    yield open_terminal
    for master, file, reader in opened:
        file.close()
        reader.join()
        os.close(master)


@pytest.mark.parametrize("width", [80, 120])
def test_a_terminal_shows_every_name_and_figure_whole(record: RunRecord, terminal: Terminal, width: int) -> None:
    console, close = terminal(width)
    with RunConsole(record, console) as shown:
        shown.say(f"{record.run_dir}/[/b]: {'long ' * 30}")
        shown.update(STATES)
    lines = re.split(r"[\r\n]+", CONTROL.sub("", close()))
    frame = "\n".join(lines[-12:])
    assert f"{record.run_dir}/[/b]: {'long ' * 30}" in "".join(lines)
    assert "…" not in frame
    assert max(map(len, lines[-12:])) <= width
    for role in STATES:
        assert re.search(rf"^{role}\s", frame, re.MULTILINE), frame
    states = set(" ".join(frame.split()).split())
    assert states >= {word for state in STATES.values() for word in state.split()}
    for text in (
        "samples",
        "/insert",
        "steps/s",
        "1.00",
        "12345",
        "1234.5",
        "100%",
        f"3,968 of {PLAN.env_steps:,} environment steps, 1 of {PLAN.updates:,} updates",
    ):
        assert text in frame


def test_long_names_of_learners_are_folded(tmp_path: Path, terminal: Terminal) -> None:
    names = [f"{'very-' * 11}{end}" for end in ("wide", "deep")]
    experiment = EXPERIMENT.model_copy(update={"learners": dict.fromkeys(names, EXPERIMENT.learners["deep"])})
    console, close = terminal(80)
    with RunConsole(RunRecord(tmp_path, experiment, PLAN), console) as shown:
        shown.update({learner_role(name): "working" for name in names})
    frame = CONTROL.sub("", close())
    assert "…" not in frame
    for end in ("wide", "deep"):
        assert re.search(rf"{end}\s", frame)


def test_a_log_has_whole_lines_and_no_control_codes(record: RunRecord) -> None:
    log = io.StringIO()
    shown = RunConsole(record, printed_as_is(file=log, width=80, force_terminal=True))  # as FORCE_COLOR does
    with shown:
        shown.update(STATES)
        shown.say(f"[{'/long' * 40}]")
    progress, said = log.getvalue().splitlines()
    begin = rf"\[\d\d:\d\d\] 3,968 of {PLAN.env_steps:,} environment steps, 1 of {PLAN.updates:,} updates; "
    assert re.fullmatch(begin + "time at goal: active 1234.5, shallow 1234.5, deep 1234.5", progress)
    assert said == f"[{'/long' * 40}]"


def test_the_phase_of_a_run_that_does_not_train_yet_is_said(record: RunRecord) -> None:
    log = io.StringIO()
    record.phase = "compiling"
    RunConsole(record, printed_as_is(file=log)).update(STATES)
    assert re.match(r"\[\d\d:\d\d\] compiling: 3,968 of ", log.getvalue())


def test_only_roles_with_a_state_are_shown(record: RunRecord, terminal: Terminal) -> None:
    """In one process the learners evaluate, so no role does."""
    console, close = terminal(80)
    with RunConsole(record, console) as shown:
        shown.update({role: state for role, state in STATES.items() if role != EVALUATOR})
    frame = CONTROL.sub("", close())
    assert "evaluator" not in frame
    assert "collector-0" in frame


def test_no_rate_is_shown_before_it_spans_some_seconds(record: RunRecord, terminal: Terminal) -> None:
    """Rows that took a microsecond make no rate of billions of steps per second."""
    console, close = terminal(120)
    with RunConsole(record, console) as shown:
        for index in range(2, 12):
            add_rows(record, index)
            shown.update(STATES)
    frame = CONTROL.sub("", close())
    assert " env" not in frame.replace("environment", "")
    assert "grad" not in frame


def test_a_rate_begins_with_the_first_change() -> None:
    rate = Rate()
    for now in range(0, 60, 10):  # a minute of compilation
        rate.update(now, 0)
    rate.update(60, 100)
    assert rate.per_second is None
    rate.update(62, 200)
    assert rate.per_second is None
    rate.update(65, 600)
    rate.update(66, 600)
    assert rate.per_second == 100
    rate.update(165, 1600)  # slower than the window is long
    assert rate.per_second == 10


def test_a_rate_follows_the_last_half_minute() -> None:
    rate = Rate()
    count = 0
    for now in range(200):
        count += 1 if now < 100 else 50
        rate.update(now, count)
    assert rate.per_second == 50


def test_a_resumed_run_does_not_begin_with_an_estimate_of_seconds(record: RunRecord, terminal: Terminal) -> None:
    """The updates and unrolls before the resumption are no progress of this incarnation."""
    before = start_position(64, 4)._replace(unrolls=PLAN.unrolls // 2, visits=np.zeros(4))
    record.move(COLLECTOR, before)
    console, close = terminal(80)
    with RunConsole(record, console) as shown:
        shown.update(STATES)
        record.move(COLLECTOR, before._replace(unrolls=before.unrolls + 1))
        shown.update(STATES)
    assert set(re.findall(r"left (\S+)", CONTROL.sub("", close()))) == {"-:--:--"}


@pytest.mark.parametrize("width", [80, 200])
def test_the_last_table_shows_every_heading_and_name_whole(width: int, capsys: pytest.CaptureFixture[str]) -> None:
    figures = {"gradient_steps": 40_320_000, "time_at_goal": 1000.0, "success_rate": 1.0, "samples_per_insert": 1.0}
    learner = {"depth": 1024, "utd": 1 / 40, "sample_age": 12_000.0, **figures}
    learners = {name: {"role": "passive", **learner} for name in ("learner-[x]", "d1024", "shallow", "a" * 20 + "-b")}
    learners["new"] = learners["d1024"] | {"time_at_goal": float("nan"), "utd": float("nan")}
    untrained = {"untrained_time_at_goal": 1.0, "untrained_success_rate": 0.1}
    printed_as_is(width=width).print(table({"env": "[/b]", "env_steps": 160_000, **untrained, "learners": learners}))
    printed = capsys.readouterr().out
    assert "…" not in printed
    assert "nan" not in printed
    assert max(map(len, printed.splitlines())) <= width
    for text in ("[/b], 160,000 environment steps", "learner-[x]", "-b ", "40,320,000", "1:40", "gradient", "/insert"):
        assert text in printed
