import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from learner.optimisers import make_optimisers
from shared.algorithm_config import AlgorithmConfig


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
        state, expected = optimiser.init(jnp.zeros(2)), optax.adam(1.0).init(jnp.zeros(2))
        assert jax.tree.structure(state) == jax.tree.structure(expected)
        jax.tree.map(np.testing.assert_array_equal, state, expected)
