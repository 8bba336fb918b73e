from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from learner.objectives.sac import Sac, Successions, Twins, temporal_difference_loss
from learner.state import init_state
from learner.update import make_gradient_step
from shared import checkpoint
from shared.algorithm_config import AlgorithmConfig
from shared.envs.base import EnvSpec
from shared.network_config import NetworkConfig
from shared.types import CONTINUES, TERMINATED, Rows
from tests.learner.objectives.cases import (
    ROWS,
    SPEC,
    Case,
    assert_gradient_is_that_of_its_own_loss,
    random_rows,
    small_objective,
)
from tests.trees import assert_equal

pytestmark = pytest.mark.slow
DISCOUNT = 0.9
WINDOWS, LENGTH = 40, 24
make = partial(small_objective, "sac")


# --- labels ---


def brute_force(rows: Rows, goal: np.ndarray, window: int, i: int, chunk: int) -> dict[str, Any] | None:
    """Returns what followed H actions from row `i` of `window`, or None if a part of it is unknown."""
    reward, length = 0.0, rows.episode.shape[1]
    for step in range(chunk):
        j = i + step
        if j >= length or rows.episode[window, j] != rows.episode[window, i]:
            return None  # the actions of the chunk are unknown
        follows = j + 1 < length and rows.episode[window, j + 1] == rows.episode[window, i]
        if not follows and (rows.end[window, j] != TERMINATED or step < chunk - 1):
            return None
        point = rows.state[window, j + 1][[2, 0]] if follows else rows.final[window, j]
        reward += DISCOUNT**step * (np.linalg.norm(point - goal) < SPEC.goal_radius)
    next_state = rows.state[window, i + chunk] if follows else None
    action = rows.action[window, i : i + chunk].ravel()
    return {"reward": reward, "next_state": next_state, "action": action}


@pytest.mark.parametrize("final_goals", [False, True])
@pytest.mark.parametrize("chunk", [1, 3])
def test_labels_equal_a_loop_over_random_episodes(chunk: int, final_goals: bool) -> None:
    rows = random_rows(chunk, WINDOWS, LENGTH)
    label = jax.jit(make(chunk=chunk, discount=DISCOUNT, final_goals=final_goals).label)
    made = jax.tree.map(np.asarray, label(rows, jax.random.key(0)))
    assert made.reward.shape == (WINDOWS, LENGTH - 1)  # all rows but a window's last
    rewards, kinds = [], {"next": 0, "terminated": 0, "unknown": 0}
    for window, i in np.ndindex(made.reward.shape):
        expected = brute_force(rows, made.goal[window, i], window, i, chunk)
        assert made.valid[window, i] == (expected is not None)
        np.testing.assert_array_equal(made.state[window, i], rows.state[window, i])
        if expected is None:
            kinds["unknown"] += 1
            continue
        np.testing.assert_array_equal(made.action[window, i], expected["action"])
        assert made.reward[window, i] == pytest.approx(expected["reward"], abs=1e-6)
        rewards.append(expected["reward"])
        if expected["next_state"] is None:
            kinds["terminated"] += 1
            assert made.continuation[window, i] == 0
        else:
            kinds["next"] += 1
            assert made.continuation[window, i] == pytest.approx(DISCOUNT**chunk)
            np.testing.assert_array_equal(made.next_state[window, i], expected["next_state"])
    assert min(kinds.values()) > 20
    assert len(set(np.round(rewards, 5))) == 2**chunk  # with 3 actions, each step may be rewarded or not


def test_goals_are_later_points_of_the_episode() -> None:
    rows = random_rows(5, WINDOWS, LENGTH)
    made = jax.tree.map(np.asarray, jax.jit(make(final_goals=True).label)(rows, jax.random.key(0)))
    num_final = 0
    for window, i in np.ndindex(made.reward.shape):
        mates = np.flatnonzero(rows.episode[window] == rows.episode[window, i])
        later = [rows.state[window, j][[2, 0]] for j in mates if j > i]
        final = [rows.final[window, mates[-1]]] if rows.end[window, mates[-1]] != CONTINUES else []
        num_final += any((point == made.goal[window, i]).all() for point in final)
        candidates = later + final or [rows.state[window, i][[2, 0]]]  # without a later point, the row's own
        assert any((point == made.goal[window, i]).all() for point in candidates)
    assert num_final > 20


@pytest.mark.parametrize("radius", [1e-3, 10.0])
def test_the_goal_radius_decides_the_reward(radius: float) -> None:
    label = jax.jit(make(replace(SPEC, goal_radius=radius), discount=0.99).label)
    made = label(random_rows(0, WINDOWS, LENGTH), jax.random.key(0))
    share = np.mean(np.asarray(made.reward)[np.asarray(made.valid)])
    assert share == 1 if radius > 1 else 0.1 < share < 0.7  # with a tiny radius, only where the goal is the next point


# --- loss ---


@pytest.fixture(scope="module")
def case() -> Case:
    """A minibatch, and parameters that differ from their targets."""
    objective, rng = make(), np.random.default_rng(0)
    action = rng.uniform(-1, 1, (ROWS, 2))
    state, next_state = rng.normal(size=(2, ROWS, 3))
    continuation = np.array([0.9, 0.9, 0.0, 0.9, 0.9, 0.9])
    valid = np.array([True, True, True, False, True, False])
    made = Successions(state, action, rng.normal(size=(ROWS, 2)), rng.random(ROWS), next_state, continuation, valid)
    return Case(objective, made, targets=init_state(objective, jax.random.key(1)).targets)


def squashed(case: Case, state: np.ndarray, key: jax.Array) -> tuple[np.ndarray, np.ndarray]:
    """Returns the actor's actions `[B, A]` and their log probabilities `[B]`, computed by numpy."""
    outputs = case.objective.actor.apply(case.trained.actor, state, case.minibatch.goal)
    mean, log_std = (np.asarray(x, np.float64) for x in outputs)
    noise = np.asarray(jax.random.normal(key, mean.shape), np.float64)
    action = np.tanh(mean + np.exp(log_std) * noise)
    density = -0.5 * noise**2 - 0.5 * np.log(2 * np.pi) - log_std - np.log(1 - action**2 + 1e-6)
    return action.astype(np.float32), density.sum(axis=1)


def values(case: Case, twins: Twins, state: np.ndarray, action: np.ndarray) -> np.ndarray:
    """Returns the values `[2, B]` of both twins."""
    goal = case.minibatch.goal
    return np.stack([case.objective.critic.apply(twin, state, action, goal)[:, 0] for twin in twins]).astype(float)


def test_the_loss_equals_numpy(case: Case) -> None:
    made, alpha = case.minibatch, np.exp(-0.7)
    own_key, next_key = jax.random.split(case.key)
    own, log_prob = squashed(case, made.state, own_key)
    following, next_log_prob = squashed(case, made.next_state, next_key)
    next_value = values(case, case.targets, made.next_state, following).min(axis=0)
    target = made.reward + made.continuation * (next_value - alpha * next_log_prob)
    value = values(case, case.trained.critic, made.state, made.action)
    errors = (value - target) ** 2
    critic_loss = sum(0.5 * errors[:, row].mean() for row in np.flatnonzero(made.valid)) / 4
    own_value = values(case, case.trained.critic, made.state, own).min(axis=0)
    actor_loss = np.mean(alpha * log_prob - own_value)
    alpha_loss = alpha * np.mean(-log_prob - (-0.5 * 2))
    got = case.loss()
    expected = {
        "critic/loss": critic_loss,
        "critic/value": value[:, made.valid].mean(),
        "critic/target": target[made.valid].mean(),
        "critic/reward": made.reward[made.valid].mean(),
        "critic/valid": 4 / 6,
        "actor/loss": actor_loss,
        "actor/energy": own_value.mean(),
        "actor/entropy": -log_prob.mean(),
        "alpha/loss": alpha_loss,
        "alpha/log_alpha": -0.7,
        "total": critic_loss + actor_loss + alpha_loss,
    }
    assert got == pytest.approx(expected, rel=1e-4, abs=1e-5)


def test_every_input_moves_the_loss_that_it_belongs_to(case: Case) -> None:
    base, made = case.loss(), case.minibatch
    bumped = Twins(*(jax.tree.map(lambda x: x + 0.1, twin) for twin in case.targets))
    for name, changed in (
        ("reward", case.loss(reward=made.reward + 1)),
        ("continuation", case.loss(continuation=0 * made.continuation)),
        ("next_state", case.loss(next_state=made.next_state + 1)),
        ("action", case.loss(action=-made.action)),
        ("valid", case.loss(valid=~made.valid)),
        ("targets", case.loss(targets=bumped)),
    ):
        assert changed["critic/loss"] != pytest.approx(base["critic/loss"], rel=1e-3), name
        assert changed["actor/loss"] == base["actor/loss"], name
    assert case.loss(valid=made.valid[:1].repeat(ROWS))["critic/valid"] == 1
    alpha = case.trained._replace(log_alpha=jnp.float32(0.5))
    assert case.loss(alpha)["critic/target"] != pytest.approx(base["critic/target"], rel=1e-3)


def test_rows_that_are_not_valid_do_not_reach_the_critics_loss(case: Case) -> None:
    base, made = case.loss(), case.minibatch
    bad = ~made.valid
    for name in ("reward", "continuation"):
        changed = case.loss(**{name: np.where(bad, 1e3, getattr(made, name)).astype(np.float32)})
        assert changed == base, name
    with_nan = case.loss(next_state=np.where(bad[:, None], np.nan, made.next_state).astype(np.float32))
    assert with_nan["critic/loss"] == base["critic/loss"]


@pytest.mark.parametrize("part", ["actor", "critic", "alpha"])
def test_each_gradient_is_that_of_its_own_loss(case: Case, part: str) -> None:
    assert_gradient_is_that_of_its_own_loss(case, part)


def test_the_critics_gradient_equals_finite_differences_in_double_precision() -> None:
    rng = np.random.default_rng(2)
    value, target, valid = rng.normal(size=(5, 2)), rng.normal(size=5), np.array([True, False, True, True, False])

    def loss(value: Any, target: Any) -> jax.Array:
        return temporal_difference_loss(value, target, valid)[0]

    with jax.enable_x64(True):
        check_grads(partial(loss, target=target), (value,), order=1, modes=["rev"])
        d_value, d_target = jax.grad(loss, argnums=(0, 1))(value, target)
    assert not d_target.any()  # the target is fixed
    assert not d_value[~valid].any()


def test_policies_of_action_chunks_have_the_entropy_of_all_actions() -> None:
    objective = make(chunk=3, target_entropy_per_action=-0.25)
    assert objective.target_entropy == -0.25 * 6
    mean, _ = jax.eval_shape(objective.actor.apply, objective.shapes()[0], np.zeros((5, 3)), np.zeros((5, 2)))
    assert mean.shape == (5, 6)


# --- targets and scores ---


@pytest.mark.parametrize("rate", [0.005, 0.25])
def test_targets_move_by_their_rate(case: Case, rate: float) -> None:
    objective, critic = make(sac={"target_rate": rate}), case.trained.critic
    expected = jax.tree.map(lambda old, new: (1 - rate) * old + rate * new, case.targets, critic)
    moved = objective.next_targets(case.targets, critic)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-7), moved, expected)


def test_every_gradient_step_that_is_finite_moves_the_targets(case: Case) -> None:
    start = init_state(case.objective, jax.random.key(0))
    jax.tree.map(np.testing.assert_array_equal, start.targets, start.critic)
    step = jax.jit(make_gradient_step(case.objective))
    state, metrics = step(start, case.minibatch, case.key)
    assert np.isfinite(metrics["guard/watched"]).all()
    expected = case.objective.next_targets(start.targets, state.critic)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-6, atol=1e-8), state.targets, expected)
    assert not np.array_equal(*(each.targets.first["params"]["head"]["bias"] for each in (start, state)))
    skipped, _ = step(state, case.minibatch._replace(state=np.full((ROWS, 3), np.nan, np.float32)), case.key)
    jax.tree.map(np.testing.assert_array_equal, skipped.targets, state.targets)


def test_a_state_with_targets_is_saved_to_the_bit(case: Case, tmp_path: Path) -> None:
    state = jax.device_get(init_state(case.objective, jax.random.key(0))._replace(targets=case.targets))
    checkpoint.save(tmp_path / "state", state)
    loaded = checkpoint.load(tmp_path / "state", state)
    assert_equal(loaded, state)
    assert isinstance(loaded.targets, Twins)


def test_the_score_is_the_smaller_value_of_both_twins(case: Case) -> None:
    made, critic = case.minibatch, case.trained.critic
    first, second = values(case, critic, made.state, made.action)
    shift = np.float32(np.median(first - second))  # now each twin is the smaller one in half of the rows
    head = {**critic.second["params"]["head"], "bias": critic.second["params"]["head"]["bias"] + shift}
    shifted = critic._replace(second={"params": {**critic.second["params"], "head": head}})
    score = case.objective.score(shifted, made.state, made.action, made.goal)
    np.testing.assert_allclose(score, np.minimum(first, second + shift), rtol=1e-4, atol=1e-6)


def test_sizes_are_reported() -> None:
    objective = make()
    assert objective.critic_layers == 4
    deeper = Sac(NetworkConfig(depth=4, critic_depth=12, width=8), objective.algorithm, SPEC)
    assert deeper.critic_layers == 12
    assert objective.NEEDS_ENDS
    plain = 2.0 * 10 * 8 * (5 + 4 * 8 + 2 * 2)  # of one forward pass of the actor on 10 rows: stem, block, both heads
    twins = 2 * 2.0 * 10 * 8 * (7 + 4 * 8 + 1)
    assert objective.step_flops(10) == 4 * plain + 6 * twins


# --- learning ---


def test_it_learns_to_walk_to_goals() -> None:
    """Points walk at random on a line; the greedy policy after training reaches goals on both sides.

    A wrong sign, a reward that does not depend on the goal, and a value that does not look ahead fail.
    """
    spec = EnvSpec(
        state_size=1, goal_size=1, action_size=1, goal_indices=(0,), episode_length=10, goal_radius=0.3, num_cells=1
    )
    objective = Sac(
        NetworkConfig(depth=4, width=16),
        AlgorithmConfig(
            objective="sac",
            actor_learning_rate=3e-3,
            critic_learning_rate=3e-3,
            alpha_learning_rate=3e-3,
            sac={"target_rate": 0.05},
            target_entropy_per_action=-1.0,
        ),
        spec,
    )
    rng = np.random.default_rng(0)
    action = rng.uniform(-1, 1, (64, 16, 1)).astype(np.float32)
    walk = np.cumsum(0.5 * action, axis=1) - 0.5 * action
    position = (rng.uniform(-2, 2, (64, 1, 1)) + walk).astype(np.float32)
    zeros = np.zeros((64, 16), np.int32)
    rows = jax.tree.map(jnp.asarray, Rows(position, action, zeros, zeros, zeros, zeros, 0 * position))
    gradient_step = make_gradient_step(objective)

    @jax.jit
    def train(key: jax.Array) -> tuple[Any, Any]:
        def step(state: Any, key: jax.Array) -> tuple[Any, Any]:
            label_key, choice_key, step_key = jax.random.split(key, 3)
            labelled = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), objective.label(rows, label_key))
            chosen = jax.random.randint(choice_key, (128,), 0, len(labelled.state))
            state, metrics = gradient_step(state, jax.tree.map(lambda x: x[chosen], labelled), step_key)
            return state, {"critic/value": metrics["critic/value"], "actor/entropy": metrics["actor/entropy"]}

        return jax.lax.scan(step, init_state(objective, jax.random.key(0)), jax.random.split(key, 300))

    state, metrics = train(jax.random.key(1))
    place, goal = (np.random.default_rng(seed).uniform(-2, 2, (200, 1)).astype(np.float32) for seed in (1, 2))
    act = jax.jit(lambda place: jnp.tanh(objective.actor.apply(state.actor, place, goal)[0]))
    for _ in range(10):
        place = place + 0.5 * np.asarray(act(place))
    assert np.mean(np.abs(place - goal) < 0.3) > 0.9
    assert 1 < np.mean(metrics["critic/value"][-50:]) < 11  # at most 1 / (1 - 0.9), and some entropy
