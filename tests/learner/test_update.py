from collections.abc import Callable
from functools import cached_property, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from learner.losses import CONTRASTIVE_LOSSES, critic_loss, energy_matrix
from learner.objectives.contrastive import Contrastive
from learner.optimisers import Optimisers
from learner.relabel import Transitions
from learner.state import LearnerState, init_state
from learner.update import (
    GradientStep,
    label_windows,
    make_gradient_step,
    make_gradients,
    make_steps,
    make_update_step,
)
from shared.algorithm_config import AlgorithmConfig
from shared.envs.base import EnvSpec
from shared.network_config import NetworkConfig
from shared.networks import Actor, Encoder, Trunk
from shared.plan import Plan, make_plan
from shared.policy import sample_action
from shared.replay.codec import Columns
from shared.types import Metrics
from tests.trees import assert_equal

STEM = Trunk(depth=0, width=4, layer_norm=False, residual=True, activation="swish")  # compiles fast
ROWS = 14  # rows of every minibatch, so that a gradient step is compiled once
# SGD steps are scaled gradients, so gradients can be compared. The optimisers' states hold rates and step counts.
SGD = Optimisers(*(optax.inject_hyperparams(optax.sgd)(learning_rate=rate) for rate in (0.1, 0.2, 0.3)))


class Small(Contrastive):
    """The contrastive objective with networks of one layer and SGD."""

    @cached_property
    def optimisers(self) -> Optimisers:
        return SGD

    @cached_property
    def actor(self) -> Actor:
        return Actor(STEM, self.action_size)

    @cached_property
    def encoder(self) -> Encoder:
        return Encoder(STEM, 3)


def make_small(spec: EnvSpec, **algorithm: Any) -> Small:
    return Small(NetworkConfig(), AlgorithmConfig.model_validate(algorithm), spec)


def assert_close(one: Any, other: Any) -> None:
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=2e-4, atol=2e-6), one, other)


def differs(one: Any, other: Any) -> bool:
    return any(jax.tree.leaves(jax.tree.map(lambda x, y: not np.array_equal(x, y), one, other)))


@pytest.fixture(scope="module")
def minibatch() -> Transitions:
    rng = np.random.default_rng(0)
    sizes = {"state": (ROWS, 3), "action": (ROWS, 2), "goal": (ROWS, 2)}
    return Transitions(**{name: (0.3 * rng.normal(size=size)).astype(np.float32) for name, size in sizes.items()})


@pytest.fixture(scope="module")
def start(line: Any) -> LearnerState:
    return jax.jit(init_state, static_argnums=0)(make_small(line.spec), jax.random.key(0))


@pytest.fixture(scope="module")
def gradient_step(line: Any) -> GradientStep:
    return jax.jit(make_gradient_step(make_small(line.spec)))


class SmallUpdate(NamedTuple):
    """Update of the objective `Small`, on all rows of windows that have only one possible crop."""

    objective: Small
    plan: Plan
    state: LearnerState
    windows: Columns
    update: Callable[[LearnerState, Columns], tuple[LearnerState, Metrics]]
    traces: list[Columns]


@pytest.fixture(scope="module")
def small(line: Any, start: LearnerState) -> SmallUpdate:
    experiment = line.experiment(
        collector={"depth": 4, "environments": 8, "unroll_length": 1},
        algorithm={"batch_size": ROWS, "windows_per_update": 6, "minibatches_per_update": 3},
    )
    plan = make_plan(experiment, line.spec)
    objective = Small(experiment.collector.network, experiment.algorithm, line.spec)
    update_step = make_update_step(objective, plan)
    traces = []

    @jax.jit
    def update(state: LearnerState, windows: Columns) -> tuple[LearnerState, Metrics]:
        traces.append(windows)
        return update_step(state, windows)

    return SmallUpdate(objective, plan, start, line.windows(3, windows=6, rows=plan.window_rows), update, traces)


def test_an_update_is_pure(small: SmallUpdate) -> None:
    before = jax.device_get(small.state._replace(key=()))
    one, other = small.update(small.state, small.windows), small.update(small.state, small.windows)
    assert_equal(one, other)
    assert_equal(small.state._replace(key=()), before)


def test_an_update_is_counted_changes_the_key_and_is_traced_once(small: SmallUpdate) -> None:
    states = [small.state]
    for _ in range(3):
        states.append(small.update(states[-1], small.windows)[0])
    assert [int(state.updates) for state in states] == [0, 1, 2, 3]
    assert len({tuple(jax.random.key_data(state.key).tolist()) for state in states}) == 4
    assert len(small.traces) == 1
    for name in ("actor", "critic", "log_alpha"):
        assert differs(getattr(states[0], name), getattr(states[1], name))


def test_the_key_and_the_windows_change_the_result(small: SmallUpdate) -> None:
    result = small.update(small.state, small.windows)[0]
    other_key = small.update(small.state._replace(key=jax.random.key(7)), small.windows)[0]
    other_windows = small.update(small.state, small.windows._replace(floats=small.windows.floats + 1))[0]
    assert differs(result.critic, other_key.critic)
    assert differs(result.critic, other_windows.critic)


def test_an_update_uses_distinct_rows_in_a_new_order(small: SmallUpdate) -> None:
    assert small.plan.window_length * 6 == 3 * ROWS + 6  # an update uses all rows
    # If all states of a window are equal, so are all goals, and a row's energy depends on the row alone.
    floats = small.windows.floats.copy()
    floats[:, :, :3] = floats[:, :1, :3]
    floats[:, :, 3:] = np.random.default_rng(0).uniform(-1, 1, floats[:, :, 3:].shape)
    rows = floats[:, :-1, :5].reshape(-1, 5)
    critic = small.state.critic
    phi, psi = encode(critic.state_action, rows), encode(critic.goal, rows[:, 1:3])
    each_once = -np.linalg.norm(phi - psi, axis=1).mean()
    negatives = []
    state = small.state._replace(optimisers=jax.tree.map(np.zeros_like, small.state.optimisers))  # rates of 0
    for _ in range(3):
        state, metrics = small.update(state, small.windows._replace(floats=floats))
        assert metrics["critic/positive"] == pytest.approx(each_once, rel=1e-5)
        negatives.append(float(metrics["critic/negative"]))
    assert len(set(negatives)) == 3  # minibatches combine different rows in every update
    assert not differs(state.critic, critic)
    assert len(small.traces) == 1


def encode(params: Any, rows: np.ndarray) -> np.ndarray:
    """Returns the output of an encoder of `Small` for `rows`, by hand: Dense layer, swish, Dense layer."""
    stem, head = params["params"]["trunk"]["stem"]["Dense_0"], params["params"]["head"]
    x = rows @ np.asarray(stem["kernel"]) + np.asarray(stem["bias"])
    return x / (1 + np.exp(-x)) @ np.asarray(head["kernel"]) + np.asarray(head["bias"])


def test_transitions_are_relabelled_rows_of_cropped_windows(line: Any) -> None:
    experiment = line.experiment()
    plan = make_plan(experiment, line.spec)
    windows = line.windows(0)
    label = partial(label_windows, make_small(line.spec, discount=0.9), plan=plan)
    transitions = jax.jit(label)(windows, key=jax.random.key(0))
    assert transitions.valid is None
    state, action, goal, _ = jax.tree.map(lambda x: np.asarray(x).reshape(32, 7, -1), transitions)
    starts = set()
    for window in range(32):
        rows = windows.floats[window]
        start = int(np.flatnonzero((rows[:, :3] == state[window, 0]).all(axis=1))[0])
        starts.add(start)
        np.testing.assert_array_equal(state[window], rows[start : start + 7, :3])
        np.testing.assert_array_equal(action[window], rows[start : start + 7, 3:5])
        ahead = (rows[None, :, 1:3] == goal[window, :, None]).all(axis=2).argmax(axis=1) - start - np.arange(7)
        assert (ahead >= 1).all()
        assert (ahead + np.arange(7) <= 7).all()
    assert starts == set(range(plan.unroll_length))


@jax.jit
def by_hand(state: LearnerState, minibatch: Transitions, key: jax.Array) -> LearnerState:
    """Returns the state after a gradient step, in which all losses use the parameters before the step."""
    network, encoder = Actor(STEM, 2), Encoder(STEM, 3)

    def encode(critic: Any, action: Any) -> tuple[jax.Array, jax.Array]:
        pair = jnp.concatenate([minibatch.state, action], axis=1)
        return encoder.apply(critic.state_action, pair), encoder.apply(critic.goal, minibatch.goal)

    def actor(params: Any) -> jax.Array:
        action, log_prob = sample_action(network, params, minibatch.state, minibatch.goal, key)
        phi, psi = encode(state.critic, action)
        return jnp.mean(jnp.exp(state.log_alpha) * log_prob + jnp.linalg.norm(phi - psi, axis=1))

    def critic(params: Any) -> jax.Array:
        phi, psi = encode(params, minibatch.action)
        energy = -jnp.linalg.norm(phi[:, None] - psi[None], axis=-1)
        log_partition = jnp.log(jnp.sum(jnp.exp(energy), axis=1))
        return jnp.mean(log_partition - jnp.diagonal(energy)) + 0.1 * jnp.mean(log_partition**2)

    _, log_prob = sample_action(network, state.actor, minibatch.state, minibatch.goal, key)
    d_log_alpha = jnp.exp(state.log_alpha) * jnp.mean(-log_prob + 0.5 * 2)  # target entropy -0.5 for each of 2 actions
    return state._replace(
        actor=jax.tree.map(lambda x, g: x - 0.1 * g, state.actor, jax.grad(actor)(state.actor)),
        critic=jax.tree.map(lambda x, g: x - 0.2 * g, state.critic, jax.grad(critic)(state.critic)),
        log_alpha=state.log_alpha - 0.3 * d_log_alpha,
    )


def test_gradient_steps_by_hand(start: LearnerState, gradient_step: GradientStep, minibatch: Transitions) -> None:
    state = expected = start._replace(log_alpha=np.float32(0.3))
    for seed in range(2):
        key = jax.random.key(seed)
        state, expected = gradient_step(state, minibatch, key)[0], by_hand(expected, minibatch, key)
        for name in ("actor", "critic", "log_alpha"):
            assert_close(getattr(state, name), getattr(expected, name))


OPTIONS: list[dict[str, Any]] = [
    {"energy": "l2", "contrastive_loss": "binary_nce"},
    {"energy": "dot", "contrastive_loss": "backward_infonce", "logsumexp_penalty": 0.0},
    {"energy": "cosine", "contrastive_loss": "symmetric_infonce", "target_entropy_per_action": -3.0},
]


@pytest.fixture(scope="module")
def by_options(line: Any, start: LearnerState, minibatch: Transitions) -> list[tuple[Metrics, Metrics]]:
    """Metrics of a gradient step with each of `OPTIONS`, and the expected metrics; compiled at once."""

    def one(options: dict[str, Any], state: LearnerState, key: jax.Array) -> tuple[Metrics, Metrics]:
        objective = make_small(line.spec, **options)
        algorithm, encoder = objective.algorithm, objective.encoder
        _, metrics = make_gradients(objective)(state, minibatch, key)

        def energies(action: Any) -> jax.Array:
            rows = jnp.concatenate([minibatch.state, action], axis=1)
            phi = encoder.apply(state.critic.state_action, rows)
            return energy_matrix(algorithm.energy, phi, encoder.apply(state.critic.goal, minibatch.goal))

        contrastive = CONTRASTIVE_LOSSES[algorithm.contrastive_loss]
        expected, _ = critic_loss(energies(minibatch.action), contrastive, algorithm.logsumexp_penalty)
        action, log_prob = sample_action(objective.actor, state.actor, minibatch.state, minibatch.goal, key)
        target = 2 * algorithm.target_entropy_per_action
        return metrics, {
            "critic/loss": expected,
            "actor/energy": jnp.diagonal(energies(action)).mean(),
            "alpha/loss": jnp.mean(-log_prob - target),
        }

    made = jax.jit(lambda state, key: [one(options, state, key) for options in OPTIONS])(start, jax.random.key(1))
    return jax.tree.map(float, made)


@pytest.mark.parametrize("case", range(len(OPTIONS)), ids=lambda case: OPTIONS[case]["energy"])
def test_options_reach_the_losses(by_options: list[tuple[Metrics, Metrics]], case: int) -> None:
    metrics, expected = by_options[case]
    assert {name: metrics[name] for name in expected} == pytest.approx(expected, rel=1e-4)
    for _, other in by_options[:case]:  # every option changes the metrics
        for name in ("critic/loss", "actor/energy"):
            assert expected[name] != pytest.approx(other[name], rel=1e-2)


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e30])
def test_a_gradient_step_that_is_not_finite_changes_nothing(
    start: LearnerState, gradient_step: GradientStep, minibatch: Transitions, value: float
) -> None:
    state = gradient_step(start, minibatch, jax.random.key(1))[0]
    for name in ("state", "action", "goal"):
        column = getattr(minibatch, name).copy()
        column[2, 1] = value
        after, metrics = gradient_step(state, minibatch._replace(**{name: column}), jax.random.key(2))
        assert not np.isfinite(metrics["guard/watched"]).all()
        assert_equal(after, state)
    after, metrics = gradient_step(state, minibatch, jax.random.key(2))
    assert np.isfinite(metrics["guard/watched"]).all()
    assert differs(after.optimisers, state.optimisers)


def test_the_watched_values_are_the_losses_and_the_norms_of_all_gradients(
    small: SmallUpdate, start: LearnerState, gradient_step: GradientStep, minibatch: Transitions
) -> None:
    key = jax.random.key(3)
    _, metrics = gradient_step(start, minibatch, key)
    watched = dict(zip(small.objective.watched, metrics["guard/watched"].tolist(), strict=True))
    moved = by_hand(start, minibatch, key)
    assert watched.pop("alpha/gradient") == pytest.approx(float(start.log_alpha - moved.log_alpha) / 0.3, rel=1e-4)
    assert watched == {name: metrics[name] for name in watched}
    assert watched.keys() == {f"{part}/loss" for part in ("actor", "critic", "alpha")} | {
        f"{part}/gradient_norm" for part in ("actor", "critic")
    }
    for part, rate in (("actor", 0.1), ("critic", 0.2)):
        step = jax.tree.map(lambda before, after: before - after, getattr(start, part), getattr(moved, part))
        assert watched[f"{part}/gradient_norm"] == pytest.approx(float(optax.tree.norm(step)) / rate, rel=1e-3)
    _, poisoned = gradient_step(start, minibatch._replace(action=np.full_like(minibatch.action, np.nan)), key)
    finite = dict(zip(small.objective.watched, np.isfinite(poisoned["guard/watched"]).tolist(), strict=True))
    assert finite == {name: not name.startswith("critic") for name in finite}  # the actor saw its own actions


def test_an_update_skips_only_the_poisoned_minibatch(small: SmallUpdate, gradient_step: GradientStep) -> None:
    floats = small.windows.floats.copy()
    floats[1, 2, 0] = np.nan  # coordinate 0 of one row's state is not in goals
    windows = small.windows._replace(floats=floats)
    after, metrics = small.update(small.state, windows)

    steps = jax.jit(partial(make_steps, small.objective, plan=small.plan))(windows, key=small.state.key)
    keys = {tuple(data) for data in np.asarray(jax.random.key_data(steps.keys)).tolist()}
    assert len(keys) == 3  # no two gradient steps draw the same actions
    transitions = jax.tree.map(np.asarray, steps.labelled)
    minibatches = [jax.tree.map(lambda x, rows=rows: x[rows], transitions) for rows in np.asarray(steps.order)]
    poisoned = np.array([np.isnan(minibatch.state).any() for minibatch in minibatches])
    assert poisoned.sum() == metrics["guard/skipped"] == 1
    assert metrics["guard/first"] == poisoned.argmax()
    expected, losses = small.state, []
    for index in np.flatnonzero(~poisoned):
        expected, step_metrics = gradient_step(expected, minibatches[index], steps.keys[index])
        losses.append(float(step_metrics["critic/loss"]))
    for name in ("actor", "critic", "log_alpha"):
        assert_close(getattr(after, name), getattr(expected, name))
    assert metrics["critic/loss"] == pytest.approx(np.mean(losses), rel=1e-4)
    assert all(np.isfinite(metrics[name]) for name in metrics if not name.startswith("guard/"))
    np.testing.assert_array_equal(jax.random.key_data(after.key), jax.random.key_data(steps.key))
    assert after.updates == 1
    assert len(small.traces) == 1


def test_an_update_without_finite_steps_keeps_the_state_and_a_finite_update_skips_no_step(small: SmallUpdate) -> None:
    _, metrics = small.update(small.state, small.windows)
    assert (metrics["guard/skipped"], metrics["guard/first"]) == (0, -1)
    infinite = small.windows._replace(floats=np.full_like(small.windows.floats, np.inf))
    after, metrics = small.update(small.state, infinite)
    assert (metrics["guard/skipped"], metrics["guard/first"]) == (3, 0)
    assert_equal(after, small.state._replace(key=after.key, updates=after.updates))
    assert np.isnan(metrics["critic/loss"])
