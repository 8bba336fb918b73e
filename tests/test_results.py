"""Figures of docs/results/ are those of the tables beside them."""

import csv
from collections import defaultdict
from pathlib import Path
from statistics import mean

RESULTS = Path(__file__).parents[1] / "docs" / "results"
LEARNERS = ("active", "d4", "d8", "d16", "d32", "d64")


def test_the_screening_is_as_measured() -> None:
    """The mean time at goal of the last five evaluations that all learners of a run made."""
    with open(RESULTS / "search" / "screening.csv") as file:
        measured = list(csv.DictReader(file))
    runs: dict[tuple[str, ...], dict[str, list[dict[str, str]]]] = defaultdict(lambda: defaultdict(list))
    for row in measured:
        runs[row["env"], row["bodies"], row["width"]][row["learner"]].append(row)
    expected = {}
    for run, learners in runs.items():
        common = min(map(len, learners.values()))
        steps = learners["d4"][common - 1]["gradient_steps"]
        times = [mean(float(row["time_at_goal"]) for row in learners[name][common - 5 : common]) for name in LEARNERS]
        assert all(rows[common - 1]["gradient_steps"] == steps for rows in learners.values())
        expected[run] = [int(steps), *map(round, times)]
    rows = [
        [cell.strip(" `") for cell in line.split("|")[1:-1]]
        for line in (RESULTS / "search.md").read_text().splitlines()
        if line.startswith("| `point_")
    ]
    shown = {(env, bodies, width): numbers for env, bodies, width, _, *numbers in rows}
    assert {run: [int(n.replace(",", "")) for n in numbers] for run, numbers in shown.items()} == expected


def test_every_file_of_results_is_shown() -> None:
    pages = "".join(page.read_text() for folder in (RESULTS, RESULTS.parent) for page in folder.glob("*.md"))
    files = [path for path in RESULTS.rglob("*") if path.is_file() and path.suffix != ".md"]
    assert [str(path) for path in files if path.name not in pages] == []
