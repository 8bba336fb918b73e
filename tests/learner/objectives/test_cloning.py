from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads
from scipy.stats import norm

from learner.learner import Learner
from learner.objectives.cloning import cloning_loss, data_log_prob
from learner.relabel import Transitions
from shared.config import ACTIVE
from shared.metrics_catalogue import unknown_metrics
from shared.plan import make_plan
from shared.types import Rows
from tests.learner.objectives.cases import ROWS, Case, assert_gradient_is_that_of_its_own_loss, small_objective

pytestmark = pytest.mark.slow
make = partial(small_objective, "cloning")


@pytest.fixture(scope="module")
def case() -> Case:
    """A minibatch of action chunks, two of which leave their episode."""
    rng = np.random.default_rng(0)
    floats = (rng.normal(size=(ROWS, 3)), np.tanh(rng.normal(size=(ROWS, 4))), rng.normal(size=(ROWS, 2)))
    return Case(make(chunk=2), Transitions(*floats, valid=np.array([True, True, False, True, False, True])))


def test_the_loss_equals_numpy(case: Case) -> None:
    state, action, goal, valid = case.minibatch
    outputs = case.objective.actor.apply(case.trained.actor, state, goal)
    mean, log_std = (np.asarray(x, np.float64) for x in outputs)
    noise = np.asarray(jax.random.normal(case.key, mean.shape), np.float64)
    own = np.tanh(mean + np.exp(log_std) * noise)
    log_prob = (norm.logpdf(noise) - log_std - np.log(1 - own**2 + 1e-6)).sum(axis=1)
    log_prob_of_data = norm.logpdf(np.arctanh(action), mean, np.exp(log_std)) - np.log(1 - action**2 + 1e-6)
    log_prob_of_data = log_prob_of_data.sum(axis=1)[valid]
    alpha = np.exp(-0.7)
    actor_loss = np.mean(alpha * log_prob[valid] - log_prob_of_data)
    alpha_loss = alpha * np.mean(-log_prob + 0.5 * 4)
    expected = {
        "actor/loss": actor_loss,
        "actor/entropy": -log_prob.mean(),
        "actor/data_log_prob": log_prob_of_data.mean(),
        "alpha/loss": alpha_loss,
        "alpha/log_alpha": -0.7,
        "total": actor_loss + alpha_loss,
    }
    assert case.loss() == pytest.approx(expected, rel=1e-4)


def test_every_input_moves_the_loss(case: Case) -> None:
    base, made = case.loss(), case.minibatch
    for name in ("state", "goal", "action"):
        changed = case.loss(**{name: getattr(made, name) * np.float32(0.5)})
        assert changed["actor/loss"] != pytest.approx(base["actor/loss"], rel=1e-3), name
    hotter = case.loss(case.trained._replace(log_alpha=jnp.float32(1.0)))
    assert hotter["actor/loss"] > base["actor/loss"] + 1  # log probabilities are positive here
    assert hotter["alpha/log_alpha"] == 1


def test_chunks_that_leave_their_episode_have_no_part_in_the_loss(case: Case) -> None:
    base, made = case.loss(), case.minibatch
    other = np.where(made.valid[:, None], made.action, -made.action)
    assert case.loss(action=other) == base
    assert case.loss(action=-made.action)["actor/loss"] != base["actor/loss"]


@pytest.mark.parametrize("part", ["actor", "alpha"])
def test_each_gradient_is_that_of_its_own_loss(case: Case, part: str) -> None:
    assert_gradient_is_that_of_its_own_loss(case, part)


def test_gradients_equal_finite_differences_in_double_precision() -> None:
    rng = np.random.default_rng(2)
    mean, log_std, action = *rng.normal(size=(2, 3, 2)), np.tanh(rng.normal(size=(3, 2)))
    valid = np.array([True, False, True])

    def loss(mean: Any, log_std: Any) -> jax.Array:
        return cloning_loss(jnp.sum(log_std, axis=1), data_log_prob(mean, log_std, action), 0.3, valid)[0]

    with jax.enable_x64(True):
        check_grads(loss, (mean, log_std), order=1, modes=["rev"])
        assert not any(d_x[~valid].any() for d_x in jax.grad(loss, argnums=(0, 1))(mean, log_std))


def test_actions_at_their_limits_have_a_finite_likelihood_and_gradient() -> None:
    action = np.array([[1.0, -1.0], [1 - 1e-6, -1 + 1e-6]], np.float32)
    log_prob = data_log_prob(np.zeros((2, 2)), np.zeros((2, 2)), action)
    inside = np.arctanh(np.float64(np.float32(1 - 1e-6)))
    published = 2 * (norm.logpdf(inside) - np.log(1e-6))  # the correction takes the action as it is
    assert log_prob[0] == pytest.approx(published, rel=1e-3)
    assert log_prob[0] - log_prob[1] == pytest.approx(2 * np.log(3), abs=0.2)  # 1 - a^2 is 2e-6 there
    gradient = jax.grad(lambda mean: data_log_prob(mean, np.zeros((2, 2)), action).sum())(np.zeros((2, 2), np.float32))
    np.testing.assert_allclose(gradient, np.sign(action) * inside, rtol=1e-2)


@pytest.mark.parametrize("final_goals", [False, True])
def test_labels_are_hindsight_goals_of_the_objectives_discount(final_goals: bool) -> None:
    rng = np.random.default_rng(0)
    episode = np.repeat([[0, 1]], 12, axis=1).astype(np.int32).repeat(500, axis=0)
    end, index = np.zeros((500, 24), np.int32), np.arange(24, dtype=np.float32)
    end[:, [11, 23]] = 1
    state = np.stack([np.broadcast_to(index, (500, 24))] * 3, axis=-1)
    final = np.zeros((500, 24, 2), np.float32)
    final[:, [11, 23]] = [[12.0], [24.0]]
    rows = Rows(state, rng.uniform(-1, 1, (500, 24, 2)).astype(np.float32), episode, episode, episode, end, final)
    ahead = []
    for discount in (0.5, 0.9):
        label = jax.jit(make(discount=discount, final_goals=final_goals, chunk=3).label)
        made = jax.tree.map(np.asarray, label(rows, jax.random.key(0)))
        assert made.goal.shape == (500, 23, 2)
        assert made.goal[:, :12].max() == (12 if final_goals else 11)
        np.testing.assert_array_equal(made.valid, np.broadcast_to((np.arange(23) % 12) <= 9, (500, 23)))
        np.testing.assert_array_equal(made.action[:, 0], rows.action[:, :3].reshape(500, 6))
        ahead.append(made.goal[:, 0, 0].mean())
    assert ahead[0] == pytest.approx(2, abs=0.2)  # mean of a geometric distribution
    assert 4 < ahead[1] < 6.5  # cut by the episode's end


# --- no critic ---


def test_there_is_no_critic() -> None:
    objective = make()
    assert objective.critic_layers == 0
    assert objective.PARTS == ("actor", "alpha")
    assert objective.watched == ("actor/loss", "alpha/loss", "actor/gradient_norm", "alpha/gradient")
    assert objective.shapes()[1] == ()
    assert objective.step_flops(10) == 3 * 2.0 * 10 * 8 * (5 + 4 * 8 + 2 * 2)
    with pytest.raises(TypeError, match=r"Cloning\.score: nothing ranks actions"):
        objective.score((), np.zeros(3), np.zeros(2), np.zeros(2))


class Training:
    """A learner without a critic, and its states before and after two updates."""

    def __init__(self, line: Any, reports: Path) -> None:
        changes = {"objective": "cloning", "max_gradient_norm": 1.0, "alpha_learning_rate": 0.03}
        experiment = line.experiment(algorithm=line.experiment().algorithm.model_dump() | changes)
        plan = make_plan(experiment, line.spec)
        self.line, self.learner = line, Learner(experiment, plan, line.spec, ACTIVE, reports)
        self.before = jax.device_get(self.learner.state)
        self.rows = [self.learner.update(line.windows(seed)) for seed in range(2)]
        self.after = jax.device_get(self.learner.state)


@pytest.fixture(scope="module")
def training(line: Any, tmp_path_factory: pytest.TempPathFactory) -> Training:
    return Training(line, tmp_path_factory.mktemp("reports"))


def test_an_update_trains_the_actor_alone(training: Training) -> None:
    before, after = training.before, training.after
    assert after.critic == after.targets == ()
    assert int(after.updates) == 2
    assert before.log_alpha != after.log_alpha
    changed = jax.tree.map(lambda x, y: not np.array_equal(x, y), before.actor, after.actor)
    assert all(jax.tree.leaves(changed))
    for row in training.rows:
        assert not any(name.startswith("critic/") for name in row)
        assert unknown_metrics("learner", training.learner.describe(row, 100)) == []


def test_steps_that_are_not_finite_are_skipped_and_reported(training: Training, tmp_path: Path) -> None:
    windows = training.line.windows(0)
    floats = windows.floats.copy()
    floats[:2, 5, 0] = np.nan  # coordinate 0 is not in goals
    row = training.learner.update(windows._replace(floats=floats))
    assert row["guard/skipped"] > 0
    assert all(np.isfinite(value) for value in row.values())
    (report,) = training.learner._guard._reports.iterdir()
    with np.load(report, allow_pickle=False) as held:
        assert sorted(held) == ["about", "action", "goal", "state"]
        assert np.isnan(held["state"]).any()


def test_it_learns_which_action_leads_to_a_goal(training: Training) -> None:
    """Points of the data move straight ahead, so the goal lies in the direction of the action.

    A wrong sign and goals of other episodes fail.
    """
    learner = training.learner
    learner.resume(training.before)
    for seed in range(40):
        learner.update(training.line.windows(100 + seed))
    assert training.line.alignment(learner.kind.objective.actor, learner.state.actor) > 0.9
