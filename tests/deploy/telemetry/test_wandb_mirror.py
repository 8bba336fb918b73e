"""Rows that the mirror logs to Weights & Biases, read back with wandb's own reader. All runs are offline."""

import json
import os
import subprocess
import sys
import threading
import time
from collections import defaultdict
from pathlib import Path

import psutil
import pytest

from deploy.cli.main import run_command
from deploy.run.record import RunRecord
from deploy.telemetry.wandb_mirror import Mirror, followed
from shared.config import Experiment
from shared.envs.registry import make_envs
from shared.metrics import MetricsWriter, Row, read_metrics, rewind
from shared.plan import make_plan
from shared.roles import REPLAY
from tests.deploy.cases import PASSIVE, small

EXPERIMENT = small(
    collector={"actors": 2}, learners=PASSIVE, replay={"samples_per_insert": 2.0}, evaluation={"count": 3}
)
ROW = {"time": 5.0, "env_steps": 10, "critic/loss": 0.5, "visits": [1, 2]}


@pytest.fixture(autouse=True)
def no_account(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Hides the key and the settings of the user who runs the tests."""
    for name in os.environ:
        if name.startswith("WANDB_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv("NETRC", raising=False)


class Mirrored:
    """A mirror, and a run that has a record but no processes."""

    def __init__(self, run_dir: Path) -> None:
        experiment = Experiment.model_validate(EXPERIMENT | {"wandb": {"project": "fathom"}})
        self.record = RunRecord(run_dir, experiment, make_plan(experiment, make_envs(experiment).training.spec))
        self.messages: list[str] = []
        self.complaints: list[str] = []
        self.mirror = Mirror(run_dir, self.messages.append, self.complaints.append)

    def end(self) -> None:
        self.record.status("failed", "a reason")
        self.record.close()
        self.mirror.close()


def only_folder(run_dir: Path) -> Path:
    """Returns wandb's folder of a run with one incarnation."""
    (folder,) = (run_dir / "wandb").glob("offline-run-*")
    return folder


def read_back(folder: Path) -> dict[str, list[Row]]:
    """Returns the records in one of wandb's folders by type."""
    command = [sys.executable, "-m", "wandb", "leet", "inspect", "--json", str(folder)]
    lines = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout.splitlines()
    records = defaultdict(list)
    for record in map(json.loads, lines):
        records[record["type"]].append(record[record["type"]])
    return records


def logged(records: dict[str, list[Row]]) -> list[Row]:
    """Returns every logged row without wandb's own columns."""
    rows = [record["item"] for record in records["history"]]
    return [{name: value for name, value in row.items() if not name.startswith("_")} for row in rows]


def expected_row(name: str, row: Row) -> Row:
    """Returns `row` as the mirror should log it."""
    return {
        f"{name}/{key}": value
        for key, value in row.items()
        if isinstance(value, (int, float)) and key not in ("time", "index")
    }


@pytest.mark.processes
def test_every_roles_metrics_arrive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_RUN_GROUP", "matrix")
    (tmp_path / "experiment.yaml").write_text(json.dumps(EXPERIMENT))
    run_dir = tmp_path / "run"
    command = ["run", str(tmp_path / "experiment.yaml"), "--run-dir", str(run_dir), "--in-process"]
    probe = "import sys; from deploy.cli.main import run_command; assert run_command(sys.argv[1:]) == 0"
    probe += "; assert not [name for name in sys.modules if name.split('.')[0] == 'wandb']"
    run = subprocess.Popen(
        [sys.executable, "-c", probe, *command, "--wandb.project", "fathom"], stdout=subprocess.PIPE, text=True
    )
    started: set[psutil.Process] = set()
    while run.poll() is None:
        started |= set(psutil.Process(run.pid).children(recursive=True))
        time.sleep(0.1)
    assert run.returncode == 0
    assert len(started) >= 2  # the mirror and wandb's service
    assert not [process for process in started if process.is_running()]
    assert run.stdout is not None
    assert run.stdout.readline().startswith("wandb: offline (No API key")

    wanted = defaultdict(list)
    for path in (run_dir / "metrics").glob("*.jsonl"):
        for row in read_metrics(run_dir, path.stem):
            name = f"evaluator/{row['learner']}" if path.stem == "evaluator" else path.stem
            wanted[name].append(expected_row(name, row))
    learners = {"learner-active", "learner-passive", "evaluator/active", "evaluator/passive"}
    assert set(wanted) == learners | {"collector-0", "collector-1", "replay", "snapshots", "start", "memory"}
    records = read_back(only_folder(run_dir))
    rows = logged(records)
    for name, own in wanted.items():
        assert [row for row in rows if f"{name}/env_steps" in row] == own
    assert len(rows) == sum(map(len, wanted.values()))
    assert {(metric["glob_name"], metric["step_metric"]) for metric in records["metric"]} == {
        (f"{name}/*", f"{name}/env_steps") for name in wanted
    }
    about = records["run"][0]
    assert (about["project"], about["run_group"], about["display_name"]) == ("fathom", "matrix", "run")
    assert about["config"]["update"]["budget"] == {"env_steps": 560}
    assert [record["exit_code"] for record in records["exit"]] == [0]


def test_rewound_rows_are_left_out(tmp_path: Path) -> None:
    writer = MetricsWriter(tmp_path)
    for updates in (1, 2):
        writer.write("learner-a", {"index": updates})
    writer.close()
    rewind(tmp_path, "learner-a", 1)
    ended = threading.Event()
    ended.set()
    assert list(followed(tmp_path / "metrics", ended, {})) == [[("learner-a", {"index": 1})]]


@pytest.mark.processes
def test_a_resumed_run_continues_its_run_at_wandb_with_the_new_rows(tmp_path: Path) -> None:
    for env_steps in (10, 20):
        run = Mirrored(tmp_path / "run")
        run.record.add(REPLAY, ROW | {"env_steps": env_steps})
        run.end()
    first, second = (read_back(folder) for folder in sorted((tmp_path / "run" / "wandb").glob("offline-run-*")))
    assert first["run"][0]["run_id"] == second["run"][0]["run_id"]
    assert logged(first) == [expected_row("replay", ROW)]
    assert logged(second) == [expected_row("replay", ROW | {"env_steps": 20})]


@pytest.mark.processes
def test_a_run_is_offline_when_the_server_does_not_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")  # no server listens there
    monkeypatch.setenv("WANDB_INIT_TIMEOUT", "1")
    run = Mirrored(tmp_path / "run")
    run.record.add(REPLAY, ROW)
    run.end()
    (message,) = run.messages
    assert message.startswith("wandb: offline (Timed out")
    assert run.complaints == []
    records = read_back(only_folder(tmp_path / "run"))
    assert logged(records) == [expected_row("replay", ROW)]
    assert [record["exit_code"] for record in records["exit"]] == [1]


@pytest.mark.processes
def test_a_killed_mirror_gives_a_one_line_error(tmp_path: Path) -> None:
    before = set(psutil.Process().children())
    run = Mirrored(tmp_path / "run")
    (mirror,) = set(psutil.Process().children()) - before
    service = mirror.children()
    assert service
    mirror.kill()
    run.record.add(REPLAY, ROW)
    run.end()
    (complaint,) = run.complaints
    assert complaint.startswith("not all metrics reached wandb")
    assert psutil.wait_procs([mirror, *service], timeout=10)[1] == []
    assert read_metrics(tmp_path / "run", REPLAY) == [ROW]


def test_missing_wandb_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)  # as if it were not installed
    (tmp_path / "experiment.yaml").write_text(json.dumps(EXPERIMENT))
    command = ["run", str(tmp_path / "experiment.yaml"), "--run-dir", str(tmp_path / "run"), "--wandb.project", "x"]
    assert run_command(command) == 2
    assert capsys.readouterr().err == (
        "fathom: wandb.project: wandb is not installed; pip install 'fathom-rl[wandb]', or leave it out\n"
    )
    assert not (tmp_path / "run").exists()
