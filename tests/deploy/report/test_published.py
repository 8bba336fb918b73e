"""Published results: their file, and which of them the report shows beside ours."""

from dataclasses import replace
from pathlib import Path

import pytest

from deploy.report.analyse import make_report
from deploy.report.page import write_page
from deploy.report.published import load_published, published_beside
from deploy.report.read import read_matrix
from deploy.report.records import Trial
from shared.algorithm_config import OWN_CONSTANTS
from shared.envs.registry import PAPER_TASKS, env_entries


@pytest.fixture(scope="module")
def active(all_runs: Path) -> list[Trial]:
    """Collector learners of depths 4 and 16, whose time at goal is 1 step."""
    return [trial for trial in read_matrix(all_runs).trials if trial.active]


def test_published_results_are_of_our_environments_and_objectives() -> None:
    known, published = {entry.env_id for entry in env_entries()}, load_published()
    for result in published.results:
        assert {result.env, result.evaluated_in} <= known
        assert result.evaluated_in in (result.env, f"{result.env}_eval")
        assert result.objective in OWN_CONSTANTS
        assert result.source in published.sources
        assert {*result.values} == {4, 64}
        assert all(0 <= mean <= 1000 for mean, _ in result.values.values())
    of_paper = [result for result in published.results if result.source == "paper"]
    assert sorted(result.env for result in of_paper) == sorted(PAPER_TASKS)
    assert len({(each.source, each.env, each.objective, each.chunk) for each in published.results}) == len(
        published.results
    )


def test_ours_stand_beside_theirs_of_the_same_task_layout_objective_and_depth(active: list[Trial]) -> None:
    (paper,) = published_beside("ant_u4_maze", "ant_u4_maze_eval", active)
    assert (paper.depth, paper.theirs, paper.error, paper.their_env_steps) == (4, 11, 4, 10**8)
    assert (paper.ours.value, paper.env_steps) == (1, active[0].steps[-1])
    (rerun,) = published_beside("ant_u4_maze", "ant_u4_maze", active)
    assert (rerun.theirs, rerun.error) == (383, 45)
    assert rerun.source != paper.source
    assert list(published_beside("point_u_maze", "point_u_maze", active)) == []
    survival = [replace(trial, objective="survival") for trial in active]
    assert [row.theirs for row in published_beside("ant_u4_maze", "ant_u4_maze", survival)] == [464]
    chunks = [replace(trial, chunk=3) for trial in active]
    assert [(row.theirs, row.chunk) for row in published_beside("ant_u4_maze", "ant_u4_maze", chunks)] == [(497, 3)]


def test_the_page_marks_theirs(all_runs: Path, active: list[Trial], tmp_path: Path) -> None:
    report = make_report(read_matrix(all_runs))
    assert report.envs[0].published == ()
    published = tuple(published_beside("ant_u4_maze", "ant_u4_maze_eval", active))
    shown = replace(report, envs=(replace(report.envs[0], published=published),))
    page = write_page(shown, tmp_path / "report.html").read_text()
    assert '<td class="theirs">11.0 ± 4.00</td>' in page
    assert '<td class="theirs">100 M</td>' in page
    assert "Wang et al. 2025, Table 1" in page
