"""Figures of docs/results/ are those of the tables beside them."""

import csv
import json
import tarfile
from pathlib import Path
from statistics import mean

import pytest

from deploy.report import text
from deploy.report.statistics import estimate, paired_difference

RESULTS = Path(__file__).parents[1] / "docs" / "results"
TABLES = sorted((RESULTS / "search").glob("*.csv"))


@pytest.mark.parametrize("path", TABLES, ids=lambda path: path.stem)
def test_the_search_is_as_measured(path: Path) -> None:
    """The mean over seeds of the mean time at goal at the last five evaluations that all learners of a run made."""
    with open(path) as file:
        measured = list(csv.DictReader(file))
    learners = list(dict.fromkeys(row["learner"] for row in measured))
    headings = ["task", "bodies", "width", "seeds", "gradient steps", *learners]
    shown = {tuple(row[:4]): row[4:] for row in rows_below(RESULTS / "search.md", headings)}
    runs: dict[tuple[str, ...], dict[str, dict[str, list[dict[str, str]]]]] = {}
    for row in measured:
        run = runs.setdefault((row["env"], row["bodies"], row["width"]), {}).setdefault(row["seed"], {})
        run.setdefault(row["learner"], []).append(row)
    for task, seeds in runs.items():
        common = min(len(rows) for of_seed in seeds.values() for rows in of_seed.values())
        steps = {rows[common - 1]["gradient_steps"] for of_seed in seeds.values() for rows in of_seed.values()}
        times = [
            mean(
                mean(float(row["time_at_goal"]) for row in of_seed[name][common - 5 : common])
                for of_seed in seeds.values()
            )
            for name in learners
        ]
        assert shown[*task, ", ".join(seeds)] == [f"{int(steps.pop()):,}", *(f"{time:.0f}" for time in times)]
        assert not steps


def test_the_long_run_is_as_measured_on_the_way() -> None:
    """Mean over seeds of the mean time at goal at the last five evaluations up to a number of gradient steps."""
    learners, curves = ["d4", "d16", "d32", "d64"], {}
    with open(RESULTS / "search" / "long.csv") as file:
        for row in csv.DictReader(file):
            curve = curves.setdefault((row["learner"], row["seed"]), {})
            curve[int(row["gradient_steps"])] = float(row["time_at_goal"])
    shown = rows_below(RESULTS / "search.md", ["gradient steps so far", *learners])
    assert len(shown) == 5
    for steps, *times in shown:
        until = int(steps.replace(",", ""))
        for learner, time in zip(learners, times, strict=True):
            ends = []
            for curve in (curve for (name, _), curve in curves.items() if name == learner):
                assert until in curve
                ends.append(mean([value for reached, value in sorted(curve.items()) if reached <= until][-5:]))
            assert len(ends) == 3
            assert time == f"{mean(ends):.0f}"


OBJECTIVES = RESULTS / "objectives" / "summary.csv"
SUMMARIES = sorted({*RESULTS.glob("*/summary.csv")} - {OBJECTIVES})
Cells = dict[tuple[int, int], dict[int, float]]


def read_cells(summary: Path) -> Cells:
    """Returns the time at goal by collector and learner depth, and by seed."""
    cells: Cells = {}
    with open(summary) as file:
        for row in csv.DictReader(file):
            place = int(row["collector_depth"]), int(row["learner_depth"])
            cells.setdefault(place, {})[int(row["seed"])] = float(row["time_at_goal"])
    return cells


@pytest.mark.parametrize("summary", SUMMARIES, ids=lambda path: path.parent.name)
def test_a_result_shows_the_figures_of_its_summary(summary: Path) -> None:
    cells = read_cells(summary)
    collectors, learners = (sorted({place[axis] for place in cells}) for axis in (0, 1))
    page = RESULTS / f"{summary.parent.name}.md"
    shown = rows_below(page, ["collector depth", *map(str, learners)])
    expected = [
        [str(depth), *(text.with_interval(estimate([*cells[depth, learner].values()])) for learner in learners)]
        for depth in collectors
    ]
    assert shown == expected
    shown = rows_below(page, ["data of", "learners", "steps at goal", "higher in"])
    assert shown
    for data, pair, steps, wins in shown:
        collector, (deep, shallow) = int(data.removeprefix("depth ")), map(int, pair.split(" − "))
        deeper, shallower = (cells[collector, depth] for depth in (deep, shallow))
        assert deeper.keys() == shallower.keys()
        found = paired_difference([*deeper.values()], [shallower[seed] for seed in deeper])
        assert [steps, wins] == [text.difference(found), text.wins(found)]


def test_the_claims_on_exploring_are_those_of_the_summary() -> None:
    """Gains over both axes, seed by seed, and coverage by collector depth."""
    cells = read_cells(RESULTS / "depth" / "summary.csv")
    collectors, learners = (sorted({place[axis] for place in cells}) for axis in (0, 1))
    seeds = sorted(cells[collectors[0], learners[0]])
    least, most, shallow, deep = collectors[0], collectors[-1], learners[0], learners[-1]

    def gains(collector: int) -> list[float]:
        return [cells[collector, deep][seed] - cells[collector, shallow][seed] for seed in seeds]

    def means(collector: int) -> list[float]:
        return [mean(cells[collector, learner][seed] for learner in learners) for seed in seeds]

    expected = []
    for name, ours, theirs in (
        ("together", gains(most), gains(least)),
        ("exploring", means(most), means(least)),
    ):
        found = paired_difference(ours, theirs)
        expected.append([name, text.difference(found), text.wins(found)])
    page = RESULTS / "depth.md"
    assert [row[:3] for row in rows_below(page, ["claim", "steps at goal", "higher in", "what"])] == expected
    with open(RESULTS / "depth" / "summary.csv") as file:
        rows = [row for row in csv.DictReader(file) if int(row["learner_depth"]) == shallow]
    coverage = [
        [
            str(depth),
            text.with_interval(
                estimate([float(row["coverage"]) for row in rows if row["collector_depth"] == str(depth)])
            ),
        ]
        for depth in collectors
    ]
    assert rows_below(page, ["collector depth", "cells visited"]) == coverage


def test_ordinary_training_is_that_of_the_packed_runs() -> None:
    """The collectors' own learners, which no cell of the summary holds."""
    times: dict[int, dict[int, float]] = {}
    for path in sorted((RESULTS / "depth" / "runs").iterdir()):
        name = path.name.removesuffix(".tar.xz")
        with tarfile.open(path) as packed:
            summary = packed.extractfile(f"{name}/summary.json")
            assert summary
            active = json.load(summary)["learners"]["active"]
        seed = int(name.rpartition("-s")[2])
        times.setdefault(active["depth"], {})[seed] = active["time_at_goal"]
    shallow, *deeper = sorted(times)
    expected = []
    for depth in deeper:
        found = paired_difference([times[depth][seed] for seed in times[shallow]], [*times[shallow].values()])
        expected.append([f"{depth} − {shallow}", text.difference(found), text.wins(found)])
    assert rows_below(RESULTS / "depth.md", ["ordinary training", "steps at goal", "higher in"]) == expected


def test_objectives_show_the_figures_of_their_summary() -> None:
    """Time at goal and gains of depth with each objective, and how contrastive RL's gain differs from the others'."""
    cells: dict[str, dict[int, dict[int, float]]] = {}
    reached: dict[str, dict[int, dict[int, float]]] = {}
    with open(OBJECTIVES) as file:
        for row in csv.DictReader(file):
            for found, name in ((cells, "time_at_goal"), (reached, "success_rate")):
                of_depth = found.setdefault(row["objective"], {}).setdefault(int(row["learner_depth"]), {})
                of_depth[int(row["seed"])] = float(row[name])
    shallow, middle, deep = depths = sorted(cells["contrastive"])
    seeds = sorted(cells["contrastive"][shallow])
    page = RESULTS / "objectives.md"

    def gain(objective: str, deeper: int) -> list[float]:
        return [cells[objective][deeper][seed] - cells[objective][shallow][seed] for seed in seeds]

    def shown(ours: list[float], theirs: list[float]) -> list[str]:
        found = paired_difference(ours, theirs)
        return [text.difference(found), text.wins(found)]

    assert rows_below(page, ["objective", *map(str, depths)]) == [
        [name, *(text.with_interval(estimate([*times[depth].values()])) for depth in depths)]
        for name, times in cells.items()
    ]
    zero = [0.0] * len(seeds)
    assert rows_below(page, ["objective", "learners", "steps at goal", "higher in"]) == [
        [name, f"{deeper} − {shallow}", *shown(gain(name, deeper), zero)] for name in cells for deeper in (middle, deep)
    ]
    assert rows_below(page, ["less the gain with", "steps at goal", "higher in"]) == [
        [name, *shown(gain("contrastive", middle), gain(name, middle))] for name in cells if name != "contrastive"
    ]
    headings = ["survival less contrastive RL, depth", "steps at goal", "higher in"]
    assert rows_below(page, headings) == [
        [str(depth), *shown(*([cells[name][depth][seed] for seed in seeds] for name in ("survival", "contrastive")))]
        for depth in depths
    ]
    assert rows_below(page, ["goals reached", *map(str, depths)]) == [
        [name, *(f"{mean(reached[name][depth].values()):.2f}" for depth in depths)] for name in cells
    ]
    decoupled = read_cells(RESULTS / "depth" / "summary.csv")  # the same learners
    assert cells["contrastive"] == {depth: decoupled[shallow, depth] for depth in depths}


def test_the_readme_leads_with_the_figures_of_the_demo() -> None:
    cells = read_cells(RESULTS / "demo" / "summary.csv")
    gain = paired_difference([*cells[4, 16].values()], [*cells[4, 4].values()])
    assert gain.interval is not None
    readme = " ".join((RESULTS.parents[1] / "README.md").read_text().split())
    low, high = text.number(gain.interval.low), text.number(gain.interval.high)
    assert f"end {text.number(gain.mean)} steps at goal above learners of depth 4" in readme
    assert f"(95 % interval {low} to {high}, higher in {text.wins(gain)} seeds" in readme


def rows_below(page: Path, headings: list[str]) -> list[list[str]]:
    """Returns the rows of all tables of a page that have these headings."""
    cells = [[cell.strip(" `") for cell in line.split("|")[1:-1]] for line in page.read_text().splitlines()]
    rows, within = [], False
    for row in cells:
        within = bool(row) and (within or row == headings)
        if within and row != headings and not set("".join(row)) <= {"-"}:
            rows.append(row)
    return rows


def test_every_file_of_results_is_shown() -> None:
    pages = "".join(page.read_text() for folder in (RESULTS, RESULTS.parent) for page in folder.glob("*.md"))
    files = [path for path in RESULTS.rglob("*") if path.is_file() and path.suffix != ".md"]
    shown = [f"{path.parent.parent.name}/runs)" if path.parent.name == "runs" else path.name for path in files]
    assert [name for name in shown if name not in pages] == []
