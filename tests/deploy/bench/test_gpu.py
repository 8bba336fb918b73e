"""Measurements of a GPU in parts: what is kept, what is left, and the tables on the page."""

import json
from pathlib import Path
from typing import Any

import pytest

from deploy.bench.gpu import DEPTHS, PRECISIONS, _parts, bench_gpu
from deploy.bench.gpu_page import BEGIN, END, check_page, section, write_page
from deploy.cli.main import run_command
from deploy.mode import Mode
from shared.errors import ConfigError, RunFailed

DOCS = Path(__file__).parents[3] / "docs"
MACHINE = {"cpu": "a CPU", "cores": 8, "jax": "0.11", "device": "a card", "git_revision": "1"}


def update(precision: str, depth: int, step_s: float, **more: float) -> dict[str, Any]:
    sizes = {"depth": depth, "batch": 512, "width": 256, "precision": precision}
    figures = {"step_seconds": step_s, "gradient_steps_per_second": 1 / step_s, "first_step_seconds": 20.0}
    row = sizes | figures | {"memory_bytes": 66e6, "peak_share": 0.012} | more
    return {"benchmark": "update", "machine": MACHINE, "result": {"rows": [row]}}


def write_card(folder: Path, parts: dict[str, Any]) -> None:
    (folder / "a_card.json").write_text(json.dumps(parts))


def test_all_depths_precisions_tasks_and_modes_are_parts() -> None:
    names = [part.name for part in _parts(quick=False)]
    assert len(set(names)) == len(names)
    expected = {f"update-{precision}-{depth}" for precision in PRECISIONS for depth in DEPTHS}
    expected |= {"rollout-ant_u5_maze", "rollout-humanoid", "rollout-arm_binpick_hard"}
    expected |= {"end-to-end-distributed", "end-to-end-in_process", "curve"}
    assert expected <= set(names)
    assert (len(DEPTHS), PRECISIONS) == (5, ("float32", "tf32", "bfloat16"))
    assert sum(name.startswith("rollout") for name in names) == 10


def test_the_table_of_updates(tmp_path: Path) -> None:
    """The textbook's figures come from any part of that size, all others from the first."""
    textbook = {"step_speedup": 1.5, "unrolled_first_step_seconds": 90.0, "unrolled_memory_bytes": 99e6}
    write_card(
        tmp_path,
        {
            "update-float32-4": update("float32", 4, 0.002),
            "update-tf32-4": update("tf32", 4, 0.0015),
            "update-tf32-64": update("tf32", 64, 0.01),
            "update-float32-4-textbook": update("float32", 4, 0.9, **textbook),
        },
    )
    text = section(tmp_path)
    assert "### a card\n\na CPU, 8 cores, JAX 0.11" in text
    rows = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("| ")][2:]
    assert rows == [
        ["float32", "4", "0.002", "500", "1", "1.5", "20", "90", "66", "99", "1.2%"],
        ["tf32", "4", "0.0015", "667", "0.75", "", "20", "", "66", "", "1.2%"],
        ["tf32", "64", "0.01", "100", "", "", "20", "", "66", "", "1.2%"],
    ]
    assert "rollout: not measured." in text


def test_a_mode_that_was_not_measured_is_said(tmp_path: Path) -> None:
    figures = ("env_steps_per_second", "gradient_steps_per_second", "seconds_to_first_update", "wall_seconds")
    row: dict[str, Any] = {"mode": Mode.IN_PROCESS, **dict.fromkeys(figures, 5.0), "learner_updating": 0.5}
    row |= {"collector_waiting_replay_full": None, "learner_waiting_replay_starved": None}
    sizes = {"env": "ant", "num_envs": 512, "depth": 4, "batch": 512, "minibatches": 800, "budget": 2_500_000}
    write_card(tmp_path, {"end-to-end-in_process": {"machine": MACHINE, "result": sizes | {"rows": [row]}}})
    assert "| gradient steps/s | not measured | 5 |" in section(tmp_path)


def test_a_page_keeps_its_other_text(tmp_path: Path) -> None:
    page, results = tmp_path / "docs" / "page.md", tmp_path
    write_card(results, {"update-float32-4": update("float32", 4, 0.002)})
    write_page(page, results, quick=False)
    page.write_text(f"before\n{page.read_text()}after\n")
    write_card(results, {"update-float32-8": update("float32", 8, 0.003)})
    write_page(page, results, quick=True)
    text = page.read_text()
    assert text.startswith(f"before\n{BEGIN}\n\nMade with `--quick`")
    assert text.endswith(f"\n{END}\nafter\n")
    assert ("| float32 | 8 |" in text, "| float32 | 4 |" in text) == (True, False)


def test_a_page_without_a_place_is_refused(tmp_path: Path) -> None:
    (page := tmp_path / "page.md").write_text("text\n")
    with pytest.raises(ConfigError, match=f"--page: {page} lacks the lines {BEGIN} and {END}; add them"):
        check_page(page)


def test_a_damaged_card_is_named(tmp_path: Path) -> None:
    (tmp_path / "other.json").write_text("{")
    with pytest.raises(ConfigError, match=r"other.json: is damaged; delete it to measure anew"):
        section(tmp_path)


def test_the_documentation_has_the_tables_of_all_measured_cards() -> None:
    text = (DOCS / "benchmarks.md").read_text()
    assert text.split(BEGIN)[1].split(END)[0] == f"\n{section(DOCS / 'results' / 'gpu')}\n"


@pytest.mark.processes
def test_a_card_is_needed_unless_quick(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    paths = [f"--{name}={tmp_path / name}" for name in ("out", "results", "page")]
    assert run_command(["bench", "gpu", *paths]) == 2
    assert "JAX finds no GPU here" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.processes
@pytest.mark.slow
def test_the_same_command_goes_on_with_what_is_left(tmp_path: Path) -> None:
    def measure(minutes: float) -> dict[str, Any]:
        paths = {name: tmp_path / name for name in ("out", "results", "page")}
        return bench_gpu(quick=True, minutes=minutes, only="update-float32-4", **paths)

    file, page = tmp_path / "results" / "cpu.json", tmp_path / "page"
    with pytest.raises(RunFailed, match=r"left: update-float32-4; the same command goes on with these"):
        measure(0.0)
    assert not file.exists()
    assert "update: not measured" not in page.read_text()  # nothing is known of the card
    result = measure(10.0)
    assert result["parts"] == 1
    assert "| float32 | 4 |" in page.read_text()
    content = file.read_text()
    assert measure(0.0) == result
    assert file.read_text() == content
