"""Telling a role that hangs from one that waits, compiles or fills."""

from deploy.supervise import find_stall
from shared.metrics import Report

LIMIT = 10.0


def report(idle: float, waiting_for: str = "", calls: int = 5, filling: bool = False, done: bool = False) -> Report:
    return Report([], calls, idle, waiting_for, filling, done, "", "")


def test_a_role_at_work_without_progress_is_named_although_the_others_wait_longer() -> None:
    reports = {"learner-deep": report(20, "replay starved"), "collector-0": report(11)}
    assert find_stall(reports, LIMIT) == ("collector-0", "has made no progress for 11 s")


def test_who_waits_for_one_that_works_is_not_stalled() -> None:
    assert find_stall({"learner-deep": report(20, "replay starved"), "collector-0": report(1)}, LIMIT) == ("", "")


def test_a_deadlock_names_everyone_and_what_they_wait_for() -> None:
    reports = {"learner-deep": report(20, "replay starved"), "collector-0": report(12, "replay full")}
    stall = find_stall(reports, LIMIT)
    assert stall.role == ""
    assert "learner-deep for replay starved" in stall.reason
    assert "collector-0 for replay full" in stall.reason


def test_compiling_filling_and_finished_roles_do_not_hang() -> None:
    idle = {"compiling": report(99, calls=0), "filling": report(99, filling=True), "done": report(99, done=True)}
    assert find_stall(idle, LIMIT) == ("", "")
