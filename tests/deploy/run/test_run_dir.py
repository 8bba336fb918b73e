"""The run directory before a run: what `--overwrite` removes, and what it leaves."""

from pathlib import Path

import pytest

from deploy.run.run_dir import lock_folder, prepare_run_dir
from shared.errors import ConfigError


def make_run(run_dir: Path) -> None:
    (run_dir / "metrics").mkdir(parents=True)
    for name in ("config.yaml", "status.json", "metrics/evaluator.jsonl"):
        (run_dir / name).touch()


def mode(folder: Path) -> int:
    return folder.stat().st_mode & 0o777


def test_overwrite_empties_the_folder_behind_a_symbolic_link_and_keeps_the_link(tmp_path: Path) -> None:
    disk, run_dir = tmp_path / "disk" / "first", tmp_path / "runs" / "first"
    make_run(disk)
    run_dir.parent.mkdir()
    run_dir.symlink_to(disk)
    assert prepare_run_dir(run_dir, overwrite=True, mode=0o750) == run_dir
    assert run_dir.readlink() == disk
    assert list(disk.iterdir()) == []
    assert mode(disk) == 0o750


def test_overwrite_leaves_the_targets_of_links_within_a_run(tmp_path: Path) -> None:
    stream = tmp_path / "stream"
    make_run(tmp_path / "run")
    stream.mkdir()
    (stream / "manifest.json").touch()
    (tmp_path / "run" / "stream").symlink_to(stream)
    prepare_run_dir(tmp_path / "run", overwrite=True)
    assert list((tmp_path / "run").iterdir()) == []
    assert (stream / "manifest.json").exists()


def test_an_overwritten_folder_gets_the_mode_of_a_new_one(tmp_path: Path) -> None:
    make_run(tmp_path / "run")
    (tmp_path / "run").chmod(0o755)
    prepare_run_dir(tmp_path / "run", overwrite=True)
    assert mode(tmp_path / "run") == 0o700


def test_what_an_interrupted_overwrite_leaves_is_still_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_run(tmp_path / "run")
    unlinked: list[str] = []
    monkeypatch.setattr(Path, "unlink", lambda path: unlinked.append(path.name))
    prepare_run_dir(tmp_path / "run", overwrite=True)
    assert unlinked[-1] == "config.yaml"


def test_a_run_is_overwritten_only_on_request(tmp_path: Path) -> None:
    make_run(tmp_path / "run")
    with pytest.raises(ConfigError, match="is not empty; name another folder, or add --overwrite"):
        prepare_run_dir(tmp_path / "run", overwrite=False)
    assert list(prepare_run_dir(tmp_path / "run", overwrite=True).iterdir()) == []
    assert prepare_run_dir(tmp_path / "new" / "run", overwrite=False).is_dir()


def test_only_a_run_is_overwritten(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").touch()
    for overwrite in (False, True):
        with pytest.raises(ConfigError, match=r"holds no run, but other files; name another folder$"):
            prepare_run_dir(tmp_path, overwrite)
    assert (tmp_path / "thesis.tex").exists()


def test_the_file_of_a_lock_stays_so_that_two_processes_never_lock_different_files(tmp_path: Path) -> None:
    with lock_folder(tmp_path / "run", "--out"):
        before = (tmp_path / ".run.lock").stat().st_ino
        message = "^--out: another `fathom` that is still going writes to "
        with pytest.raises(ConfigError, match=message), lock_folder(tmp_path / "run", "--out"):
            pass
    with lock_folder(tmp_path / "run", "--out"):
        assert (tmp_path / ".run.lock").stat().st_ino == before
