"""Packed runs: a report on them has the numbers of the report on the runs."""

import json
import shutil
import tarfile
from pathlib import Path

import yaml

from deploy.experiments.pack import pack
from deploy.report.analyse import make_report
from deploy.report.read import read_matrix
from deploy.report.tables import make_tables


def test_a_report_on_packed_runs_has_the_same_numbers(all_runs: Path, tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    shutil.copytree(all_runs, runs)
    unfinished = runs / "point_u_maze-c16-s2"
    (unfinished / "summary.json").unlink()
    status = json.loads((unfinished / "status.json").read_text())
    (unfinished / "status.json").write_text(json.dumps(status | {"state": "running"}))
    metrics = runs / "point_u_maze-c4-s0" / "metrics"
    with open(metrics / "evaluator.jsonl", "a") as file:
        file.write('{"learner": "d4", "updates": 3, "env_steps": 60, "time_at_goal": null}\n')
    shutil.copy(metrics / "evaluator.jsonl", metrics / "replay.jsonl")

    packed = pack(runs, tmp_path / "packed")
    assert len(packed) == 5
    assert pack(runs, tmp_path / "packed") == []
    unpacked = tmp_path / "unpacked"
    unpacked.mkdir()
    shutil.copy(runs / "matrix.yaml", unpacked)
    for path in packed:
        with tarfile.open(path) as archive:
            archive.extractall(unpacked, filter="data")
    assert not (unpacked / "point_u_maze-c4-s0" / "metrics" / "replay.jsonl").exists()
    assert "command" not in yaml.safe_load((unpacked / "point_u_maze-c4-s0" / "config.yaml").read_text())["provenance"]
    tables = [make_tables(make_report(read_matrix(folder))) for folder in (runs, unpacked)]
    assert tables[0] == tables[1]
