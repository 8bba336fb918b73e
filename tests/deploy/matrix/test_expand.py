"""Expansion of a matrix into runs, and mistakes in its file."""

from collections.abc import Callable
from pathlib import Path

import pytest

from deploy.matrix.expand import MatrixConfig, expand, learner_name, load_matrix
from shared.errors import ConfigError


def test_every_combination_is_one_run_with_all_learners(make_matrix: Callable[..., MatrixConfig]) -> None:
    axes = {"envs": ["point_u_maze", "ant"], "collector_depths": [4, 16], "seeds": [0, 3]}
    of_env = {"evaluation_envs": {"ant": "ant_u_maze"}, "budgets": {"ant": "2e5"}}
    runs = expand(make_matrix(**axes, **of_env))
    assert [run.name for run in runs][:4] == [f"point_u_maze-c{depth}-s{seed}" for depth in (4, 16) for seed in (0, 3)]
    assert len(runs) == 8
    last = runs[-1].experiment
    assert (last.env, last.evaluation.envs, last.collector.depth, last.seed) == ("ant", ("ant_u_maze",), 16, 3)
    sizes = {name: (learner.depth, learner.width) for name, learner in last.learners.items()}
    assert sizes == {"d4": (4, 8), "d8": (8, 8)}
    assert all(learner.seed != last.collector.seed for learner in last.learners.values())
    assert runs[0].experiment.evaluation.envs == ()
    assert {(run.experiment.env, run.experiment.budget.env_steps) for run in runs} == {
        ("point_u_maze", 400),
        ("ant", 200_000),
    }
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


OWN = "tests.deploy.matrix.own_objective:Reward_free"
FIVE = ["contrastive", "survival", "cloning", "chrono", "sac"]


def test_objectives_are_crossed_with_learner_depths(make_matrix: Callable[..., MatrixConfig]) -> None:
    objectives = {"contrastive": {}, "survival": {"discount": 0.99, "survival": {"rank": 8}}}
    algorithm = {"batch_size": 16, "windows_per_update": 8, "minibatches_per_update": 4, "energy": "l2"}
    (run,) = expand(make_matrix(objectives=objectives, algorithm=algorithm, seeds=[0]))
    assert list(run.experiment.learners) == ["contrastive-d4", "contrastive-d8", "survival-d4", "survival-d8"]
    found = {name: run.experiment.algorithm_of(name) for name in run.experiment.all_learners}
    assert {name: (each.objective, each.discount, each.energy, each.batch_size) for name, each in found.items()} == {
        "active": ("contrastive", 0.99, "l2", 16),
        "contrastive-d4": ("contrastive", 0.99, "l2", 16),
        "contrastive-d8": ("contrastive", 0.99, "l2", 16),
        "survival-d4": ("survival", 0.99, "l2", 16),
        "survival-d8": ("survival", 0.99, "l2", 16),
    }
    assert found["survival-d8"].survival.rank == 8
    assert {(each.width, each.seed) for each in run.experiment.learners.values()} == {(8, 1)}


def test_a_list_of_objectives_has_no_keys(make_matrix: Callable[..., MatrixConfig]) -> None:
    matrix = make_matrix(objectives=FIVE)
    assert matrix == make_matrix(objectives=dict.fromkeys(FIVE))
    assert matrix.objective_keys == {name: {} for name in FIVE}
    assert make_matrix().objective_keys == {"contrastive": {}}
    assert make_matrix(algorithm={"objective": "sac"}).objective_keys == {"sac": {}}
    assert all(name in {"d4", "d8"} for run in expand(make_matrix()) for name in run.experiment.learners)


def test_learners_of_own_objectives_have_unique_names(make_matrix: Callable[..., MatrixConfig]) -> None:
    twins = [OWN, OWN.replace("own_", "other_"), "contrastive", "lab.a_b:C", "lab.a:C", "x.y:" + 48 * "Long"]
    names = list(expand(make_matrix(objectives=twins))[0].experiment.learners)
    assert len({name.replace("-", "_") for name in names}) == 2 * len(twins)
    assert names[0] == learner_name(OWN, 4) == "Reward_free-3a72dd-d4"
    alone = expand(make_matrix(objectives=[OWN]))[0].experiment.learners
    assert [*alone] == names[:2]  # others change no name, so that they can be added


def test_an_objective_may_be_varied_under_an_own_name(make_matrix: Callable[..., MatrixConfig]) -> None:
    matrix = make_matrix(objectives={"contrastive": {}, "chunks": {"objective": "contrastive", "chunk": 3}})
    experiment = expand(matrix)[0].experiment
    assert [*experiment.learners] == ["contrastive-d4", "contrastive-d8", "chunks-d4", "chunks-d8"]
    assert experiment.algorithm_of("chunks-d8") == experiment.algorithm_of("contrastive-d8").model_copy(
        update={"chunk": 3}
    )
    names = ["chunks-d4", "contrastive-d8", "d8", "active"]
    assert [matrix.objective_of(name) for name in names] == ["chunks", "contrastive", "contrastive", "contrastive"]
    assert make_matrix().objective_of("d4") == "contrastive"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"objectives": []}, "objectives: is empty; name at least one"),
        ({"objectives": {}}, "objectives: is empty; name at least one"),
        ({"objectives": "sac"}, "objectives: use a list of names, or a mapping from names to keys of algorithm"),
        ({"objectives": ["sac", "sac"]}, "objectives: sac is named twice; name each once"),
        ({"objectives": [["sac"]]}, "objectives: use a list of names, or a mapping from names to keys of algorithm"),
        ({"objectives": {"sac": 3}}, "objectives.sac: input should be a valid dictionary, got 3"),
        ({"objectives": {"sac": {"objective": "sac"}}}, "objectives.sac.objective: sac is an objective itself"),
        ({"objectives": {"sac": {"batch_size": 8}}}, "objectives.sac.batch_size: all learners of a run have one pace"),
        ({"objectives": {"sac": {"discuont": 0.9}}}, "objectives.sac.discuont: unknown key; known here: objective, "),
        ({"objectives": {"sac": {"discount": 2}}}, "objectives.sac.discount: input should be less than 1, got 2"),
        (
            {"objectives": ["sac"], "algorithm": {"sac": {"target_rate": 0.1}}},
            "experiment.algorithm.sac: is a key of sac; set objectives.sac.sac",
        ),
        ({"seeds": []}, "seeds: is empty; name at least one"),
        ({"learner_depths": [4, 8, 4]}, "learner_depths: 4 is named twice; name each once"),
        ({"learner_depths": [6]}, "learners.d6.depth: depth 6 is not a positive multiple of 4"),
        ({"seed": 1}, "experiment.seed: the matrix sets it; leave it out"),
        ({"collector": {"depth": 4}}, "experiment.collector.depth: the matrix sets it; leave it out"),
        ({"replay": {"pace": "free"}}, "experiment.replay.pace: free gives cells different paces; use lockstep"),
        ({"bugdet": {}}, "bugdet: unknown key; known here: env, "),
        ({"evaluation_envs": {"ant": "ant"}}, "evaluation_envs.ant: not among envs"),
        ({"budgets": {"ant": 400}}, "budgets.ant: not among envs"),
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
    path.write_text("{envs: [ant], collector_depths: [4], objectives: [sac]}")
    with pytest.raises(ConfigError, match="objectives: only passive learners have them, and there are none; name lear"):
        load_matrix(path)
