"""Algorithms of learners: objectives, their own constants, and what each learner changes."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from shared.algorithm_config import OWN_CONSTANTS, AlgorithmConfig
from shared.config import ACTIVE
from shared.config_file import load_experiment, parse_experiment
from shared.errors import ConfigError

OBJECTIVES = ["contrastive", "survival", "chrono", "cloning", "sac"]


def mistake(values: dict) -> str:
    """Returns the message with which `values` are refused."""
    with pytest.raises(ConfigError) as error:
        parse_experiment(values, prefix="x.yaml: ")
    return str(error.value)


def algorithms(algorithm: dict, **learners: dict) -> dict[str, AlgorithmConfig]:
    """Returns the algorithm of every learner; `learners` are the learners' own keys of `algorithm`."""
    named = {name: {"algorithm": own} for name, own in learners.items()}
    experiment = parse_experiment({"env": "a", "algorithm": algorithm, "learners": named})
    return {name: experiment.algorithm_of(name) for name in experiment.all_learners}


@pytest.mark.parametrize(
    ("objective", "chunk", "discount", "rate"),
    [
        ("contrastive", 1, 0.99, 3e-4),
        ("survival", 1, 0.999, 3e-4),
        ("chrono", 2, 0.999, 3e-4),
        ("cloning", 1, 0.99, 3e-4),
        ("sac", 1, 0.9, 1e-4),
        ("my.package:Own", 1, 0.99, 3e-4),
    ],
)
def test_an_objectives_own_constants_are_its_defaults(objective: str, chunk: int, discount: float, rate: float) -> None:
    expected = {"chunk": chunk, "discount": discount, "actor_learning_rate": rate, "critic_learning_rate": rate}
    found = algorithms({"objective": objective}, same={}, other={"objective": objective})
    for algorithm in found.values():
        assert algorithm.model_dump(include=set(expected)) == expected
        assert algorithm.alpha_learning_rate == 3e-4
    given = {"chunk": 7, "discount": 0.5, "actor_learning_rate": 0.1, "critic_learning_rate": 0.2}
    assert algorithms({"objective": objective} | given)[ACTIVE].model_dump(include=set(given)) == given


def test_every_objective_has_its_constants() -> None:
    assert set(OWN_CONSTANTS) == set(OBJECTIVES)
    assert all(constants.keys() == OWN_CONSTANTS["contrastive"].keys() for constants in OWN_CONSTANTS.values())


def test_learners_take_over_the_shared_keys_and_change_their_own() -> None:
    shared = {"energy": "dot", "alpha_learning_rate": 0.1, "discount": 0.8, "survival": {"rank": 5}}
    found = algorithms(
        shared,
        same={},
        warm={"energy": "l2", "discount": 0.7},
        survival={"objective": "survival", "survival": {"censoring": "remaining"}},
    )
    assert found["same"] == found[ACTIVE]
    assert (found["warm"].energy, found["warm"].discount, found["warm"].alpha_learning_rate) == ("l2", 0.7, 0.1)
    survival = found["survival"]
    assert (survival.objective, survival.alpha_learning_rate) == ("survival", 0.1)
    assert survival.discount == 0.999  # the shared discount is contrastive RL's
    assert (survival.survival.rank, survival.survival.censoring) == (5, "remaining")  # single keys of a section
    named = algorithms(shared, s={"objective": "survival", "discount": 0.7, "chunk": 3})["s"]
    assert (named.discount, named.chunk) == (0.7, 3)
    assert algorithms({"discount": 0.8}, b={"objective": "contrastive"})["b"].discount == 0.8


@pytest.mark.parametrize("key", ["batch_size", "windows_per_update", "minibatches_per_update"])
def test_a_learner_cannot_change_the_pace(key: str) -> None:
    assert mistake({"env": "a", "learners": {"b": {"algorithm": {key: 4}}}}) == (
        f"x.yaml: learners.b.algorithm.{key}: all learners of a run have one pace; set algorithm.{key}"
    )


@pytest.mark.parametrize(
    ("own", "line"),
    [
        ({"objektive": "sac"}, "objektive: unknown key; known here: objective, chunk, final_goals, discount, "),
        ({"survival": {"rnak": 3}}, "survival.rnak: unknown key; known here: goals, radius, "),
        ({"discount": 1}, "discount: input should be less than 1, got 1"),
        ({"objective": ""}, "objective: string should have at least 1 character, got ''"),
        ({"chunk": 0}, "chunk: input should be greater than 0, got 0"),
        (
            {"objective": "survival", "survival": {"goals": {"future": 0, "current": 0, "random": 0}}},
            "survival.goals: future, current and random are all 0; give one of them a weight",
        ),
        ({"sac": {"target_rate": 0.1}}, "sac: a key of sac, and this learner has contrastive; leave it out"),
        ({"objective": "sac", "energy": "dot"}, "energy: a key of contrastive, and this learner has sac; leave it out"),
        ({"options": {"a": 1}}, "options: a key of an objective of your own, and this learner has contrastive; "),
    ],
)
def test_a_mistake_in_a_learners_algorithm_is_one_line_that_names_its_field(own: dict, line: str) -> None:
    message = mistake({"env": "a", "learners": {"b": {"algorithm": own}}})
    assert message.lower().startswith(f"x.yaml: learners.b.algorithm.{line}".lower())
    assert len(message.splitlines()) == 1


@pytest.mark.parametrize(
    ("key", "value", "objective"),
    [
        ("logsumexp_penalty", 0.2, "contrastive"),
        ("energy", "l2", "contrastive"),
        ("contrastive_loss", "binary_nce", "contrastive"),
        ("survival", {"rank": 3}, "survival"),
        ("chrono", {"occupancy_bins": 3}, "chrono"),
        ("sac", {"target_rate": 0.1}, "sac"),
    ],
)
def test_keys_that_no_learners_objective_reads_are_refused(key: str, value: Any, objective: str) -> None:
    unread = {"env": "a", "algorithm": {"objective": "cloning", key: value}}
    assert mistake(unread) == f"x.yaml: algorithm.{key}: a key of {objective}, which no learner has; leave it out"
    parse_experiment({"env": "a", "algorithm": {"objective": objective, key: value}})
    parse_experiment(unread | {"learners": {"b": {"algorithm": {"objective": objective}}}})
    default = AlgorithmConfig().model_dump()[key]
    parse_experiment({"env": "a", "algorithm": {"objective": "cloning", key: default}})


def test_options_need_an_objective_of_ones_own() -> None:
    unread = {"env": "a", "algorithm": {"options": {"a": 1}}}
    own = "an objective of your own"
    assert mistake(unread) == f"x.yaml: algorithm.options: a key of {own}, which no learner has; leave it out"
    parse_experiment(unread | {"learners": {"b": {"algorithm": {"objective": "c:D"}}}})


WRITTEN = [
    {"env": "a"},
    {"env": "a", "collector": {"depth": 2, "critic_depth": 1, "hyperspherical": True}},
    *({"env": "a", "algorithm": {"objective": objective}} for objective in OBJECTIVES),
    {
        "env": "a",
        "algorithm": {"discount": 0.9, "survival": {"goals": {"random": 0}}},
        "learners": {
            "s": {"algorithm": {"objective": "survival", "chunk": 3}},
            "c": {"algorithm": {"objective": "chrono", "chrono": {"radius": 0.1}}},
            "o": {"algorithm": {"objective": "my.package:Own", "options": {"beta": {"rate": 1}}}},
            "plain": {"algorithm": {"discount": 0.99}},
        },
    },
]


@pytest.mark.parametrize("values", WRITTEN, ids=range(len(WRITTEN)))
def test_a_written_experiment_is_the_same_when_it_is_read_again(values: dict, tmp_path: Path) -> None:
    """Defaults of a derived algorithm are written as values, and still are not taken for another objective's."""
    experiment = parse_experiment(values)
    (tmp_path / "x.yaml").write_text(yaml.safe_dump(experiment.model_dump(mode="json")))
    again = load_experiment(tmp_path / "x.yaml")
    assert again == experiment
    for name in experiment.all_learners:
        assert again.algorithm_of(name) == experiment.algorithm_of(name)


def test_files_from_before_there_were_objectives_are_read_to_the_same_numbers(tmp_path: Path) -> None:
    written = {  # all keys that a resolved experiment had
        "discount": 0.98,
        "batch_size": 256,
        "windows_per_update": 64,
        "minibatches_per_update": 48,
        "actor_learning_rate": 3e-4,
        "critic_learning_rate": 1e-4,
        "alpha_learning_rate": 3e-4,
        "target_entropy_per_action": -0.5,
        "logsumexp_penalty": 0.1,
        "energy": "l2",
        "contrastive_loss": "symmetric_infonce",
        "max_gradient_norm": None,
        "non_finite": "skip",
    }
    network = {"depth": 8, "width": 64, "layer_norm": True, "residual": False, "precision": "bfloat16"}
    old = {"env": "a", "collector": network, "learners": {"b": network | {"seed": 1}}, "algorithm": written}
    (tmp_path / "x.yaml").write_text(yaml.safe_dump(old))
    experiment = load_experiment(tmp_path / "x.yaml")
    for name in experiment.all_learners:
        algorithm = experiment.algorithm_of(name)
        assert algorithm.model_dump(include=set(written)) == written
        assert (algorithm.objective, algorithm.chunk, algorithm.final_goals) == ("contrastive", 1, False)
        learner = experiment.learner(name)
        assert learner.model_dump(include=set(network)) == network
        assert not learner.hyperspherical
