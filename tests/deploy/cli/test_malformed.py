"""Hundreds of malformed files and options: each is refused before anything starts, in lines that name the field."""

import copy
import math
import re
import subprocess
import sys
import time
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import BaseModel

from deploy.cli.main import run_command
from deploy.cli.overrides import override
from deploy.matrix.estimate import estimate_matrix
from deploy.matrix.expand import load_matrix
from deploy.run.setup import make_envs_and_plan
from shared.config import Experiment, LearnerConfig
from shared.config_file import load_experiment
from shared.errors import ConfigError
from tests.deploy.cases import small
from tests.deploy.matrix.cases import MATRIX

ROOT = Path(__file__).parents[3]
GOOD = small(learners={"deep": {"depth": 8, "width": 8, "resources": {}}})
_DUMPER = getattr(yaml, "CSafeDumper", yaml.SafeDumper)  # ten times as fast; only with libyaml
_SET_BY_THE_MATRIX = ("env", "learners")
BOMB = "a: &a [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{this}: &{this} [{', '.join([f'*{last}'] * 10)}]\n" for last, this in zip("abcdefgh", "bcdefghi", strict=True)
)
MERGES = "a: &a {k0: 1, k1: 1, k2: 1, k3: 1}\n" + "".join(
    f"{this}: &{this} {{<<: [{', '.join([f'*{last}'] * 10)}]}}\n"
    for last, this in zip("abcdefg", "bcdefgh", strict=True)
)

# --- malformed files ---

TEXTS: dict[str, str | bytes] = {
    "empty": "",
    "blank": " \n\n",
    "comments": "# nothing\n",
    "null": "null\n",
    "number": "7\n",
    "text": "point_u_maze\n",
    "list": "- env: point_u_maze\n",
    "two documents": "env: point_u_maze\n---\nenv: ant\n",
    "binary": bytes(range(256)),
    "latin-1": "env: point_u_maze # für\n".encode("latin-1"),
    "utf-16": "env: point_u_maze\n".encode("utf-16"),
    "zero byte": "env: point_u_maze\x00\n",
    "escape sequence": "env: \x1b[31mred\n",
    "tab": "env: a\n\tseed: 1\n",
    "open map": "env: a\ncollector: {depth: 8\n",
    "open list": "env: a\nlearners: [\n",
    "open quote": "env: 'a\n",
    "two colons in a line": "env: a: b\n",
    "no colon": "env point_u_maze\nseed: 1\n",
    "wrong indentation": "env: a\n  seed: 1\n",
    "json with a comment": '{"env": "a", // the maze\n "seed": 1}',
    "python object": "env: !!python/object/apply:os.system [exit]\n",
    "python name": "env: !!python/name:os.system\n",
    "python module": "env: !!python/module:os\n",
    "python tuple": "seed: !!python/tuple [1, 2]\n",
    "python object by another name": "%TAG ! tag:yaml.org,2002:python/\n---\nenv: !object/apply:os.system [exit]\n",
    "unknown tag": "env: !maze u\n",
    "binary tag": "env: !!binary cG9pbnRfdV9tYXpl\n",
    "set": "env: point_u_maze\nlearners: !!set {deep}\n",
    "ordered map": "env: point_u_maze\ncollector: !!omap [depth: 4]\n",
    "tag of another type: int": "env: a\nseed: !!int one\n",
    "tag of another type: bool": "env: a\nrecord: !!bool maybe\n",
    "tag of another type: float": "env: a\nseed: !!float x\n",
    "tag of another type: map": "env: a\ncollector: !!map [1]\n",
    "impossible date": "env: a\nseed: 2024-13-45\n",
    "character beyond Unicode": 'env: "\\UFFFFFFFF"\n',
    "huge number": f"env: a\nseed: {'9' * 5000}\n",
    "huge hexadecimal number": f"env: a\nseed: 0x{'f' * 5000}\n",
    "octal number": "env: a\nseed: 010\n",
    "octal number with a tag": "env: a\nseed: !!int '010'\n",
    "leading zeros": "env: a\nseed: 08\n",
    "leading zeros in quotes": "env: a\nseed: '010'\n",
    "leading zeros of a fraction": "env: a\nalgorithm: {discount: 00.5}\n",
    "octal number of YAML 1.2": "env: a\nseed: 0o10\n",
    "minutes and seconds": "env: a\nseed: 1:40\n",
    "minutes and fractions": "env: a\nalgorithm: {discount: 0:0.5}\n",
    "hexadecimal number": "env: a\ncollector: {depth: 0x10}\n",
    "binary number": "env: a\nseed: 0b11\n",
    "negative octal number": "env: a\nalgorithm: {target_entropy_per_action: -010}\n",
    "two underscores": "env: a\nseed: 1__0\n",
    "two underscores in quotes": "env: a\nseed: '1__0'\n",
    "underscore at the end": "env: a\nseed: 10_\n",
    "underscore before the point": "env: a\nalgorithm: {discount: 0_.5}\n",
    "yes": "env: a\nrecord: yes\n",
    "off": "env: a\nenv_options: {fixed_goals: off}\n",
    "date": "env: a\nseed: 2024-01-01\n",
    "octal number as a key": "env: a\nlearners: {010: {}}\n",
    "date as a key": "env: a\nlearners: {2024-01-01: {}}\n",
    "octal number in a list": "envs: [a]\ncollector_depths: [4]\nseeds: [0, 010]\n",
    "beyond 64 bits": f"env: a\nseed: {2**64}\n",
    "recursion": "env: a\ncollector: &x {depth: *x}\n",
    "recursive list": "env: &x [*x]\n",
    "unknown alias": "env: *x\n",
    "merged text": "env: a\ncollector:\n  <<: text\n",
    "a map as a key": "env: a\n? {a: b}\n: c\n",
    "a list as a key": "env: a\n? [a]\n: c\n",
    "key twice": "env: point_u_maze\nseed: 1\nseed: 2\n",
    "key twice in a section": "env: point_u_maze\ncollector:\n  depth: 4\n  width: 8\n  depth: 8\n",
    "key twice in one line": "env: point_u_maze\ncollector: {depth: 4, depth: 4}\n",
    "key twice, once in quotes": "env: point_u_maze\n'env': ant\n",
    "learner twice": "env: point_u_maze\nlearners: {deep: {depth: 8}, deep: {depth: 16}}\n",
    "deep lists": "env: " + "[" * 100_000,
    "deep maps": "env: " + "{a: " * 50_000,
    "deep dashes": "- " * 100_000,
    "deep questions": "? " * 100_000,
    "deep and closed": f"env: {'[' * 500}{']' * 500}\n",
    "deep by indentation": "\n".join(" " * level + "a:" for level in range(300)),
    "bomb": BOMB + "env: *i\n",
    "bomb of merges": MERGES + "env: a\n",
    "too many values": "env: a\nlearners: [" + "1, " * 20_000 + "]\n",
    "too large": "env: a\n" + "# nothing\n" * 40_000,
    "long key": f"env: point_u_maze\n{'k' * 100_000}: 1\n",
    "long value": f"env: {'v' * 100_000}\n",
    "number as a key": "env: point_u_maze\n1: 2\n",
    "null as a key": "env: point_u_maze\n~: 2\n",
    "number as a key in a section": "env: point_u_maze\ncollector: {1: 2}\n",
    "boolean as a learner": "env: point_u_maze\nlearners: {yes: {}}\n",
    "line break as a key": 'env: point_u_maze\n"a\\nb": 1\n',
    "surrogate": 'env: "\\ud800"\n',
    "surrogate as a key": 'env: point_u_maze\n"\\ud800": 1\n',
    "no env": "seed: 1\n",
}
LINES = {  # part of the error line, for some of the files
    "empty": "holds no experiment; it needs at least the key env",
    "zero byte": "not valid YAML (character #x0000 cannot be part of a text)",
    "binary": "cannot be read (not UTF-8)",
    "open map": ", line 3: not valid YAML (",
    "python object": ", line 1: not valid YAML (could not determine a constructor for the tag",
    "key twice": ", line 3: not valid YAML (the key 'seed' is there twice)",
    "key twice in a section": ", line 5: not valid YAML (the key 'depth' is there twice)",
    "impossible date": ", line 2: seed: '2024-13-45' would be a date; put it in quotes",
    "octal number": ", line 2: seed: '010' is not a decimal number; write it as in 1000, 1_000 or 1e3, without leading",
    "leading zeros": ": seed: input should be a valid integer, written in decimal digits, got '08'",
    "leading zeros in quotes": ": seed: input should be a valid integer, written in decimal digits, got '010'",
    "minutes and seconds": ", line 2: seed: '1:40' is not a decimal number; ",
    "minutes and fractions": ", line 2: algorithm.discount: '0:0.5' is not a decimal number; ",
    "two underscores": ", line 2: seed: '1__0' is not a decimal number; ",
    "yes": ", line 2: record: 'yes' is neither true nor false; write one of these, or put a text in quotes",
    "off": ", line 2: env_options.fixed_goals: 'off' is neither true nor false; ",
    "octal number as a key": ", line 2: learners: '010' is not a decimal number; ",
    "octal number in a list": ", line 3: seeds.1: '010' is not a decimal number; ",
    "beyond 64 bits": ", line 2: not valid YAML (a whole number beyond 64 bits)",
    "recursion": ", line 2: not valid YAML (an alias of what it is in)",
    "deep lists": ", line 1: not valid YAML (more than 40 levels)",
    "bomb": ", line 1: not valid YAML (more than 10000 values, aliases written out)",
    "too large": "not valid YAML (more than 256 kB)",
    "line break as a key": r": a\nb: unknown key",
    "no env": ": env: is required",
}


def error_message(check: Callable[[Path], object], path: Path) -> str:
    """Returns the message of the ConfigError that `check` must raise within ten seconds."""
    started = time.monotonic()
    with pytest.raises(ConfigError) as error:
        check(path)
    assert time.monotonic() - started < 10
    lines = str(error.value).split("\n")
    for line in lines:
        assert line.isprintable()
        assert "Traceback" not in line
        assert re.match(r"[^:]*/x\.yaml(, line \d+)?: \S|[a-z_]+(\.[\w-]+)*: \S", line), line
        assert len(line) < 1200
    return "\n".join(lines)


def write_file(folder: Path, values: Any) -> Path:
    content = values if isinstance(values, str | bytes) else yaml.dump(values, Dumper=_DUMPER, sort_keys=False)
    (folder / "x.yaml").write_bytes(content.encode() if isinstance(content, str) else content)
    return folder / "x.yaml"


def plan_run(path: Path) -> object:
    """Does what `fathom run` does before it creates a folder."""
    return make_envs_and_plan(load_experiment(path))


def plan_matrix(path: Path) -> object:
    return estimate_matrix(load_matrix(path))


def test_valid_files_are_accepted(tmp_path: Path) -> None:
    assert plan_run(write_file(tmp_path, GOOD))
    assert plan_matrix(write_file(tmp_path, MATRIX))


def test_unusual_valid_values_are_accepted(tmp_path: Path) -> None:
    text = """
env: point_u_maze
budget: {env_steps: 1e8}
collector: &small {width: 8.0, environments: '64', unroll_length: 5.0e+1, actors: +1}
learners:
  a: {<<: &network {depth: 8, width: 8}, seed: 1}
  b: {<<: *network, depth: 16}
algorithm: {actor_learning_rate: 1e-4, discount: .9, target_entropy_per_action: -1_0.5, batch_size: 2.5E2}
replay: {steps_per_environment: 10_000, samples_per_insert: +.5, audit: TRUE}
wandb: {project: "010", entity: "yes"}
"""
    experiment = load_experiment(write_file(tmp_path, text))
    collector = experiment.collector
    assert (collector.width, collector.environments, collector.unroll_length) == (8, 64, 50)
    assert [(each.depth, each.width, each.seed) for each in experiment.learners.values()] == [(8, 8, 1), (16, 8, 0)]
    assert (experiment.budget.env_steps, experiment.algorithm.actor_learning_rate) == (10**8, 1e-4)
    algorithm, replay = experiment.algorithm, experiment.replay
    assert (algorithm.discount, algorithm.target_entropy_per_action, algorithm.batch_size) == (0.9, -10.5, 250)
    assert (replay.steps_per_environment, replay.samples_per_insert, replay.audit) == (10_000, 0.5, True)
    assert (experiment.wandb.project, experiment.wandb.entity) == ("010", "yes")


@pytest.mark.parametrize("name", TEXTS)
def test_a_malformed_file_is_refused(name: str, tmp_path: Path) -> None:
    path = write_file(tmp_path, TEXTS[name])
    assert LINES.get(name, "") in error_message(plan_run, path)
    error_message(plan_matrix, path)


def test_refusals_need_little_memory(tmp_path: Path) -> None:
    for name in ("bomb", "bomb of merges", "deep lists", "huge number", "long value"):
        path = write_file(tmp_path, TEXTS[name])
        tracemalloc.start()
        error_message(plan_run, path)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 50e6


@pytest.mark.parametrize("path", [Path("/dev/zero"), Path("/dev/null"), Path("/"), Path("/nowhere/x.yaml")], ids=str)
def test_a_path_that_is_no_regular_file_is_refused(path: Path) -> None:
    for check in (plan_run, plan_matrix):
        with pytest.raises(ConfigError, match=f"^{path}: (not valid YAML|holds no|cannot be read)"):
            check(path)


# --- every field with values of every wrong kind ---

NUMBERS = {"nan": math.nan, "inf": math.inf, "-inf": -math.inf, "huge": 1e300, "boolean": True, "text": "many"}
TYPES = {"map": {"a": 1}, "list": [1, 2]}
SECTIONS = {"number": 3, "list": [{}], "text": "all", "null": None, "unknown key": {"no_such_key": 1}}


def fields(model: type[BaseModel], within: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Yields the path and the type of every field of an experiment. The learner `deep` stands for all learners."""
    for name, info in model.model_fields.items():
        kind = info.annotation
        if name == "learners":
            yield (*within, name), Experiment
            yield (*within, name, "deep"), LearnerConfig
            yield from fields(LearnerConfig, (*within, name, "deep"))
        else:
            yield (*within, name), kind
            if isinstance(kind, type) and issubclass(kind, BaseModel):
                yield from fields(kind, (*within, name))


def wrong_values() -> Iterator[tuple[str, tuple[str, ...], Any]]:
    for path, kind in fields(Experiment):
        name = ".".join(path)
        is_section = isinstance(kind, type) and issubclass(kind, BaseModel)
        is_number = "int" in str(kind) or "float" in str(kind)
        wrong = SECTIONS if is_section else {**TYPES, **(NUMBERS if is_number else {})}
        for what, value in wrong.items():
            yield f"{name}: {what}", path, value


def with_value(values: dict[str, Any], path: tuple[str, ...], value: Any) -> dict[str, Any]:
    """Returns a copy with `value` at `path`."""
    values = copy.deepcopy(values)
    section = values
    for part in path[:-1]:
        section = section.setdefault(part, {})
    section[path[-1]] = value
    return values


WRONG = list(wrong_values())


def test_the_cases_are_many_and_cover_every_section() -> None:
    assert len(TEXTS) + len(WRONG) > 400
    assert {path[0] for _, path, _ in WRONG} == set(Experiment.model_fields)


@pytest.mark.parametrize("section", Experiment.model_fields)
def test_a_value_of_the_wrong_kind_is_refused(section: str, tmp_path: Path) -> None:
    for what, path, value in WRONG:
        if path[0] != section:
            continue
        message = error_message(plan_run, write_file(tmp_path, with_value(GOOD, path, value)))
        assert ".".join(path) in message, what
        if path[0] not in _SET_BY_THE_MATRIX:
            inner = ("experiment", *path)
            message = error_message(plan_matrix, write_file(tmp_path, with_value(MATRIX, inner, value)))
            assert ".".join(path) in message, what


OUT_OF_RANGE: list[tuple[str, Any]] = [
    *((f"learners.deep.{field}", depth) for field in ("depth", "critic_depth") for depth in (0, -4, 6, 3.5, 10**9)),
    *((field, -1) for field in ("seed", "learners.deep.seed", "collector.width", "algorithm.logsumexp_penalty")),
    *((field, 2**32) for field in ("seed", "collector.environments", "algorithm.batch_size", "evaluation.count")),
    *((field, 10**15) for field in ("budget.env_steps", "replay.prefill_steps", "replay.steps_per_environment")),
    *(("algorithm.discount", value) for value in (0, 1, -0.5, 1.5)),
    *(("replay.samples_per_insert", value) for value in (0, -1, 1e-300, 1e100)),
    *(("replay.port", value) for value in (0, -1, 65536, 80.5)),
    *(("env_options.physics_dt", value) for value in (0, -1, 1e-300, 10)),
    *(("env_options.episode_length", value) for value in (0, 1, 10**7)),
    *(("collector.learner_resources.gpus", value) for value in (-1, 1.5, 1e12)),
    *(("env", value) for value in ("", "ant_u_mase", "../ant", "a" * 10_000, "os:system", "sys:exit", "no.module:Env")),
    *(("env", value) for value in ("importlib:import_module", "point_u_maze\n", "point_u_maze\x00", "json:decoder")),
    *(("evaluation.envs", value) for value in ("", "ant", "../ant", "a:b", ["point_u_maze", "ant"], [[]], {"ant": 1})),
    *(("stream", value) for value in ("", "a\nb", "a\x00b", "x" * 5000)),
    *(("wandb.project", value) for value in ("", "a/b", "a\nb", "x" * 129, 7)),
    *(("wandb.entity", value) for value in ("me", "", "a/b", "\x1b[31m")),
    *(("placement", value) for value in ("spred", 1)),
    *(("collector.learner_resources.labels", value) for value in ({"a b": "c"}, {"a": "b\n"}, {"a": 1}, {"a": "b"})),
    ("collector.learner_resources", {"gpus": "all"}),
    ("algorithm.batch_size", 1),
    ("algorithm.batch_size", 10_000),
    ("algorithm.minibatches_per_update", 10_000),
    ("replay.steps_per_environment", 10),
    ("budget.env_steps", 1),
    ("supervision.restarts_per_hour", -1),
    ("supervision.start_seconds", 0),
]
NAMES = ["active", "", "a b", "../up", "a/b", "a\\b", "a.b", ".", "-", "a\nb", "a\x00", "\x1b[31m", "größe", "x" * 65]


@pytest.mark.parametrize(("field", "value"), OUT_OF_RANGE, ids=lambda value: f"{value!s:.30}".encode().hex()[:40])
def test_a_value_out_of_range_is_refused(field: str, value: Any, tmp_path: Path) -> None:
    message = error_message(plan_run, write_file(tmp_path, with_value(GOOD, tuple(field.split(".")), value)))
    section, _, key = field.rpartition(".")
    assert field in message or f"{section}: {key}" in message or "labels say where" in message


@pytest.mark.parametrize("name", NAMES, ids=ascii)
def test_an_invalid_learner_name_is_refused(name: str, tmp_path: Path) -> None:
    assert "learners." in error_message(plan_run, write_file(tmp_path, with_value(GOOD, ("learners", name), {})))


def test_learners_with_the_same_options_are_refused(tmp_path: Path) -> None:
    path = write_file(tmp_path, {**GOOD, "learners": {"a-b": {}, "a_b": {}}})
    assert "learners.a-b: another name differs in '-' and '_' alone" in error_message(plan_run, path)


# --- keys of a matrix ---

MATRIX_MISTAKES: list[tuple[str, Any]] = [
    *((field, value) for field in ("envs", "collector_depths") for value in (None, {}, [], "ant", 4, [None])),
    *((field, [[4]]) for field in ("envs", "collector_depths", "learner_depths", "seeds")),
    *((field, [4, 4]) for field in ("collector_depths", "learner_depths", "seeds")),
    *(("collector_depths", [value]) for value in (0, 6, -4, True, math.nan, math.inf, "deep", 10**9)),
    *(("seeds", [value]) for value in (-1, 2**32, 1.5, True, math.nan, "first", "010", "0x10", "1:40", "1__0")),
    *(("envs", [value]) for value in ("", "ant_u_mase", "../ant", "x" * 1000, 7)),
    *(("evaluation_envs", value) for value in (["ant"], {"ant": "ant"}, {"point_u_maze": 7}, {1: 2})),
    *(("budgets", value) for value in (7, ["ant"], {"ant": 400}, {"point_u_maze": 0}, {1: 400})),
    *(("experiment", value) for value in (None, [], "none", 1, {"env": "ant"}, {"seed": 1}, {"stream": "x"}, {1: 2})),
    *((f"experiment.{key}", value) for key in ("collector", "evaluation") for value in (None, [], "x", 0, False)),
    *((f"experiment.collector.{key}", 4) for key in ("depth", "actor_depth", "critic_depth")),
    ("experiment.replay.pace", "free"),
    ("experiment.replay", "free"),
    ("seeds", list(range(9000))),
    ("learners", {}),
    ("env", "ant"),
    ("depths", [4]),
]


@pytest.mark.parametrize(("field", "value"), MATRIX_MISTAKES, ids=lambda value: f"{value!s:.30}")
def test_a_mistake_in_a_matrix_is_refused(field: str, value: Any, tmp_path: Path) -> None:
    message = error_message(plan_matrix, write_file(tmp_path, with_value(MATRIX, tuple(field.split(".")), value)))
    assert field.split(".")[-1].removesuffix("s") in message or "collector.depth: " in message


def test_an_experiment_is_refused_as_a_matrix_and_a_matrix_as_an_experiment(tmp_path: Path) -> None:
    message = error_message(plan_matrix, write_file(tmp_path, GOOD))
    assert "learners: unknown key; known here: envs, collector_depths" in message
    assert "envs: unknown key" in error_message(plan_run, write_file(tmp_path, MATRIX))


# --- options ---

OPTIONS = {
    "an open map": ["--learners.deep.width", "{"],
    "a key twice": ["--collector.learner_resources.labels", "{a: b, a: c}"],
    "a tag": ["--seed", "!!python/object/apply:os.system [exit]"],
    "an alias": ["--seed", "*x"],
    "an empty value": ["--seed", ""],
    "a boolean": ["--seed", "true"],
    "not a number": ["--replay.samples-per-insert", ".nan"],
    "infinity": ["--algorithm.actor-learning-rate", ".inf"],
    "a list": ["--learners.deep.depth", "[4, 8]"],
    "a depth that is no multiple of 4": ["--learners.deep.depth", "6"],
    "beyond 64 bits": ["--budget.env-steps", str(2**64)],
    "a control character": ["--seed", "\x01"],
    "an octal number": ["--seed", "010"],
    "leading zeros": ["--seed", "08"],
    "a hexadecimal number": ["--learners.deep.depth", "0x10"],
    "minutes and seconds": ["--seed", "1:40"],
    "two underscores": ["--budget.env-steps", "1__000"],
    "a date": ["--seed", "2024-01-01"],
    "yes": ["--record", "yes"],
    "an octal number in a map": ["--collector.learner_resources.labels", "{a: 010}"],
    "a line break": ["--wandb.project", "a\nb"],
    "no such option": ["--collector.dept", "8"],
    "no such learner": ["--learners.wide.depth", "8"],
    "an empty learner name": ["--learners.", "8"],
    "a section": ["--collector", "8"],
    "a stray word": ["stray"],
    "no such choice": ["--replay.pace", "fast"],
}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_a_malformed_option_is_refused(options: list[str], tmp_path: Path) -> None:
    path = write_file(tmp_path, GOOD)
    with pytest.raises(ConfigError) as error:
        make_envs_and_plan(override(load_experiment(path), options, path))
    assert str(error.value).isprintable()
    names = options[0].removeprefix("--").replace("-", "_").split(".")
    assert any(name and name.removesuffix("s") in str(error.value) for name in names)


def test_a_key_without_an_option_keeps_its_value(tmp_path: Path) -> None:
    """The texts `007` and `/a #1` would change if they were read as YAML again."""
    odd = {"learners": {"very-deep": {}, "class": {}, "2": {}}, "wandb": {"project": "007"}, "stream": "/a #1"}
    path = write_file(tmp_path, {**GOOD, **odd})
    experiment = load_experiment(path)
    given = override(experiment, ["--learners.very-deep.width", "9", "--learners.class.width", "7"], path)
    assert (given.wandb, given.stream) == (experiment.wandb, experiment.stream)
    assert [learner.width for learner in given.learners.values()] == [9, 7, 256]


COMMANDS: dict[str, tuple[str, list[str], str]] = {
    "bomb": (BOMB + "env: *i\n", [], "not valid YAML (more than 10000 values, aliases written out)"),
    "tag": ("env: !!python/object/apply:os.system [exit]\n", [], "could not determine a constructor for the tag"),
    "option": ("env: point_u_maze\n", ["--seed", "{"], "--seed: '{' is no value (expected the node content"),
    "octal option": ("env: point_u_maze\n", ["--seed", "010"], "--seed: '010' is not a decimal number; write it as in"),
    "short option": (
        "env: point_u_maze\n",
        ["--total-env-steps", "0x10"],
        "--budget.env_steps: '0x10' is not a decimal",
    ),
    "depth": (
        "env: point_u_maze\ncollector: {depth: 6}\n",
        [],
        "collector.depth: depth 6 is not a positive multiple of 4",
    ),
}


@pytest.mark.parametrize(("text", "options", "line"), COMMANDS.values(), ids=COMMANDS)
def test_the_command_prints_one_error_line(
    text: str,
    options: list[str],
    line: str,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run_command(["run", str(write_file(tmp_path, text)), *options]) == 2
    _check_one_line(line, *capfd.readouterr(), tmp_path)


@pytest.mark.processes
def test_the_process_prints_one_error_line(tmp_path: Path) -> None:
    text, options, line = COMMANDS["tag"]
    command = [sys.executable, "-m", "deploy.cli", "run", str(write_file(tmp_path, text)), *options]
    ran = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert ran.returncode == 2
    _check_one_line(line, ran.stdout, ran.stderr, tmp_path)


def _check_one_line(line: str, out: str, err: str, folder: Path) -> None:
    assert out == ""
    assert line in err
    assert len(err.strip().splitlines()) == 1
    assert [each.name for each in folder.iterdir()] == ["x.yaml"]
