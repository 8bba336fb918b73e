"""Saved results of benchmarks: comparison of two results, and refusal of unsuitable files."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from deploy.bench import saved
from deploy.cli.bench import _Options, measure_and_show
from deploy.cli.main import run_command
from shared.errors import ConfigError

MACHINE = {"cpu": "a", "cores": 2, "jax": "0.10.2", "device": "cpu", "git_revision": "1"}
THEN: dict[str, Any] = {
    "env": "ant",
    "rows": [{"depth": 4, "batch": 8, "step_seconds": 2.0}, {"depth": 8, "batch": 8, "step_seconds": 4.0}],
    "steps_per_second": 10.0,
    "faster": "distributed",
    "data_plentiful": True,
    "missing": None,
    "none": 0,
}
NOW: dict[str, Any] = {
    "env": "ant",
    "rows": [{"depth": 8, "batch": 8, "step_seconds": 1.0}, {"depth": 4, "batch": 9, "step_seconds": 1.0}],
    "steps_per_second": 20,
    "faster": "in_process",
    "data_plentiful": False,
    "missing": 1.0,
    "none": 1,
}


@dataclass(frozen=True)
class Update(_Options):
    """Options of a benchmark with a known result."""

    result: dict[str, Any] = field(default_factory=dict)

    def measure(self) -> dict[str, Any]:
        return self.result


def write(path: Path, benchmark: str = "update", **machine: Any) -> Path:
    saved.save(path, benchmark, MACHINE | machine, THEN)
    return path


def test_rows_are_matched_by_their_sizes(tmp_path: Path) -> None:
    path = write(tmp_path / "then.json")
    assert saved.load(path, "update") == {"benchmark": "update", "machine": MACHINE, "result": THEN}
    assert saved.compare(path, saved.load(path, "update")["result"], NOW) == [
        {"size": "env=ant", "figure": "steps_per_second", "then": 10.0, "now": 20.0, "ratio": 2.0},
        {"size": "env=ant", "figure": "none", "then": 0.0, "now": 1.0, "ratio": None},
        {"size": "env=ant depth=8 batch=8", "figure": "step_seconds", "then": 4.0, "now": 1.0, "ratio": 0.25},
    ]


def test_results_without_a_common_size_are_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "then.json")
    with pytest.raises(ConfigError, match=r"--compare: .*then\.json holds figures of other sizes only"):
        saved.compare(path, THEN, {"rows": [{"depth": 4, "batch": 9, "step_seconds": 1.0}]})
    with pytest.raises(ConfigError, match="holds figures of other sizes only"):
        saved.compare(path, THEN, NOW | {"env": "humanoid"})


def test_figures_from_before_objectives_are_those_of_the_contrastive_one(tmp_path: Path) -> None:
    path, sizes = write(tmp_path / "then.json"), {"depth": 4, "step_seconds": 1.0}
    then = {"rows": [sizes]}
    now = {"rows": [sizes | {"objective": name, "episode_length": 100} for name in ("contrastive", "sac")]}
    assert [row["size"] for row in saved.compare(path, then, now)] == ["depth=4"]
    assert [row["size"] for row in saved.compare(path, now, now)] == ["depth=4", "depth=4 objective=sac"]


def test_another_kind_of_device_is_refused_and_another_machine_is_described(tmp_path: Path) -> None:
    assert saved.differences(tmp_path, MACHINE, MACHINE | {"git_revision": "2"}) == []
    found = saved.differences(tmp_path, MACHINE, MACHINE | {"cpu": "b", "cores": 4})
    assert found == ["cpu a then, b now", "cores 2 then, 4 now"]
    with pytest.raises(ConfigError, match="was measured on cpu, this on NVIDIA H100; name a file from this kind"):
        saved.differences(tmp_path, MACHINE, MACHINE | {"device": "NVIDIA H100"})


UNSUITABLE = {
    "missing": (None, "cannot be read (No such file or directory); name a file that --save wrote"),
    "text": ("speed", "is not JSON; name a file that --save wrote"),
    "binary": (b"\xff\xfe", "is not JSON; name a file that --save wrote"),
    "list": ("[1]", "holds no saved benchmark; name a file that --save wrote"),
    "incomplete": ('{"benchmark": "rollout"}', "holds no saved benchmark; name a file that --save wrote"),
    "another benchmark": (
        json.dumps({"benchmark": "replay", "machine": {}, "result": {}}),
        "is from fathom bench replay, not rollout; name a file that fathom bench rollout --save wrote",
    ),
}


@pytest.mark.parametrize(("content", "line"), UNSUITABLE.values(), ids=UNSUITABLE.keys())
def test_an_unsuitable_file_is_refused_before_the_measurement(
    content: str | bytes | None, line: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "file.json"
    if content is not None:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    assert run_command(["bench", "rollout", "--compare", str(path)]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert f"--compare: {path} {line}" in printed.err
    assert len(printed.err.strip().splitlines()) == 1


def test_a_path_that_cannot_be_written_is_refused_before_the_measurement(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    assert run_command(["bench", "rollout", "--save", str(tmp_path)]) == 2
    assert f"--save: {tmp_path} is a folder; name a file" in capsys.readouterr().err
    assert run_command(["bench", "rollout", "--save", str(tmp_path / "file" / "new.json")]) == 2
    assert "cannot be made" in capsys.readouterr().err


def test_a_saved_result_is_compared(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "new" / "then.json"
    assert measure_and_show(Update(json=True, save=path, result=THEN)) == 0
    assert json.loads(capsys.readouterr().out) == THEN
    assert measure_and_show(Update(json=True, compare=path, result=NOW)) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed == NOW | {"compared": saved.compare(path, THEN, NOW)}
    assert measure_and_show(Update(compare=path, result=NOW)) == 0
    assert "depth=8 batch=8" in capsys.readouterr().out


def test_another_machine_gives_a_warning(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(tmp_path / "then.json", **saved.describe_machine() | {"cores": 1000})
    assert measure_and_show(Update(json=True, compare=path, result=NOW)) == 0
    assert "is from another machine: cores 1000 then" in capsys.readouterr().err


def test_a_refused_comparison_does_not_lose_the_result(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(tmp_path / "then.json", device="NVIDIA H100")
    with pytest.raises(ConfigError, match="was measured on NVIDIA H100"):
        measure_and_show(Update(json=True, compare=path, result=NOW))
    assert json.loads(capsys.readouterr().out) == NOW
