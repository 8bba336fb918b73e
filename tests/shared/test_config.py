from pathlib import Path

import pytest
import yaml
from pydantic import ValidationError

from shared.config import ACTIVE, Experiment
from shared.config_file import load_experiment, parse_experiment
from shared.errors import ConfigError
from shared.network_config import NetworkConfig


def mistake(values: dict) -> str:
    """Returns the message with which `values` are refused."""
    with pytest.raises(ConfigError) as error:
        parse_experiment(values, prefix="x.yaml: ")
    return str(error.value)


# --- one mistake, one line ---


def test_defaults_equal_the_reference() -> None:
    experiment = Experiment(env="a")
    assert (experiment.collector.environments, experiment.collector.unroll_length) == (512, 62)
    goals = {"future": 0.85, "current": 0.05, "random": 0.1}
    assert experiment.algorithm.model_dump() == {
        "objective": "contrastive",
        "chunk": 1,
        "final_goals": False,
        "discount": 0.99,
        "batch_size": 512,
        "windows_per_update": 512,
        "minibatches_per_update": 800,
        "actor_learning_rate": 3e-4,
        "critic_learning_rate": 3e-4,
        "alpha_learning_rate": 3e-4,
        "target_entropy_per_action": -0.5,
        "logsumexp_penalty": 0.1,
        "energy": "norm",
        "contrastive_loss": "forward_infonce",
        "survival": {
            "goals": goals,
            "radius": None,
            "censoring": "horizon",
            "rank": 64,
            "representation_size": 128,
            "goal_discount": None,
        },
        "chrono": {
            "goals": goals,
            "radius": None,
            "rank": 64,
            "occupancy_bins": 32,
            "goal_discount": 0.99,
            "time_weight": 1.0,
            "separation_weight": 1.0,
            "occupancy_weight": 1.0,
        },
        "sac": {"target_rate": 0.005},
        "options": {},
        "max_gradient_norm": None,
        "non_finite": "skip",
    }


@pytest.mark.parametrize("field", ["depth", "actor_depth", "critic_depth"])
@pytest.mark.parametrize(
    ("depth", "use"),
    [
        *((3, "1, 2 or 4"), (0, "1, 2 or 4"), (-4, "1, 2 or 4")),
        *((5, "4 or 8"), (6, "4 or 8"), (1023, "1020 or 1024")),
    ],
)
def test_depths_are_whole_blocks_or_plain(field: str, depth: int, use: str) -> None:
    assert mistake({"env": "a", "learners": {"deep": {field: depth}}}) == (
        f"x.yaml: learners.deep.{field}: depth {depth} is not a positive multiple of 4 (residual blocks hold 4 "
        f"layers), nor 1 or 2 (plain networks); use {use}"
    )


@pytest.mark.parametrize("depth", [1, 2, 4, 8, 1024])
def test_depths_that_networks_may_have(depth: int) -> None:
    parse_experiment({"env": "a", "collector": {"depth": depth, "actor_depth": 2, "critic_depth": depth}})


def test_one_normalisation_takes_the_others_place() -> None:
    assert not NetworkConfig().hyperspherical
    parse_experiment({"env": "a", "collector": {"layer_norm": True, "hyperspherical": True}})
    assert mistake({"env": "a", "collector": {"layer_norm": False, "hyperspherical": True}}) == (
        "x.yaml: collector.hyperspherical: it stands in the place of layer norm; leave layer_norm out"
    )


def test_batches_that_gpus_cannot_share_evenly_are_refused() -> None:
    wide = {"env": "a", "learners": {"wide": {"resources": {"gpus": 3}}}}
    assert mistake(wide) == (
        "x.yaml: algorithm.batch_size: 512 cannot be shared out among the 3 GPUs of learner wide; use a multiple of 3"
    )
    assert "windows_per_update: 512" in mistake(wide | {"algorithm": {"batch_size": 513}})
    parse_experiment(wide | {"algorithm": {"batch_size": 513, "windows_per_update": 513}})


@pytest.mark.parametrize(
    ("values", "line"),
    [
        ({"bugdet": {}}, "x.yaml: bugdet: unknown key; known here: env, env_options, seed, collector, learners, "),
        (
            {"replay": {"pase": 1}},
            "x.yaml: replay.pase: unknown key; known here: steps_per_environment, prefill_steps, ",
        ),
        ({"learners": {"deep": {"dpeth": 8}}}, "x.yaml: learners.deep.dpeth: unknown key; known here: depth, width, "),
        ({"collector": {"resources": {}}}, "x.yaml: collector.resources: is now called collector.learner_resources; "),
        (
            {"collector": {"actor_resources": {}}},
            "x.yaml: collector.actor_resources: is now called collector.collector_",
        ),
        (
            {"collector": {"learner_resources": {"gpu": 1}}},
            "x.yaml: collector.learner_resources.gpu: unknown key; known here: cpus, ",
        ),
        (
            {"learners": {"a": {"resources": {"gpu": 1}}}},
            "x.yaml: learners.a.resources.gpu: unknown key; known here: c",
        ),
        ({"learners": {ACTIVE: {}}}, "x.yaml: learners.active: this name is the collector learner's; choose another"),
        ({"learners": {"a b": {}}}, "x.yaml: learners.a b: use letters, digits, '-' and '_' in a learner's name"),
        ({"learners": {"": {}}}, "x.yaml: learners.: use letters, digits, '-' and '_' in a learner's name"),
        ({"learners": {"../up": {}}}, "x.yaml: learners.../up: use letters, digits, '-' and '_' in a learner's name"),
        ({"collector": {"depth": "deep"}}, "x.yaml: collector.depth: input should be a valid integer, "),
        ({"collector": None}, "x.yaml: collector: input should be a valid dictionary"),
        (
            {"algorithm": {"energy": "l3"}},
            "x.yaml: algorithm.energy: input should be 'norm', 'l2', 'dot' or 'cosine', g",
        ),
        ({"algorithm": {"discount": 1}}, "x.yaml: algorithm.discount: input should be less than 1, got 1"),
        (
            {"algorithm": {"batch_size": 1}},
            "x.yaml: algorithm.batch_size: input should be greater than or equal to 2, ",
        ),
        (
            {"replay": {"samples_per_insert": 0}},
            "x.yaml: replay.samples_per_insert: input should be greater than 0, got",
        ),
        ({"replay": {"port": 70000}}, "x.yaml: replay.port: input should be less than 65536, got 70000"),
        (
            {"env_options": {"episode_length": 0}},
            "x.yaml: env_options.episode_length: input should be greater than or equal to 2, got 0",
        ),
        ({"wandb": {"entity": "me"}}, "x.yaml: wandb: entity names the owner of a project, and there is no project; "),
        ({"wandb": {"project": "a/b"}}, "x.yaml: wandb.project: string should match pattern "),
        ({"budget": {"env_steps": -1}}, "x.yaml: budget.env_steps: input should be greater than 0, got -1"),
    ],
)
def test_a_mistake_is_one_line_that_names_its_field(values: dict, line: str) -> None:
    message = mistake({"env": "a", **values})
    assert message.startswith(line)
    assert len(message.splitlines()) == 1


@pytest.mark.parametrize("name", ["depth", "seed", "resources"])
def test_a_learner_may_be_named_like_a_field(name: str) -> None:
    assert mistake({"env": "a", "learners": {name: {"dpeth": 8}}}).startswith(
        f"x.yaml: learners.{name}.dpeth: unknown key; known here: depth, width, "
    )


def test_each_mistake_has_a_line() -> None:
    lines = mistake({"collector": {"depth": 6, "width": 0}, "bugdet": {}}).splitlines()
    assert [line.split(":")[1].strip() for line in lines] == ["env", "collector.depth", "collector.width", "bugdet"]
    assert lines[0] == "x.yaml: env: is required"


def test_configuration_is_frozen() -> None:
    experiment = Experiment(env="a")
    for config, field in ((experiment, "seed"), (experiment.collector, "depth")):
        with pytest.raises(ValidationError, match="frozen"):
            setattr(config, field, 8)


def test_learners_are_found_by_name() -> None:
    experiment = Experiment.model_validate({"env": "a", "learners": {"b": {"depth": 8}, "a": {"depth": 16}}})
    assert list(experiment.all_learners) == [ACTIVE, "b", "a"]
    assert experiment.learner("a").depth == 16
    assert experiment.learner(ACTIVE) == experiment.collector.learner
    with pytest.raises(ConfigError, match="learner 'c' is not in this run; it has: active, b, a"):
        experiment.learner("c")


# --- files ---


def test_an_experiment_is_loaded_without_its_provenance(tmp_path: Path) -> None:
    path = tmp_path / "x.yaml"
    path.write_text("provenance: {git_revision: abc}\nenv: a\ncollector: {depth: 8}\n")
    assert load_experiment(path) == Experiment.model_validate({"env": "a", "collector": {"depth": 8}})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("env: a\ncollector: {depth: 8\n", ", line 3: not valid YAML (expected ',' or '}'"),
        ("env: a\n\tseed: 1\n", ", line 2: not valid YAML (found character '\\t'"),
        ("", ": holds no experiment; it needs at least the key env"),
        ("- env\n", ": holds no experiment; it needs at least the key env"),
        ("env: a\nsed: 1\n", ": sed: unknown key; known here: env, "),
    ],
)
def test_the_error_of_a_bad_file_is_one_line(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "x.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError) as error:
        load_experiment(path)
    assert str(error.value).startswith(f"{path}{message}")
    assert len(str(error.value).splitlines()) == 1


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none\.yaml: cannot be read \(No such file or directory\); name the exp"):
        load_experiment(tmp_path / "none.yaml")


TEXTS = ["010", "08", "0x10", "0o10", "1:40", "1__0", "1e3", "yes", "y", "TRUE", "2024-01-01", "=", "<<", ".inf", "~"]


@pytest.mark.parametrize("text", TEXTS)
def test_a_text_that_looks_like_another_type_survives_a_file(text: str, tmp_path: Path) -> None:
    """A run writes its experiment with PyYAML, and a resumed run reads it again."""
    experiment = parse_experiment({"env": "a", "learners": {"b": {}}, "stream": text})
    (tmp_path / "x.yaml").write_text(yaml.safe_dump(experiment.model_dump(mode="json")))
    assert load_experiment(tmp_path / "x.yaml") == experiment
