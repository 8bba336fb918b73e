"""Files that other processes read: crashes, full disks, and numbers that JSON does not have."""

import json
import math
import os
import resource
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from shared.files import append_line, replace_file, to_json, write_json


@contextmanager
def full_disk(room: int) -> Iterator[None]:
    """Limits files to `room` bytes; a longer write stops there, as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_json_is_strict() -> None:
    value = {
        "plain": [1, 2.5, "text", True, None],
        "unknown": [math.nan, math.inf, -math.inf, np.float32("nan"), np.float64("inf")],
        "nested": {"a": (math.nan, {"b": math.nan})},
        "arrays": [np.array([1.0, np.nan]), jnp.array([1, 2]), np.int64(3), np.bool_(True)],
        "large": 2**100,
        "path": "not UTF-8: \udcff",
    }
    written = json.loads(to_json(value), parse_constant=pytest.fail)
    assert written == {
        "plain": [1, 2.5, "text", True, None],
        "unknown": [None] * 5,
        "nested": {"a": [None, {"b": None}]},
        "arrays": [[1.0, None], [1, 2], 3, True],
        "large": 2**100,
        "path": "not UTF-8: \udcff",
    }
    assert to_json(value).isascii()
    assert to_json({"a": [math.nan]}, indent=2) == '{\n  "a": [\n    null\n  ]\n}'
    with pytest.raises(TypeError):
        to_json(object())


def test_a_replaced_file_is_whole_at_every_moment(tmp_path: Path) -> None:
    path, contents = tmp_path / "status.json", [{"state": letter * 10_000} for letter in "ab"]
    write_json(path, contents[0])
    done = threading.Event()

    def replace() -> None:
        for count in range(200):
            write_json(path, contents[count % 2], sync=False)
        done.set()

    thread = threading.Thread(target=replace)
    thread.start()
    while not done.is_set():
        assert json.loads(path.read_bytes()) in contents
    thread.join()
    assert os.listdir(tmp_path) == ["status.json"]


def test_a_full_disk_leaves_the_old_content_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    replace_file(path, "old")
    with full_disk(100), pytest.raises(OSError, match="File too large"):
        replace_file(path, "new" * 1000)
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["config.yaml"]


def test_lines_are_appended(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    for line in ("one", "two"):
        append_line(path, line)
    before = path.stat().st_ino
    append_line(path, "three")
    assert path.read_text() == "one\ntwo\nthree\n"
    assert path.stat().st_ino == before


def test_half_a_line_is_dropped_by_replacing_the_file(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text("one\nha")
    with open(path, "rb") as reader:
        append_line(path, "two")
        assert reader.read() == b"one\nha"  # the old file is as it was
    assert path.read_text() == "one\ntwo\n"
    path.write_text("half of the first")
    append_line(path, "one")
    assert path.read_text() == "one\n"
    assert os.listdir(tmp_path) == ["a.jsonl"]


def test_a_line_that_a_full_disk_cut_is_dropped(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    append_line(path, "x" * 60)
    with full_disk(100), pytest.raises(OSError, match="File too large"):
        append_line(path, "y" * 60)
    assert path.stat().st_size == 100
    append_line(path, "z" * 60)
    assert path.read_text() == "x" * 60 + "\n" + "z" * 60 + "\n"
