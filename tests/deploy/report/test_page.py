"""The page in a browser: Chromium and its driver, both from Debian."""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from plotly.offline import get_plotlyjs_version
from selenium import webdriver
from selenium.webdriver.common.by import By

from deploy.cli.main import run_command
from deploy.report.analyse import make_report
from deploy.report.page import SCRIPT, write_page
from deploy.report.read import read_matrix
from tests.deploy.chromium import DESK, PHONE, open_chromium, show

WriteRuns = Callable[..., Path]


@pytest.fixture(scope="module")
def browser() -> Iterator[webdriver.Chrome]:
    with open_chromium() as opened:
        yield opened


@pytest.fixture(scope="module")
def whole(all_runs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of a matrix with all runs done, as `fathom report` writes it."""
    folder = tmp_path_factory.mktemp("report") / "matrix"
    shutil.copytree(all_runs, folder)
    assert run_command(["report", str(folder)]) == 0
    return folder / "report.html"


def test_the_script_of_the_charts_is_of_the_version_of_the_package() -> None:
    header = SCRIPT.read_text(encoding="utf-8")[:100]
    assert f"plotly.js (cartesian - minified) v{get_plotlyjs_version()}\n" in header  # otherwise: make plotly


def page_of(folder: Path) -> Path:
    return write_page(make_report(read_matrix(folder)), folder / "report.html")


def heatmap(browser: webdriver.Chrome, name: str) -> tuple[list[str], list[str], list[list[float | None]]]:
    script = f"const d = document.getElementById('{name}').data[0]; return [d.x, d.y, d.z]"
    x, y, z = browser.execute_script(script)
    return x, y, z


def test_heatmaps_show_the_numbers_of_the_runs(browser: webdriver.Chrome, whole: Path) -> None:
    show(browser, whole, DESK)
    x, y, z = heatmap(browser, "point_u_maze-matrix-0")
    assert (x, y) == (["4", "16"], ["4", "16"])  # learner depths from left to right, collector depths upwards
    assert z == [[5, 6], [7, 13]]
    assert heatmap(browser, "point_u_maze-difference-0") == (["16"], ["4", "16"], [[1], [6]])
    written = browser.find_element(By.ID, "point_u_maze-matrix-0").text
    assert all(each in written for each in ("5.00", "[4.00, 6.00]", "13.0", "learner depth", "collector depth"))
    assert browser.get_log("browser") == []


def test_a_sentence_says_what_depth_gains_on_the_same_data(
    browser: webdriver.Chrome, whole: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    show(browser, whole, DESK)
    ends = ("4, learners of depth 16 minus learners of depth 4: +1.00 [1.00, 1.00]", "16, learners of depth 16 minus")
    shown = [each.text for each in browser.find_elements(By.CLASS_NAME, "answer")]
    assert len(shown) == 2
    for sentence, start in zip(shown, ends, strict=True):
        assert sentence.startswith(f"On streams of collectors of depth {start}")
        assert sentence.endswith("steps at goal, higher in 3 of 3 seeds. The interval lies above zero.")
    assert run_command(["report", str(whole.parent), "--no-behaviours"]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert [line for line in printed if "learners of depth 16" in line] == [f"point_u_maze: {each}" for each in shown]


def test_page_fits_a_phone_and_paper(browser: webdriver.Chrome, whole: Path) -> None:
    show(browser, whole, PHONE)
    assert browser.execute_script("return document.documentElement.scrollWidth") == PHONE
    figures = browser.find_elements(By.CLASS_NAME, "js-plotly-plot")
    assert len(figures) == 14  # two heatmaps, twice three learning curves, coverage, two costs, three profiles
    for figure in figures:
        drawn = figure.find_element(By.CLASS_NAME, "main-svg").size
        assert 300 < drawn["width"] <= PHONE
        assert drawn["height"] > 200
    assert browser.get_log("browser") == []
    assert len(browser.execute_cdp_cmd("Page.printToPDF", {"printBackground": True})["data"]) > 50_000
    assert browser.get_log("browser") == []


def test_a_page_takes_environments_and_seeds_together(browser: webdriver.Chrome, whole: Path) -> None:
    show(browser, whole, DESK)
    script = "return document.getElementById('profiles-1').data.filter(d => d.showlegend !== false)"
    shallow, deep = browser.execute_script(f"{script}.map(d => [d.name, d.x[30], d.y[30], d.y[65]])")
    # Scores 0.3, 0.35, 0.4 and 0.6, 0.65, 0.7: a run at the threshold is not above it.
    assert shallow == ["depth 4", 0.3, pytest.approx(200 / 3), 0]
    assert deep == ["depth 16", 0.3, 100, pytest.approx(100 / 3)]
    page = browser.find_element(By.TAG_NAME, "body").text
    section = page[page.index("Across environments and seeds") : page.index("Fairness\n")]
    assert "16 16 0.65 [0.60, 0.70] 1 3" in section  # depths, interquartile mean, environments, seeds
    assert "learners, collector depth 16 16 over 4 1.00 [1.00, 1.00] 1 3" in section
    assert "ordinary training 16 over 4 0.50 [0.50, 0.50] 1 3" in section
    assert "in 2 of 20 cases" in section
    assert "Not every learner" not in section
    assert browser.get_log("browser") == []


def test_a_page_compares_objectives(browser: webdriver.Chrome, objectives: Path, tmp_path: Path) -> None:
    show(browser, write_page(make_report(read_matrix(objectives)), tmp_path / "report.html"), PHONE)
    assert browser.execute_script("return document.documentElement.scrollWidth") == PHONE
    lines = "return document.getElementById('point_u_maze-depth-0').data.filter(d => d.showlegend !== false)"
    drawn = browser.execute_script(f"{lines}.map(d => [d.name, d.x, d.y])")
    assert drawn == [["contrastive", [4, 16], [4.5, 5.5]], ["survival", [4, 16], [5, 6.25]]]
    page = browser.find_element(By.TAG_NAME, "body").text
    assert "survival − contrastive" in page
    assert "+0.88 [0.00, 1.75]" in page  # of the means over collector depths
    assert "1 of 2, 1 equal" in page
    assert "chunk of 2, its collector's is 1" in page
    assert browser.get_log("browser") == []


def test_missing_runs_and_marked_learners_are_shown(browser: webdriver.Chrome, write_runs: WriteRuns) -> None:
    changes = {("point_u_maze-c4-s0", "d16"): {"gradient_steps": 16}}
    missing = tuple(f"point_u_maze-c16-s{seed}" for seed in range(3))
    show(browser, page_of(write_runs(skip=missing, changes=changes)), DESK)
    assert all(name in browser.find_element(By.ID, "missing").text for name in missing)
    assert heatmap(browser, "point_u_maze-matrix-0")[2] == [[5, 6], [None, None]]
    assert browser.find_element(By.ID, "point_u_maze-matrix-0").text.count("missing") == 2
    axes = (
        "const l = document.getElementById('point_u_maze-matrix-0')._fullLayout; return [l.xaxis.range, l.yaxis.range]"
    )
    assert browser.execute_script(axes) == [[-0.5, 1.5], [-0.5, 1.5]]  # both axes keep two cells
    page = browser.find_element(By.TAG_NAME, "body").text
    assert "1 learner was not treated like the others" in page
    assert "16 gradient steps, most have 20" in page
    assert browser.get_log("browser") == []


def test_matrix_without_finished_runs_gives_a_page(browser: webdriver.Chrome, write_runs: WriteRuns) -> None:
    every = tuple(f"point_u_maze-c{depth}-s{seed}" for depth in (4, 16) for seed in range(3))
    folder = write_runs(skip=every)
    assert run_command(["report", str(folder)]) == 0
    show(browser, folder / "report.html", DESK)
    assert "0 of 6 runs done" in browser.find_element(By.TAG_NAME, "body").text
    assert browser.get_log("browser") == []
