import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from learner.learner import Learner
from learner.objectives.base import Objective
from learner.objectives.registry import find_objective, make_objective, make_objectives
from shared.algorithm_config import OWN_CONSTANTS
from shared.config import ACTIVE, Experiment
from shared.errors import ConfigError
from shared.plan import make_plan
from shared.replay.codec import Columns

PAGE = Path(__file__).parents[3] / "docs" / "objectives.md"

OWN = """
import jax.numpy as jnp
from typing import NamedTuple
from learner.objectives.cloning import Cloning
from learner.objectives.survival import Survival
from learner.objectives.base import Objective

class Same(Cloning):
    pass

class Hazards(Survival):
    pass

class Unfinished(Objective):
    def init(self, key): ...

class NoParts(Cloning):
    PARTS = ("actor", "alpha", "world")

class OneNetwork(Cloning):
    def init(self, key):
        return super().init(key)[0]

class OtherActor(Cloning):
    def init(self, key):
        return {"kernel": jnp.zeros(3)}, ()

class Unnamed(Cloning):
    def label(self, rows, key):
        return {"state": rows.state}

class Cut(Cloning):
    def label(self, rows, key):
        return super().label(rows, key)._replace(state=rows.state[:, :3])

class Whole(Cloning):
    def loss(self, trained, targets, minibatch, key):
        loss, metrics = super().loss(trained, targets, minibatch, key)
        return loss * jnp.ones(2), metrics

class Alone(Cloning):
    def loss(self, trained, targets, minibatch, key):
        return super().loss(trained, targets, minibatch, key)[0]

class Unmeasured(Cloning):
    def loss(self, trained, targets, minibatch, key):
        return super().loss(trained, targets, minibatch, key)[0], {}

class Listed(Cloning):
    def loss(self, trained, targets, minibatch, key):
        loss, metrics = super().loss(trained, targets, minibatch, key)
        return loss, metrics | {"actor/all": minibatch.state}

class Lost(Survival):
    def next_targets(self, targets, critic):
        return critic

class Scattered(Survival):
    def score(self, critic, state, action, goal):
        return state

class Called(Cloning):
    def critic_layers(self):
        return 3

class Faulty(Cloning):
    def label(self, rows, key):
        return rows.no_such_column

def function(network, algorithm, spec): ...
"""


def experiment_of(line: Any, algorithm: dict[str, Any], **overrides: Any) -> Experiment:
    keys = line.experiment().algorithm.model_dump(exclude_defaults=True)
    return line.experiment(algorithm=keys | algorithm, **overrides)


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Name of a module of own objectives, which can be imported."""
    name = f"objectives_{re.sub(r'[^a-z0-9]', '_', tmp_path.name.lower())}"
    (tmp_path / f"{name}.py").write_text(OWN)
    monkeypatch.syspath_prepend(str(tmp_path))
    return name


def test_all_objectives_of_the_configuration_are_found(line: Any) -> None:
    for name in OWN_CONSTANTS:
        objective = make_objective(experiment_of(line, {"objective": name}), ACTIVE, line.spec)
        assert type(objective).__name__.lower() == name
        assert objective.algorithm.discount == 0.9  # given, so not the objective's own
        assert (objective.network.depth, objective.spec) == (4, line.spec)


def test_each_learner_has_its_own_objective(line: Any) -> None:
    learners = {"a": {}, "b": {"algorithm": {"objective": "cloning"}}, "c": {"algorithm": {"objective": "sac"}}}
    objectives = make_objectives(experiment_of(line, {}, learners=learners), line.spec)
    assert [type(each).__name__ for each in objectives.values()] == ["Contrastive", "Contrastive", "Cloning", "Sac"]
    assert objectives["c"].algorithm.discount == 0.9
    assert objectives["b"].algorithm.discount == 0.99  # another objective: its own constants


def test_own_objectives_are_found_by_their_dotted_path(line: Any, own: str) -> None:
    experiment = experiment_of(line, {"objective": f"{own}:Same", "options": {"scale": 2}})
    objective = make_objective(experiment, ACTIVE, line.spec)
    assert type(objective).__name__ == "Same"
    assert objective.algorithm.options == {"scale": 2}
    assert objective == make_objective(experiment, ACTIVE, line.spec)
    assert hash(objective) == hash(make_objective(experiment, ACTIVE, line.spec))
    subclass = experiment_of(line, {"objective": f"{own}:Hazards", "survival": {"rank": 3}})
    assert make_objective(subclass, ACTIVE, line.spec).algorithm.survival.rank == 3


def test_the_working_directory_is_searched(line: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "objective_of_this_folder.py").write_text(OWN)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", [*__import__("sys").path])
    assert issubclass(find_objective("objective_of_this_folder:Same", "algorithm.objective"), Objective)


def line_of(call: Callable[[], Any]) -> str:
    with pytest.raises(ConfigError) as caught:
        call()
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("Unfinished", "lacks critic_layers (Sum of the depths of the trunks between the critic's inputs and i"),
        ("NoParts", "PARTS: world is none of actor, critic, alpha; see"),
        ("OneNetwork", "init: must return two values, the parameters of actor and critic; see"),
        ("OtherActor", "init: its first value must be parameters of the network self.actor, which collectors act with"),
        ("Unnamed", "label: must return a NamedTuple of arrays, not dict; see"),
        ("Cut", "label: all arrays must begin with [windows, rows], (2, 8) or (2, 7) here; found: state (2, 3), "),
        ("Whole", "loss: its first value must be a single float, not float32[2]; see"),
        ("Alone", "loss: must return two values, the sum of all losses and the metrics, a dict; see"),
        ("Unmeasured", "loss: metrics lack actor/loss, alpha/loss; PARTS names the parts that have a loss; see"),
        ("Listed", "loss: actor/all must be a single float, not float32[16, 3]; see"),
        ("Lost", "next_targets: must return what init_targets returns, in structure, shapes and types; see"),
        ("Scattered", "score: must return one number for each action, float32[2, 3] here, not float32[2, 3, 3]; see"),
        ("Called", "critic_layers: must be a whole number, not <bound method"),
        ("Faulty", "AttributeError: 'Rows' object has no attribute 'no_such_column' ("),
        ("function", "not a subclass of learner.objectives.base.Objective; see docs/objectives.md"),
        ("Nothing", "cannot be imported (module '"),
    ],
)
def test_mistakes_of_own_objectives_are_one_line(line: Any, own: str, kind: str, message: str) -> None:
    name = f"{own}:{kind}"
    got = line_of(lambda: make_objective(experiment_of(line, {"objective": name}), ACTIVE, line.spec))
    assert got.startswith(f"algorithm.objective: {name}: {message}")
    if kind == "Faulty":
        assert got.endswith(f"{own}.py, line {OWN[: OWN.index('no_such')].count(chr(10)) + 1}); see docs/objectives.md")


def test_a_module_that_fails_is_one_line_with_the_place(line: Any, tmp_path: Path, monkeypatch: Any) -> None:
    (tmp_path / "objective_that_fails.py").write_text("numbers = [1]\nnumbers[2]\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    got = line_of(lambda: find_objective("objective_that_fails:Own", "algorithm.objective"))
    assert got.startswith("algorithm.objective: objective_that_fails:Own: cannot be imported: IndexError: list index")
    assert got.endswith("objective_that_fails.py, line 2)")
    got = line_of(lambda: find_objective("no_such_module:Own", "algorithm.objective"))
    assert got.endswith("(No module named 'no_such_module'); name it as package.module:Class")


@pytest.mark.parametrize(
    ("algorithm", "learners", "message"),
    [
        (
            {"objective": "contrastiv"},
            {},
            "algorithm.objective: unknown objective 'contrastiv'; did you mean 'contrasti",
        ),
        (
            {"objective": "soft:actor critic"},
            {},
            "algorithm.objective: unknown objective 'soft:actor critic'; did you me",
        ),
        ({"chunk": 9}, {}, "algorithm.chunk: 9 actions are more than an episode's 8; use fewer"),
        (
            {},
            {"objective": "sak"},
            "learners.a.algorithm.objective: unknown objective 'sak'; did you mean 'sac'? known: ",
        ),
        ({}, {"chunk": 9}, "learners.a.algorithm.chunk: 9 actions are more than an episode's 8; use fewer"),
    ],
)
def test_bad_keys_are_one_line(line: Any, algorithm: Any, learners: Any, message: str) -> None:
    def make() -> None:
        experiment = experiment_of(line, algorithm, learners={"a": {"algorithm": learners}})
        make_objectives(experiment, line.spec)

    assert line_of(make).startswith(message)


def walks(seed: int) -> Columns:
    """Returns windows of points that walk at random; see `Line` for state, action and goal."""
    rng = np.random.default_rng(seed)
    action = rng.uniform(-1, 1, (32, 12, 2))
    position = rng.normal(size=(32, 1, 2)) + 0.5 * (np.cumsum(action, axis=1) - action)
    floats = np.concatenate([0 * action[..., :1], position, action, 0 * action], axis=-1)
    step = np.broadcast_to(np.arange(12), (32, 12))
    return Columns(floats.astype(np.float32), np.stack([0 * step, step, 0 * step, 0 * step], axis=-1).astype(np.int32))


@pytest.mark.slow
def test_the_objective_of_the_page_trains(line: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fewer steps follow an action towards the goal than one away from it, and the actor learns to take it."""
    (code,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(), flags=re.S)
    (tmp_path / "documented_objective.py").write_text(code)
    monkeypatch.syspath_prepend(str(tmp_path))
    algorithm = {"objective": "documented_objective:Distances", "options": {"scale": 1}, "alpha_learning_rate": 0.03}
    experiment = experiment_of(line, algorithm)
    learner = Learner(experiment, make_plan(experiment, line.spec), line.spec, ACTIVE)
    rows = [learner.update(walks(seed)) for seed in range(60)]
    assert rows[-1]["critic/loss"] < 0.7 * rows[0]["critic/loss"]
    state, goal, towards = line.towards(0.5)
    objective, trained = learner.kind.objective, learner.state.trained
    actions = [np.float32(sign * 0.7 * towards) for sign in (1, -1)]
    ahead, back = (objective.score(trained.critic, state, action, goal) for action in actions)
    assert np.mean(ahead > back) > 0.9
    mean, _ = objective.actor.apply(trained.actor, state, goal)
    assert np.mean(np.sum(mean * towards, axis=1) > 0) > 0.9


def test_the_page_names_every_objective() -> None:
    text = PAGE.read_text()
    for name, constants in OWN_CONSTANTS.items():
        (row,) = (line for line in text.splitlines() if line.startswith(f"| `{name}` |") and line.endswith("e-4 |"))
        *_, last, _ = row.split("|")
        discount, chunk, rate = (float(number) for number in last.split(","))
        assert (discount, chunk, rate) == (constants["discount"], constants["chunk"], constants["actor_learning_rate"])
