"""Expansion of a matrix into runs, and mistakes in its file."""

from collections.abc import Callable
from pathlib import Path

import pytest

from deploy.matrix.expand import MatrixConfig, expand, load_matrix
from shared.errors import ConfigError


def test_every_combination_is_one_run_with_all_learners(make_matrix: Callable[..., MatrixConfig]) -> None:
    axes = {"envs": ["point_u_maze", "ant"], "collector_depths": [4, 16], "seeds": [0, 3]}
    runs = expand(make_matrix(**axes, evaluation_envs={"ant": "ant_u_maze"}))
    assert [run.name for run in runs][:4] == [f"point_u_maze-c{depth}-s{seed}" for depth in (4, 16) for seed in (0, 3)]
    assert len(runs) == 8
    last = runs[-1].experiment
    assert (last.env, last.evaluation.env, last.collector.depth, last.seed) == ("ant", "ant_u_maze", 16, 3)
    sizes = {name: (learner.depth, learner.width) for name, learner in last.learners.items()}
    assert sizes == {"d4": (4, 8), "d8": (8, 8)}
    assert all(learner.seed != last.collector.seed for learner in last.learners.values())
    assert runs[0].experiment.evaluation.env is None
    assert {run.learner_depths for run in runs} == {(4, 8)}
    assert not any(run.fed for run in runs)


def test_learners_copy_the_collector_learner(make_matrix: Callable[..., MatrixConfig]) -> None:
    collector = {
        "width": 8,
        "layer_norm": False,
        "learner_resources": {"gpus": 0.25},
        "collector_resources": {"gpus": 0.5},
    }
    learners = expand(make_matrix(collector=collector))[0].experiment.all_learners
    assert {(each.width, each.layer_norm, each.resources.gpus) for each in learners.values()} == {(8, False, 0.25)}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seeds": []}, "seeds: is empty; name at least one"),
        ({"learner_depths": [4, 8, 4]}, "learner_depths: 4 is named twice; name each once"),
        ({"learner_depths": [6]}, "learners.d6.depth: depth 6 is not a positive multiple of 4"),
        ({"seed": 1}, "experiment.seed: the matrix sets it; leave it out"),
        ({"collector": {"depth": 4}}, "experiment.collector.depth: the matrix sets it; leave it out"),
        ({"replay": {"pace": "free"}}, "experiment.replay.pace: free gives cells different paces; use lockstep"),
        ({"bugdet": {}}, "bugdet: unknown key; known here: env, "),
        ({"evaluation_envs": {"ant": "ant"}}, "evaluation_envs.ant: not among envs"),
    ],
)
def test_a_mistake_gives_a_one_line_error(changes: dict, message: str, write_matrix: Callable[..., Path]) -> None:
    path = write_matrix(**changes)
    with pytest.raises(ConfigError) as error:
        load_matrix(path)
    assert f"{path}: {message}" in str(error.value)
    assert len(set(str(error.value).splitlines())) == 1


def test_an_unknown_axis_is_named(tmp_path: Path) -> None:
    path = tmp_path / "matrix.yaml"
    path.write_text("{envs: [ant], collector_depths: [4], learner_depths: [4], depths: [4]}")
    with pytest.raises(ConfigError, match="depths: unknown key; known here: envs, collector_depths"):
        load_matrix(path)
    path.write_text("{environments: [ant], collector_depths: [4], learner_depths: [4]}")
    with pytest.raises(ConfigError, match="environments: is now called envs; use that name"):
        load_matrix(path)
