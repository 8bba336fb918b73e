"""`fathom run` as a child process: why it failed."""

from pathlib import Path

from deploy.run.child import log_file, why_failed


def test_a_run_failed_unless_its_process_ended_with_status_0(tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    log_file(run_dir).write_text("starting\nfathom: a first line\nfathom: no room\n")
    assert why_failed(run_dir, 0) == ""
    assert why_failed(run_dir, 1) == "no room"
    log_file(run_dir).write_text("starting\n")
    assert why_failed(run_dir, -9) == "exit status -9"
