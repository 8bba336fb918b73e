"""The Python environment of the replay server: named by the user or built once; errors name a remedy."""

import subprocess
import sys
from pathlib import Path

import pytest

from deploy.replay.server.provision import ProvisionError, _cause, reverb_python

pytestmark = pytest.mark.processes

# All steps of a build run, without a download.
NO_REQUIREMENTS = "# nothing\n"


@pytest.fixture(autouse=True)
def own_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.delenv("FATHOM_REVERB_PYTHON", raising=False)
    monkeypatch.setenv("FATHOM_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def requirements(tmp_path: Path) -> Path:
    path = tmp_path / "requirements.txt"
    path.write_text(NO_REQUIREMENTS)
    return path


def test_an_environment_is_built_once_and_then_found(own_cache: Path, requirements: Path) -> None:
    said: list[str] = []
    python = reverb_python(said.append, requirements=requirements, imports="json")
    assert said == [
        "preparing the replay server's environment (once, about 1.2 GB)",
        "the replay server's environment is ready",
    ]
    assert reverb_python(said.append, requirements=requirements, imports="json") == python
    assert len(said) == 2
    version = subprocess.run([python, "-c", "import sys; print(sys.version_info[:2])"], capture_output=True)
    assert version.stdout == b"(3, 11)\n"
    assert sorted(path.name for path in own_cache.iterdir()) == [python.parts[-3], f"{python.parts[-3]}.lock"]


def test_two_processes_at_once_build_one_environment(own_cache: Path, requirements: Path) -> None:
    script = f"""
from pathlib import Path
from deploy.replay.server.provision import reverb_python
print(reverb_python(requirements=Path({str(requirements)!r}), imports="json"))
"""
    both = [subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True) for _ in "ab"]
    said = [process.communicate(timeout=60)[0] for process in both]
    assert [process.returncode for process in both] == [0, 0]
    assert sum(text.count("is ready") for text in said) == 1
    assert len({text.splitlines()[-1] for text in said}) == 1


def test_the_leftovers_of_a_crash_are_removed(own_cache: Path, requirements: Path) -> None:
    python = reverb_python(lambda _: None, requirements=requirements, imports="json")
    home = python.parents[1]
    (home / "READY").unlink()
    (home / "half").touch()
    leftover = home.with_name(f"{home.name}.building-x")
    leftover.mkdir()
    reverb_python(lambda _: None, requirements=requirements, imports="json")
    assert (home / "READY").exists()
    assert not (home / "half").exists()
    assert not leftover.exists()


def failure(**options: object) -> str:
    with pytest.raises(ProvisionError) as caught:
        reverb_python(lambda _: None, **options)  # type: ignore[arg-type]
    text = str(caught.value)
    assert "\n" not in text
    assert "FATHOM_REVERB_PYTHON" in text
    return text


def test_no_python(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.setenv("UV_PYTHON_DOWNLOADS", "never")
    monkeypatch.setenv("UV_PYTHON_INSTALL_DIR", str(tmp_path / "pythons"))
    assert "needs Python 3.11: none was found" in failure()


def test_no_network(monkeypatch: pytest.MonkeyPatch, own_cache: Path, tmp_path: Path) -> None:
    monkeypatch.setenv("UV_OFFLINE", "1")
    monkeypatch.setenv("UV_CACHE_DIR", str(tmp_path / "uv"))
    for variable in ("UV_FIND_LINKS", "PIP_FIND_LINKS"):
        monkeypatch.delenv(variable, raising=False)
    assert "index cannot be reached" in failure()
    assert [path.suffix for path in own_cache.iterdir()] == [".lock"]  # nothing incomplete is left


def test_unwritable_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("FATHOM_CACHE", str(tmp_path / "file" / "cache"))
    assert "set FATHOM_CACHE" in failure()


@pytest.mark.parametrize(
    ("cause", "message"),
    [
        ("No space left on device (os error 28)", "the disk or your quota is full; free 2 GB or set FATHOM_CACHE"),
        ("Disk quota exceeded (os error 122)", "the disk or your quota is full; free 2 GB or set FATHOM_CACHE"),
        (
            "Failed to initialize cache at `/.cache/uv`\n  Permission denied (os error 13)",
            "uv's cache cannot be written",
        ),
    ],
)
def test_causes_of_uv_that_the_user_can_mend(cause: str, message: str) -> None:
    text = _cause(f"error: Failed to download `numpy`\n  cause: {cause}\n")
    assert text.startswith(message)
    assert "UV_CACHE_DIR" in text


def test_an_environment_whose_base_python_is_gone_is_built_again(requirements: Path) -> None:
    python = reverb_python(lambda _: None, requirements=requirements, imports="json")
    python.unlink()
    python.symlink_to("/nowhere/python")
    reverb_python(lambda _: None, requirements=requirements, imports="json")
    assert python.exists()


def test_named_python_is_checked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("FATHOM_REVERB_PYTHON", sys.executable)
    assert "importing reverb fails: ModuleNotFoundError" in failure()
    assert reverb_python(imports="json") == Path(sys.executable)
    monkeypatch.setenv("FATHOM_REVERB_PYTHON", str(tmp_path / "nowhere"))
    assert "nowhere" in failure()
