import json
import math
import struct
import time
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from tensorboardX.proto.event_pb2 import Event

from shared.metrics import MAX_PENDING_ROWS, MetricsWriter, Reporter, read_metrics, rewind


def test_waits_are_shares_of_the_time_between_rows() -> None:
    reporter = Reporter()
    with reporter.waiting("weights"):
        time.sleep(0.02)
    reporter.row({"loss": 1.0})
    reporter.row({"loss": 2.0})
    first, second = reporter.drain().rows
    assert 0 < first["wait/weights"] <= 1
    assert first["wait/weights"] * first["seconds"] >= 0.02
    assert second["wait/weights"] == 0  # the wait ended before the first row
    assert (first["loss"], second["loss"]) == (1.0, 2.0)
    assert second["time"] >= first["time"]


def test_waits_of_one_kind_add_up() -> None:
    reporter = Reporter()
    for kind in ("a", "b", "a"):
        with reporter.waiting(kind):
            time.sleep(0.01)
    reporter.row({})
    (row,) = reporter.drain().rows
    assert row["wait/a"] * row["seconds"] >= 0.02
    assert row["wait/a"] + row["wait/b"] <= 1


def test_a_report_names_the_wait_of_a_role() -> None:
    reporter = Reporter()
    assert reporter.drain().waiting_for == ""
    with reporter.waiting("replay full"):
        assert reporter.drain().waiting_for == "replay full"
    assert reporter.drain().waiting_for == ""
    with pytest.raises(RuntimeError, match="boom"), reporter.waiting("weights"):
        raise RuntimeError("boom")
    assert reporter.drain().waiting_for == ""
    reporter.row({})
    assert "wait/weights" in reporter.drain().rows[0]  # also a wait that raised


def test_a_report_drains_rows_and_counts_calls() -> None:
    reporter = Reporter()
    reporter.filling = True
    reporter.row({"x": 1})
    reporter.row({"x": 2})
    report = reporter.drain()
    assert ([row["x"] for row in report.rows], report.calls, report.filling) == ([1, 2], 2, True)
    again = reporter.drain(done=True, error="gone")
    assert (again.rows, again.calls, again.done, again.error) == ([], 2, True, "gone")
    assert 0 <= report.idle_seconds <= again.idle_seconds


def test_a_nested_wait_does_not_count_in_the_outer_wait() -> None:
    reporter = Reporter()
    with reporter.waiting("replay full"):
        time.sleep(0.02)
        with reporter.waiting("disk space"):
            assert reporter.drain().waiting_for == "disk space"
            time.sleep(0.05)
        assert reporter.drain().waiting_for == "replay full"
    reporter.row({})
    (row,) = reporter.drain().rows
    assert 0.02 <= row["wait/replay full"] * row["seconds"] < 0.05 <= row["wait/disk space"] * row["seconds"]
    assert row["wait/replay full"] + row["wait/disk space"] <= 1


def test_a_wait_restarts_working_seconds_and_progress_restarts_idle_seconds() -> None:
    reporter = Reporter()
    time.sleep(0.03)
    with reporter.waiting("snapshots"):
        pass
    report = reporter.drain()
    assert report.working_seconds < 0.02 < report.idle_seconds
    reporter.progressed()
    assert reporter.drain().idle_seconds < 0.02
    assert reporter.drain().calls == 0


def test_pending_rows_are_bounded_and_dropped_rows_are_counted() -> None:
    reporter = Reporter()
    for number in range(MAX_PENDING_ROWS + 3):
        reporter.row({"number": number})
    rows = reporter.drain().rows
    assert len(rows) == MAX_PENDING_ROWS
    assert [row["number"] for row in rows] == list(range(3, MAX_PENDING_ROWS + 3))
    assert "dropped_rows" not in rows[0]
    assert [row["dropped_rows"] for row in rows[-3:]] == [1, 2, 3]
    reporter.row({})
    assert reporter.drain().rows[0]["dropped_rows"] == 3


def test_rows_hold_the_sizes_at_their_time() -> None:
    reporter, queue = Reporter(), [1]
    reporter.sizes["queue/snapshots"] = lambda: len(queue)
    reporter.row({})
    queue.append(2)
    reporter.row({})
    assert [row["queue/snapshots"] for row in reporter.drain().rows] == [1, 2]


def test_a_resumed_run_rewinds_by_appending(tmp_path: Path) -> None:
    writer = MetricsWriter(tmp_path)
    for updates in (0, 3, 5):
        for learner in ("a", "b"):
            writer.write("evaluator", {"learner": learner, "index": updates})
        writer.write("learner-a", {"index": updates})
    written = {path: path.read_bytes() for path in (tmp_path / "metrics").iterdir()}
    rewind(tmp_path, "evaluator", 3, learner="a")
    rewind(tmp_path, "learner-a", 4)
    rewind(tmp_path, "learner-b", 4)  # no file yet
    assert {path: path.read_bytes()[: len(written[path])] for path in (tmp_path / "metrics").iterdir()} == written
    writer.write("learner-a", {"index": 5, "again": True})
    writer.close()
    assert read_metrics(tmp_path, "learner-a") == [{"index": 0}, {"index": 3}, {"index": 5, "again": True}]
    evaluated = [(row["learner"], row["index"]) for row in read_metrics(tmp_path, "evaluator")]
    assert evaluated == [("a", 0), ("b", 0), ("a", 3), ("b", 3), ("b", 5)]


def test_written_rows_are_read_back(tmp_path: Path) -> None:
    writer = MetricsWriter(tmp_path)
    writer.write("learner-a", {"env_steps": 10, "loss": np.float32(0.5), "device": jnp.float32(0.25), "visits": [1, 2]})
    writer.write("learner-a", {"env_steps": np.int64(20), "loss": 1.5, "note": "a"})
    writer.write("learner-b", {"time": 1.5})
    writer.close()
    assert read_metrics(tmp_path, "learner-a") == [
        {"env_steps": 10, "loss": 0.5, "device": 0.25, "visits": [1, 2]},
        {"env_steps": 20, "loss": 1.5, "note": "a"},
    ]
    assert read_metrics(tmp_path, "learner-b") == [{"time": 1.5}]
    assert read_metrics(tmp_path, "nobody") == []
    assert len(list((tmp_path / "tensorboard" / "learner-a").iterdir())) == 1
    lines = (tmp_path / "metrics" / "learner-a.jsonl").read_text().splitlines()
    assert [json.loads(line)["env_steps"] for line in lines] == [10, 20]


def tensorboard_values(board: Path) -> list[tuple[str, int, float]]:
    """Returns (tag, step, value) of each value in a TensorBoard folder; records have a length and checksums."""
    (path,) = (each for each in board.iterdir() if each.is_file())
    data, values = path.read_bytes(), []
    while data:
        (length,) = struct.unpack("<Q", data[:8])
        event = Event.FromString(data[12 : 12 + length])
        values += [(value.tag, event.step, value.simple_value) for value in event.summary.value]
        data = data[16 + length :]
    return values


def test_evaluations_of_each_learner_have_a_tensorboard_folder(tmp_path: Path) -> None:
    writer = MetricsWriter(tmp_path)
    for learner, result in (("a", 1.0), ("b", 2.0), ("a", 3.0)):
        writer.write("evaluator", {"learner": learner, "env_steps": 10, "time_at_goal": result, "visits": [1]})
    writer.close()
    assert tensorboard_values(tmp_path / "tensorboard" / "evaluator" / "a") == [
        ("result/time_at_goal", 10, 1.0),
        ("result/time_at_goal", 10, 3.0),
    ]
    assert tensorboard_values(tmp_path / "tensorboard" / "evaluator" / "b") == [("result/time_at_goal", 10, 2.0)]
    assert [row["learner"] for row in read_metrics(tmp_path, "evaluator")] == ["a", "b", "a"]


def test_numbers_that_are_not_finite_are_null_in_the_file_and_nan_in_rows(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    writer = MetricsWriter(tmp_path)
    unknown = {
        "loss": math.nan,
        "norm": np.float32(-math.inf),
        "device": jnp.float32(math.inf),
        "visits": [1, math.nan],
    }
    writer.write("learner-a", {"env_steps": 10, **unknown})
    writer.write("learner-a", {"env_steps": 20, "loss": 1.0})
    writer.close()
    text = (tmp_path / "metrics" / "learner-a.jsonl").read_text()
    lines = [json.loads(line, parse_constant=pytest.fail) for line in text.splitlines()]
    assert lines[0] == {"env_steps": 10, "loss": None, "norm": None, "device": None, "visits": [1, None]}
    first, second = read_metrics(tmp_path, "learner-a")
    assert all(math.isnan(first[name]) for name in ("loss", "norm", "device"))
    assert second == {"env_steps": 20, "loss": 1.0}
    assert tensorboard_values(tmp_path / "tensorboard" / "learner-a") == [("loss", 20, 1.0)]
    assert caplog.records == []  # tensorboardX warns of each one


def test_a_second_writer_appends(tmp_path: Path) -> None:
    for value in (1, 2):
        writer = MetricsWriter(tmp_path)
        writer.write("a", {"x": value})
        writer.close()
    assert read_metrics(tmp_path, "a") == [{"x": 1}, {"x": 2}]


def write_file(run_dir: Path, content: bytes) -> Path:
    (run_dir / "metrics").mkdir()
    path = run_dir / "metrics" / "a.jsonl"
    path.write_bytes(content)
    return path


def test_a_last_line_cut_short_is_left_out(tmp_path: Path) -> None:
    path = write_file(tmp_path, b"")
    whole = b'{"x": 0}\n{"x": 1}\n'
    for half in (b'{"x": ', b'{"x": 2}', b'{"name": "\xc3', b"\0\0\0"):
        path.write_bytes(whole + half)
        assert read_metrics(tmp_path, "a") == [{"x": 0}, {"x": 1}]


def test_a_damaged_line_costs_no_other_line(tmp_path: Path) -> None:
    write_file(tmp_path, b'{"x": 0}\n{"x": \n\0\0\xff\n[1]\n7\n{"x": 1, "name": "\\u2028 \xe2\x80\xa8"}\n')
    assert read_metrics(tmp_path, "a") == [{"x": 0}, {"x": 1, "name": "\u2028 \u2028"}]


def test_rows_written_after_a_cut_line_are_read(tmp_path: Path) -> None:
    path = write_file(tmp_path, b'{"x": 0}\n{"x": ')
    writer = MetricsWriter(tmp_path)
    writer.write("a", {"x": 2})
    writer.write("a", {"x": 3})
    writer.close()
    assert read_metrics(tmp_path, "a") == [{"x": 0}, {"x": 2}, {"x": 3}]
    assert path.read_bytes() == b'{"x": 0}\n{"x": 2}\n{"x": 3}\n'
