"""Episodes of galleries: the same ones in all cells, those of the runs' last evaluations."""

import dataclasses
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc
import pytest

from deploy.report.gallery import play
from deploy.report.gallery.make import make_views
from deploy.report.gallery.play import HOLD_STEPS, Gallery, choose_episodes, median_seed, play_matrix
from deploy.report.read import read_matrix
from deploy.report.records import MatrixRecord, Missing, Trial
from deploy.run.episodes import read_episodes
from deploy.run.trained import Trained, load_trained
from shared.envs.point_maze import PointMaze
from tests.deploy.report.gallery.cases import LENGTH, sliding
from tests.deploy.report.gallery.conftest import CopyMatrix

pytestmark = pytest.mark.slow
WriteRuns = Callable[..., Path]


def play_folder(folder: Path) -> tuple[list[Gallery], list[Missing]]:
    return play_matrix(read_matrix(folder), lambda line: None)


def last_evaluation(folder: Path, trial: Trial) -> Any:
    """Returns the rows of a learner's last evaluation, by number of the episode."""
    table = read_episodes(folder / trial.run)
    table = table.filter(pc.field("learner") == trial.learner)
    return table.filter(pc.field("updates") == pc.max(table["updates"])).sort_by("episode").to_pylist()


def shown_trials(record: MatrixRecord, gallery: Gallery) -> dict[Any, Trial]:
    trials = [trial for trial in record.trials if trial.seed == gallery.seed]
    return {(trial.collector_depth, None if trial.active else trial.learner_depth): trial for trial in trials}


@pytest.fixture(scope="module")
def record(maze: Path) -> MatrixRecord:
    return read_matrix(maze)


@pytest.fixture(scope="module")
def gallery(record: MatrixRecord) -> Gallery:
    (found,), missing = play_matrix(record, lambda line: None)
    assert missing == []
    return found


def test_all_cells_show_the_same_episodes_of_the_last_evaluation(record: MatrixRecord, gallery: Gallery) -> None:
    assert gallery.seed == 1
    assert (gallery.rows, gallery.columns, gallery.name) == ([4, 8], [4, 8, None], "point_u_maze-contrastive")
    trials = shown_trials(record, gallery)
    assert gallery.cells.keys() == trials.keys() == {(row, column) for row in (4, 8) for column in (4, 8, None)}
    for cell, trial in trials.items():
        rows = last_evaluation(record.directory, trial)
        for number, episode in zip(gallery.shown.values(), gallery.cells[cell], strict=True):
            np.testing.assert_allclose(episode.states[0, :2], rows[number]["start"], atol=1e-3)
            np.testing.assert_allclose(episode.goals, [rows[number]["goal"]] * 20, atol=1e-3)
            at_goal = int((episode.distances[1:] < gallery.env.spec.goal_radius).sum())
            assert abs(at_goal - rows[number]["time_at_goal"]) <= 1  # the table counts the state after the last step
    assert len({episode.states[-1].tobytes() for cell in gallery.cells.values() for episode in cell}) > 3


def test_worst_median_and_best_episode_are_shown(record: MatrixRecord, gallery: Gallery) -> None:
    tables = [last_evaluation(record.directory, trial) for trial in shown_trials(record, gallery).values()]
    times = {number: sum(table[number]["time_at_goal"] for table in tables) for number in range(8)}
    times = {number: time for number, time in times.items() if tables[0][number]["shortest_path"] >= 0.25}
    assert [*gallery.shown] == ["worst", "median", "best"]
    assert times[gallery.shown["worst"]] == min(times.values())
    assert times[gallery.shown["best"]] == max(times.values())
    assert times[gallery.shown["median"]] == sorted(times.values())[len(times) // 2]


def test_episodes_that_start_at_their_goal_are_shown_only_without_others() -> None:
    times = np.array([[9, 3, 0, 5, 1], [9, 1, 0, 5, 5]])
    trivial = np.array([True, False, False, False, False])
    assert choose_episodes(times, trivial) == {"worst": 2, "median": 4, "best": 3}
    assert choose_episodes(times, np.ones(5, bool)) == {"worst": 2, "median": 4, "best": 0}
    assert choose_episodes(times[:, :1], trivial[:1]) == {"worst": 0}


def test_the_median_seed_of_those_with_most_learners_is_shown(write_runs: WriteRuns) -> None:
    trials = read_matrix(write_runs()).trials  # each seed has one step more than the one before it
    assert median_seed(trials) == 1
    assert median_seed([trial for trial in trials if trial.run != "point_u_maze-c4-s1"]) == 0


def test_a_gallery_ends_a_moment_after_all_cells_have_reached_the_goal() -> None:
    never = sliding()
    assert {len(each.states) for each in never.episodes("worst").values()} == {LENGTH}
    arrivals = dict(zip(never.cells, (20, 90, 50), strict=True))
    cells = {
        cell: [episodes[0]._replace(distances=np.where(np.arange(LENGTH) < arrivals[cell], 5, 0.0))] * 2
        for cell, episodes in never.cells.items()
    }
    shown = dataclasses.replace(never, cells=cells).episodes("worst")
    assert {len(column) for episode in shown.values() for column in episode} == {90 + HOLD_STEPS}


def test_a_half_done_matrix_shows_what_is_there(copy_maze: CopyMatrix, gallery: Gallery, tmp_path: Path) -> None:
    folder = copy_maze("point_u_maze-c8-s*")
    run = f"point_u_maze-c4-s{gallery.seed}"
    shutil.rmtree(folder / run / "checkpoints" / "d8")
    for path in (folder / run / "checkpoints" / "active").rglob("_METADATA"):
        path.write_text("{")
    record = read_matrix(folder)
    runs = len(record.missing)
    (view,) = make_views(record, tmp_path / "page.html", tmp_path, lambda line: None)
    half, missing = view.gallery, record.missing[runs:]
    assert (half.seed, half.rows, half.columns) == (gallery.seed, [4, 8], [4, 8, None])
    assert half.cells.keys() == {(4, 4)}
    assert [(each.run, each.part) for each in missing] == [(run, "behaviour of active"), (run, "behaviour of d8")]
    assert "no checkpoint, although the run is done" in missing[1].reason
    assert not any("\n" in each.reason for each in missing)
    assert view.render().count("no final policy") == 5


def test_without_any_policy_there_is_no_gallery(copy_maze: CopyMatrix) -> None:
    galleries, missing = play_folder(copy_maze("checkpoints"))
    assert (len(galleries), len(missing)) == (0, 6)


def test_objectives_without_a_policy_have_no_gallery(maze: Path) -> None:
    record = read_matrix(maze)
    objectives = record.matrix.model_copy(update={"objectives": {"contrastive": {}, "survival": {}}})
    passive = [trial for trial in record.trials if not trial.active]
    galleries, _ = play_matrix(dataclasses.replace(record, matrix=objectives, trials=passive), lambda line: None)
    assert [each.name for each in galleries] == ["point_u_maze-contrastive"]
    assert dataclasses.replace(galleries[0], env_id="m:E", objective="m:O").name == "m.E-m.O"


def test_the_first_episodes_of_runs_without_a_table_are_shown(copy_maze: CopyMatrix) -> None:
    folder = copy_maze("episodes.arrow")
    for path in (folder / "matrix.yaml", *folder.glob("*/config.yaml")):
        text = path.read_text()
        assert text.count("episodes: 8") == 1
        path.write_text(text.replace("episodes: 8", "episodes: 2"))
    (old,), missing = play_folder(folder)
    assert (old.shown, missing) == ({"first": 0, "second": 1}, [])
    assert len(old.cells) == 6


def test_each_network_size_and_the_step_are_compiled_once(
    record: MatrixRecord, monkeypatch: pytest.MonkeyPatch
) -> None:
    traced: Counter[Any] = Counter()
    counted: dict[Any, Any] = {}

    def load(run_dir: Path, learner: str) -> Trained:
        trained = load_trained(run_dir, learner)
        policy = trained.policy

        def act(*arguments: Any) -> Any:
            traced[policy] += 1
            return policy(*arguments)

        return trained._replace(policy=counted.setdefault(policy, act))

    def step(env: PointMaze, *arguments: Any) -> Any:
        traced["step"] += 1
        return original(env, *arguments)

    original = PointMaze.step
    monkeypatch.setattr(play, "load_trained", load)
    monkeypatch.setattr(PointMaze, "step", step)
    play_matrix(dataclasses.replace(record, trials=record.trials[:1]), lambda line: None)
    of_one_cell = traced.pop("step")
    counted.clear()
    traced.clear()
    (gallery,), _ = play_matrix(record, lambda line: None)
    assert len(gallery.cells) == 6
    assert traced.pop("step") == of_one_cell
    assert sorted(traced.values()) == [1, 1]  # depths 4 and 8
