from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from learner.losses import CONTRASTIVE_LOSSES, critic_loss, energy_matrix
from learner.relabel import Transitions
from learner.state import LearnerState, Optimisers, init_state, make_optimisers
from learner.update import (
    WATCHED,
    GradientStep,
    make_gradient_step,
    make_gradients,
    make_steps,
    make_transitions,
    make_update_step,
)
from shared.config import AlgorithmConfig, NetworkConfig
from shared.networks import Actor, Encoder, Networks, Trunk, make_networks
from shared.plan import Plan, make_plan
from shared.policy import sample_action
from shared.replay.codec import Columns
from shared.types import Metrics

STEM = Trunk(depth=0, width=4, layer_norm=False, residual=True, activation="swish")  # compiles fast
SMALL = Networks(Actor(STEM, 2), Encoder(STEM, 3), Encoder(STEM, 3))
ROWS = 14  # rows of every minibatch, so that a gradient step is compiled once
# SGD steps are scaled gradients, so gradients can be compared. The optimisers' states hold rates and step counts.
SGD = Optimisers(*(optax.inject_hyperparams(optax.sgd)(learning_rate=rate) for rate in (0.1, 0.2, 0.3)))


def assert_equal(one: Any, other: Any) -> None:
    """Asserts that two trees are equal to the bit, PRNG keys included."""
    assert jax.tree.structure(one) == jax.tree.structure(other)
    for x, y in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        if jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key):
            x, y = jax.random.key_data(x), jax.random.key_data(y)
        np.testing.assert_array_equal(x, y)


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
    return init_state(SMALL, SGD, line.spec, jax.random.key(0))


@pytest.fixture(scope="module")
def gradient_step(line: Any) -> GradientStep:
    return jax.jit(make_gradient_step(SMALL, SGD, AlgorithmConfig(), line.spec))


class SmallUpdate(NamedTuple):
    """Update of the networks `SMALL`, on all rows of windows that have only one possible crop."""

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
    update_step = make_update_step(SMALL, SGD, experiment.algorithm, plan, line.spec)
    traces = []

    @jax.jit
    def update(state: LearnerState, windows: Columns) -> tuple[LearnerState, Metrics]:
        traces.append(windows)
        return update_step(state, windows)

    return SmallUpdate(plan, start, line.windows(3, windows=6, rows=plan.window_rows), update, traces)


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
    rows = floats[:, :-1].reshape(-1, 5)
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
    """Returns the output of an encoder of `SMALL` for `rows`, by hand: Dense layer, swish, Dense layer."""
    stem, head = params["params"]["trunk"]["stem"]["Dense_0"], params["params"]["head"]
    x = rows @ np.asarray(stem["kernel"]) + np.asarray(stem["bias"])
    return x / (1 + np.exp(-x)) @ np.asarray(head["kernel"]) + np.asarray(head["bias"])


def test_transitions_are_relabelled_rows_of_cropped_windows(line: Any) -> None:
    experiment = line.experiment()
    plan = make_plan(experiment, line.spec)
    windows = line.windows(0)
    transitions = jax.jit(make_transitions, static_argnums=(1, 2, 3))(windows, plan, line.spec, 0.9, jax.random.key(0))
    state, action, goal = jax.tree.map(lambda x: np.asarray(x).reshape(32, 7, -1), transitions)
    starts = set()
    for window in range(32):
        rows = windows.floats[window]
        start = int(np.flatnonzero((rows[:, :3] == state[window, 0]).all(axis=1))[0])
        starts.add(start)
        np.testing.assert_array_equal(state[window], rows[start : start + 7, :3])
        np.testing.assert_array_equal(action[window], rows[start : start + 7, 3:])
        ahead = (rows[None, :, 1:3] == goal[window, :, None]).all(axis=2).argmax(axis=1) - start - np.arange(7)
        assert (ahead >= 1).all()
        assert (ahead + np.arange(7) <= 7).all()
    assert starts == set(range(plan.unroll_length))


@jax.jit
def by_hand(state: LearnerState, minibatch: Transitions, key: jax.Array) -> LearnerState:
    """Returns the state after a gradient step, in which all losses use the parameters before the step."""

    def encode(critic: Any, action: Any) -> tuple[jax.Array, jax.Array]:
        pair = jnp.concatenate([minibatch.state, action], axis=1)
        return SMALL.state_action.apply(critic.state_action, pair), SMALL.goal.apply(critic.goal, minibatch.goal)

    def actor(params: Any) -> jax.Array:
        action, log_prob = sample_action(SMALL.actor, params, minibatch.state, minibatch.goal, key)
        phi, psi = encode(state.critic, action)
        return jnp.mean(jnp.exp(state.log_alpha) * log_prob + jnp.linalg.norm(phi - psi, axis=1))

    def critic(params: Any) -> jax.Array:
        phi, psi = encode(params, minibatch.action)
        energy = -jnp.linalg.norm(phi[:, None] - psi[None], axis=-1)
        log_partition = jnp.log(jnp.sum(jnp.exp(energy), axis=1))
        return jnp.mean(log_partition - jnp.diagonal(energy)) + 0.1 * jnp.mean(log_partition**2)

    _, log_prob = sample_action(SMALL.actor, state.actor, minibatch.state, minibatch.goal, key)
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
        algorithm = AlgorithmConfig.model_validate(options)
        _, metrics = make_gradients(SMALL, algorithm, line.spec)(state, minibatch, key)

        def energies(action: Any) -> jax.Array:
            rows = jnp.concatenate([minibatch.state, action], axis=1)
            phi = SMALL.state_action.apply(state.critic.state_action, rows)
            return energy_matrix(algorithm.energy, phi, SMALL.goal.apply(state.critic.goal, minibatch.goal))

        contrastive = CONTRASTIVE_LOSSES[algorithm.contrastive_loss]
        expected, _ = critic_loss(energies(minibatch.action), contrastive, algorithm.logsumexp_penalty)
        action, log_prob = sample_action(SMALL.actor, state.actor, minibatch.state, minibatch.goal, key)
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


def test_each_optimiser_is_adam_with_its_own_learning_rate() -> None:
    algorithm = AlgorithmConfig(actor_learning_rate=0.1, critic_learning_rate=0.2, alpha_learning_rate=0.3)

    @jax.jit
    def two_steps() -> list[jax.Array]:
        reached = []
        for optimiser in make_optimisers(algorithm):
            params, state = jnp.zeros(()), optimiser.init(jnp.zeros(()))
            for gradient in (4.0, 4.0):  # equal gradients: Adam's steps equal the learning rate
                update, state = optimiser.update(jnp.float32(gradient), state)
                params = optax.apply_updates(params, update)
            reached.append(params)
        return reached

    assert [float(params) for params in two_steps()] == pytest.approx([-0.2, -0.4, -0.6], rel=1e-4)


def test_clipping_by_hand() -> None:
    algorithm = AlgorithmConfig(actor_learning_rate=0.1, critic_learning_rate=0.2, max_gradient_norm=2.5)
    # Norm 5 is halved; norm 0.5 stays. Adam's second step shows the ratio of both gradients.
    gradients = [np.array([3.0, 4.0], np.float32), np.array([0.3, 0.4], np.float32)]

    @jax.jit
    def second_steps() -> list[jax.Array]:
        updates = []
        for optimiser in make_optimisers(algorithm):
            state = optimiser.init(jnp.zeros(2))
            for gradient in gradients:
                update, state = optimiser.update(jnp.asarray(gradient), state)
            updates.append(update)
        return updates

    rates = (0.1, 0.2, algorithm.alpha_learning_rate)
    for update, learning_rate, scale in zip(second_steps(), rates, (0.5, 0.5, 1.0), strict=True):
        one, two = scale * gradients[0], gradients[1]
        mean = (0.9 * 0.1 * one + 0.1 * two) / (1 - 0.9**2)
        square = (0.999 * 0.001 * one**2 + 0.001 * two**2) / (1 - 0.999**2)
        np.testing.assert_allclose(update, -learning_rate * mean / np.sqrt(square), rtol=1e-4)


def test_without_clipping_optimisers_have_the_states_of_adam() -> None:
    for optimiser in make_optimisers(AlgorithmConfig()):
        assert_equal(optimiser.init(jnp.zeros(2)), optax.adam(1.0).init(jnp.zeros(2)))


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
    assert metrics["guard/watched"].shape == (len(WATCHED),)
    assert differs(after.optimisers, state.optimisers)


def test_an_update_skips_only_the_poisoned_minibatch(
    line: Any, small: SmallUpdate, gradient_step: GradientStep
) -> None:
    floats = small.windows.floats.copy()
    floats[1, 2, 0] = np.nan  # coordinate 0 of one row's state is not in goals
    windows = small.windows._replace(floats=floats)
    after, metrics = small.update(small.state, windows)

    steps = jax.jit(make_steps, static_argnums=(1, 2, 3))(
        windows, small.plan, line.spec, AlgorithmConfig().discount, small.state.key
    )
    keys = {tuple(data) for data in np.asarray(jax.random.key_data(steps.keys)).tolist()}
    assert len(keys) == 3  # no two gradient steps draw the same actions
    transitions = jax.tree.map(np.asarray, steps.transitions)
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


@pytest.mark.slow
def test_gradients_reach_every_block_at_depth_64(line: Any, minibatch: Transitions) -> None:
    networks = make_networks(NetworkConfig(depth=64, width=8), line.spec)

    @jax.jit
    def compute(key: jax.Array) -> Any:
        init_key, key = jax.random.split(key)
        state = init_state(networks, SGD, line.spec, init_key)
        return make_gradients(networks, AlgorithmConfig(), line.spec)(state, minibatch, key)[0]

    gradients = jax.device_get(compute(jax.random.key(0)))
    for network in (gradients.actor, gradients.critic.state_action, gradients.critic.goal):
        flat = jax.tree_util.tree_flatten_with_path(network["params"]["trunk"]["blocks"])[0]
        kernels = [leaf for path, leaf in flat if path[-1].key == "kernel"]
        assert [kernel.shape for kernel in kernels] == [(16, 8, 8)] * 4
        for kernel in kernels:
            norms = np.linalg.norm(kernel.reshape(16, -1), axis=1)
            assert np.isfinite(norms).all()
            assert norms.min() > 1e-3 * norms.max() > 0
        assert all((abs(leaf).max() > 0) and np.isfinite(leaf).all() for leaf in jax.tree.leaves(network))
