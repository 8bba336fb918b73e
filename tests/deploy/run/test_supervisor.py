"""Detection of roles that hang, as distinct from roles that wait, compile or fill."""

from deploy.run.stall import find_stall
from shared.metrics import Report
from shared.roles import EVALUATOR, Kind, Role, learner_role

LIMIT = 10.0
DEEP, COLLECTOR, OTHER = learner_role("deep"), Role(Kind.COLLECTOR, "0"), Role(Kind.COLLECTOR, "1")


def report(idle: float, waiting_for: str = "", calls: int = 5, filling: bool = False, done: bool = False) -> Report:
    return Report([], calls, idle, waiting_for, filling, done, "", "")


def test_a_role_at_work_without_progress_is_named_although_the_others_wait_longer() -> None:
    reports = {DEEP: report(20, "replay starved"), COLLECTOR: report(11)}
    assert find_stall(reports, LIMIT) == (COLLECTOR, "has made no progress for 11 s")


def test_a_role_that_waits_for_a_working_role_is_not_stalled() -> None:
    assert find_stall({DEEP: report(20, "replay starved"), COLLECTOR: report(1)}, LIMIT) == (None, "")


def test_a_deadlock_names_every_role_and_the_reason_for_its_wait() -> None:
    reports = {DEEP: report(20, "replay starved"), COLLECTOR: report(12, "replay full")}
    stall = find_stall(reports, LIMIT)
    assert stall.role is None
    assert "learner-deep for replay starved" in stall.reason
    assert "collector-0 for replay full" in stall.reason


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
