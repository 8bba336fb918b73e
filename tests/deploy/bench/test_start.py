"""`fathom bench start` and `fathom bench end-to-end --matrix`, with small runs."""

import json
from pathlib import Path

import psutil
import pytest
import yaml

from deploy.cli.main import run_command
from tests.deploy.cases import PASSIVE, small

pytestmark = [pytest.mark.processes, pytest.mark.slow]


def bench(capsys: pytest.CaptureFixture[str], *options: str) -> dict:
    assert run_command(["bench", *options, "--json"]) == 0, capsys.readouterr().err
    return json.loads(capsys.readouterr().out)


@pytest.mark.timeout(300)
def test_a_warm_start_compiles_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "small.yaml"
    path.write_text(yaml.safe_dump(small(learners=PASSIVE, budget={"env_steps": 100_000})))
    before = set(psutil.Process().children(recursive=True))
    result = bench(capsys, "start", str(path), "--modes", "in_process", "--repeats", "1")
    assert [row["start"] for row in result["rows"]] == ["in_process_cold", "in_process_warm"]
    for row in result["rows"]:
        assert 0 < row["seconds"] <= row["seconds_of_all"]
        phases = sum(row[name] for name in row if "phase/" in name)  # the driver sees updates a little later
        assert row["seconds"] - 1 < phases < row["seconds_of_all"] + 5
    cold, warm = ({row["role"]: row for row in result["details"][row["start"]]} for row in result["rows"])
    assert cold.keys() == warm.keys() >= {"run", "collector-0", "learner-active", "learner-passive"}
    assert sum(row.get("compiled", 0) for row in cold.values()) > 2
    assert sum(row.get("compiled", 0) for row in warm.values()) == 0
    assert sum(row.get("loaded", 0) for row in warm.values()) > 2
    assert set(psutil.Process().children(recursive=True)) <= before


@pytest.mark.ray
@pytest.mark.timeout(300)
def test_a_matrix_and_its_cells_alone(capsys: pytest.CaptureFixture[str]) -> None:
    result = bench(capsys, "end-to-end", "--matrix", "--quick")
    assert (result["runs"], result["cells"]) == (1, 2)
    ways = [result[f"{way}_seconds"] for way in ("in_process", "distributed", "separate")]
    assert min(ways) > 0
    assert result["ratio"] == pytest.approx(ways[2] / ways[0])


def test_mistakes_are_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "small.yaml"
    path.write_text("env: point_v_maze")
    assert run_command(["bench", "start", str(path), "--modes", "in_process"]) == 1
    assert "in_process-cold failed: " in capsys.readouterr().err
