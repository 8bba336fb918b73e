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


def test_who_waits_for_room_on_the_disk_is_paused_and_so_are_those_who_wait_for_it() -> None:
    paused = {"learner-deep": report(99, "replay starved"), "collector-0": report(99, "disk space")}
    assert find_stall(paused, LIMIT) == ("", "")
    assert find_stall({**paused, "collector-1": report(99)}, LIMIT).role == "collector-1"
    after = {"learner-deep": report(99, "replay starved"), "collector-0": report(0.1, "replay full")}
    assert find_stall(after, LIMIT) == ("", "")
    deadlock = {"learner-deep": report(99, "replay starved"), "collector-0": report(11, "replay full")}
    assert find_stall(deadlock, LIMIT).reason.startswith("no progress for 10 s")


def test_work_after_a_long_wait_is_no_hang() -> None:
    at_work = report(99)._replace(working_seconds=3.0)
    assert find_stall({"evaluator": at_work}, LIMIT) == ("", "")
    assert find_stall({"evaluator": at_work._replace(working_seconds=11.0)}, LIMIT).role == "evaluator"
