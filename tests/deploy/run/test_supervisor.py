"""Detection of roles that hang, as distinct from roles that wait, compile or fill."""

from deploy.run import stall
from deploy.run.limits import work_limit_s
from shared.metrics import Report
from shared.roles import EVALUATOR, Kind, Role, learner_role

LIMIT, FIRST_CALL = 10.0, 200.0
DEEP, COLLECTOR, OTHER = learner_role("deep"), Role(Kind.COLLECTOR, "0"), Role(Kind.COLLECTOR, "1")


def report(idle: float, waiting_for: str = "", calls: int = 5, filling: bool = False, done: bool = False) -> Report:
    return Report([], calls, idle, waiting_for, filling, done, "", "")


def find_stall(reports: dict[Role, Report], limit: float, first_call: float = FIRST_CALL) -> stall.Stall:
    return stall.find_stall(reports, {role: work_limit_s(each, limit, first_call) for role, each in reports.items()})


def test_a_role_at_work_without_progress_is_named_although_the_others_wait_longer() -> None:
    reports = {DEEP: report(20, "replay starved"), COLLECTOR: report(11)}
    assert find_stall(reports, LIMIT) == (COLLECTOR, "has made no progress for 11 s")


def test_a_role_that_waits_for_a_working_role_is_not_stalled() -> None:
    assert find_stall({DEEP: report(20, "replay starved"), COLLECTOR: report(1)}, LIMIT) == (None, "")


def test_a_deadlock_names_every_role_and_the_reason_for_its_wait() -> None:
    reports = {DEEP: report(20, "replay starved"), COLLECTOR: report(12, "replay full")}
    role, reason = find_stall(reports, LIMIT)
    assert role is None
    assert "learner-deep for replay starved" in reason
    assert "collector-0 for replay full" in reason


def test_compiling_filling_and_finished_roles_do_not_hang() -> None:
    idle = {COLLECTOR: report(99, calls=0), OTHER: report(99, filling=True), DEEP: report(99, done=True)}
    assert find_stall(idle, LIMIT) == (None, "")


def test_roles_may_wait_while_one_of_them_waits_for_disk_space() -> None:
    paused = {DEEP: report(99, "replay starved"), COLLECTOR: report(99, "disk space")}
    assert find_stall(paused, LIMIT) == (None, "")
    assert find_stall({**paused, OTHER: report(99)}, LIMIT).role == OTHER
    after = {DEEP: report(99, "replay starved"), COLLECTOR: report(0.1, "replay full")}
    assert find_stall(after, LIMIT) == (None, "")
    deadlock = {DEEP: report(99, "replay starved"), COLLECTOR: report(11, "replay full")}
    assert find_stall(deadlock, LIMIT).reason.startswith("no progress for 10 s")


def test_work_after_a_long_wait_is_no_hang() -> None:
    at_work = report(99)._replace(working_seconds=3.0)
    assert find_stall({EVALUATOR: at_work}, LIMIT) == (None, "")
    assert find_stall({EVALUATOR: at_work._replace(working_seconds=11.0)}, LIMIT).role == EVALUATOR


def test_a_call_may_take_three_times_as_long_as_the_longest_one_before() -> None:
    at_work = report(99)._replace(working_seconds=99, longest_work_seconds=40)
    waiting = report(99, "replay full")
    assert find_stall({DEEP: at_work, COLLECTOR: waiting}, LIMIT) == (None, "")
    assert find_stall({DEEP: at_work._replace(longest_work_seconds=30), COLLECTOR: waiting}, LIMIT).role == DEEP


def test_a_first_call_has_a_limit_of_its_own() -> None:
    compiling = report(199, calls=0)._replace(working_seconds=199)
    assert find_stall({DEEP: compiling}, LIMIT) == (None, "")
    assert find_stall({DEEP: compiling}, LIMIT, first_call=150.0).role == DEEP
