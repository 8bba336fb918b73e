from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from shared.hyperspherical import UnitDense, embed, project_kernels, unit_norm
from shared.networks import Encoder, Trunk
from shared.types import Array

X = np.random.default_rng(0).normal(size=(6, 3)).astype(np.float32)


def hyperspherical(depth: int, width: int = 8, **switches: Any) -> Trunk:
    defaults = {"layer_norm": True, "residual": True, "activation": "swish", "hyperspherical": True}
    return Trunk(depth, width, **(defaults | switches))


def init(network: Any, seed: int = 0) -> Any:
    return jax.device_get(jax.jit(network.init)(jax.random.key(seed), X))


def moved(params: Any, seed: int = 1) -> Any:
    """Returns random parameters of the same shapes, off the sphere."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda x: rng.uniform(0.2, 1, x.shape).astype(x.dtype), params)


def by_kind(params: Any) -> dict[str, list[Array]]:
    """Returns the leaves by the last key of their path; kernels of trunks are `unit`, those of heads `kernel`."""
    kinds: dict[str, list[Array]] = {"unit": []}
    for path, leaf in jax.tree_util.tree_flatten_with_path(params)[0]:
        kind = "unit" if path[-1].key == "kernel" and path[-2].key == "UnitDense_0" else path[-1].key
        kinds.setdefault(kind, []).append(leaf)
    return kinds


def assert_unit_columns(params: Any, num_kernels: int) -> None:
    kernels = by_kind(params)["unit"]
    assert len(kernels) == num_kernels
    for kernel in kernels:
        np.testing.assert_allclose(np.linalg.norm(np.asarray(kernel, np.float64), axis=-2), 1, rtol=1e-6)


@pytest.mark.parametrize(("depth", "num_kernels"), [(1, 1), (2, 2), (8, 1 + 4)])
def test_columns_have_norm_1_at_initialisation_and_after_a_projection(depth: int, num_kernels: int) -> None:
    params = init(Encoder(hyperspherical(depth), 4))
    assert_unit_columns(params, num_kernels)
    far = moved(params)
    assert all(abs(np.linalg.norm(kernel, axis=-2) - 1).min() > 0.01 for kernel in by_kind(far)["unit"])
    back = project_kernels(far)
    assert_unit_columns(back, num_kernels)
    for kernel, before in zip(by_kind(back)["unit"], by_kind(far)["unit"], strict=True):
        np.testing.assert_allclose(kernel * np.linalg.norm(before, axis=-2, keepdims=True), before, rtol=1e-5)
    for kind in ("kernel", "bias", "scaler", "alpha")[: 3 if depth < 4 else 4]:  # heads, scales and weights stay
        for one, other in zip(by_kind(back)[kind], by_kind(far)[kind], strict=True):
            assert one is other


@pytest.mark.parametrize(("inputs", "width"), [(9, 5), (5, 5), (3, 8)])
def test_kernels_are_orthogonal_at_initialisation(inputs: int, width: int) -> None:
    layer = UnitDense(width, "float32")
    keys = jax.random.split(jax.random.key(0), 3)
    kernels = jax.vmap(lambda key: layer.init(key, jnp.ones(inputs)))(keys)["params"]["kernel"]
    for kernel in np.asarray(kernels, np.float64):
        if inputs >= width:
            np.testing.assert_allclose(kernel.T @ kernel, np.eye(width), atol=1e-6)
        else:
            np.testing.assert_allclose(np.linalg.norm(kernel, axis=0), 1, rtol=1e-6)
            assert np.linalg.matrix_rank(kernel) == inputs
    assert len(np.unique(kernels)) == kernels.size


def test_a_projection_returns_other_networks_as_they_are() -> None:
    shapes = jax.eval_shape(Encoder(hyperspherical(4, hyperspherical=False), 4).init, jax.random.key(0), X)
    critic = (moved(shapes), {"kernel": np.full(3, 7.0)}, np.zeros(()))
    assert all(map(lambda one, other: one is other, jax.tree.leaves(project_kernels(critic)), jax.tree.leaves(critic)))


@pytest.mark.parametrize(("inputs", "width"), [(5, 64), (256, 64)])
def test_products_have_variance_1_at_initialisation(inputs: int, width: int) -> None:
    x = np.asarray(unit_norm(np.random.default_rng(0).normal(size=(400, inputs)).astype(np.float32)))
    layer = UnitDense(width, "float32")
    params = layer.init(jax.random.key(0), x)
    assert np.std(layer.apply(params, x)) == pytest.approx(1, abs=0.05)
    np.testing.assert_allclose(params["params"]["scaler"], width**-0.5)


def test_inputs_are_embedded_on_the_sphere_with_their_norm() -> None:
    x = np.array([[0, 0], [4, 0], [8, 0]], np.float32)
    np.testing.assert_allclose(embed(x), [[0, 0, 1], [0.8, 0, 0.6], [8 / 73**0.5, 0, 3 / 73**0.5]], rtol=1e-6)


def trunk_by_hand(trunk: Trunk, params: Any, x: np.ndarray) -> np.ndarray:
    values = jax.tree.map(lambda x: np.asarray(x, np.float64), params["params"])

    def unit(x: np.ndarray) -> np.ndarray:
        return x / np.linalg.norm(x, axis=-1, keepdims=True)

    def layer(x: np.ndarray, values: Any, block: Any = ()) -> np.ndarray:
        dense, num_inputs = values["UnitDense_0"], x.shape[-1]
        # The scaler's value at initialisation, 1 / sqrt(width), stands for a scale of sqrt(inputs).
        x = x @ dense["kernel"][block] * dense["scaler"][block] * np.sqrt(num_inputs) * np.sqrt(trunk.width)
        return unit(x / (1 + np.exp(-x)))

    x = layer(unit(np.concatenate([x, np.full((len(x), 1), 3.0)], axis=1)), values["stem"])
    if trunk.depth == 2:
        x = layer(x, values["layer_1"])
    blocks = trunk.depth // 4
    for block in range(blocks):
        h = x
        for index in range(4):
            h = layer(h, values["blocks"][f"_Layer_{index}"], block)
        if trunk.residual:
            alpha = values["blocks"]["Interpolation_0"]["alpha"][block] * np.sqrt(trunk.width) / (blocks + 1)
            h = unit(x + alpha * (h - x))
        x = h
    return x * np.sqrt(trunk.width)  # for the heads


@pytest.mark.parametrize(("depth", "residual"), [(1, True), (2, True), (8, True), (8, False)])
def test_trunk_by_hand(depth: int, residual: bool) -> None:
    trunk = hyperspherical(depth, residual=residual)
    params = moved(jax.eval_shape(trunk.init, jax.random.key(0), X))
    expected = trunk_by_hand(trunk, params, X.astype(np.float64))
    np.testing.assert_allclose(jax.jit(trunk.apply)(params, X), expected, rtol=1e-4, atol=1e-5)


def test_a_blocks_first_step_is_one_part_of_all_blocks_and_the_stem() -> None:
    params = jax.eval_shape(hyperspherical(12).init, jax.random.key(0), X)["params"]["blocks"]
    assert params["Interpolation_0"]["alpha"].shape == (3, 8)
    assert hyperspherical(12).block.interpolation == pytest.approx(1 / 4)
    initial = init(hyperspherical(4))["params"]["blocks"]["Interpolation_0"]["alpha"]
    np.testing.assert_allclose(initial, 8**-0.5)


@pytest.mark.parametrize("activation", ["swish", "relu"])
def test_activations_of_a_deep_trunk_have_norm_1(activation: str) -> None:
    trunk = hyperspherical(64, width=16, activation=activation)
    inputs = np.concatenate([X, 1e-3 * X, 1e4 * X, 0 * X])
    params = jax.eval_shape(trunk.init, jax.random.key(0), X)
    params = project_kernels(jax.tree.map(lambda x: x - 0.5, moved(params)))

    def loss(params: Any) -> tuple[jax.Array, jax.Array]:
        x = trunk.apply(params, inputs)
        return jnp.sum(jnp.sin(x)), x

    d_params, x = jax.device_get(jax.jit(jax.grad(loss, has_aux=True))(params))
    np.testing.assert_allclose(np.linalg.norm(x, axis=-1), 4, rtol=1e-5)  # the output, times sqrt(width)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(d_params))
    assert all(abs(leaf).max() > 0 for leaf in jax.tree.leaves(d_params))


def test_activations_that_are_all_0_have_finite_gradients() -> None:
    x = jnp.zeros((2, 3))
    np.testing.assert_array_equal(unit_norm(x), 0)
    assert np.isfinite(jax.grad(lambda x: jnp.sum(unit_norm(jax.nn.relu(x))))(x)).all()


@pytest.mark.parametrize("depth", [2, 8])
def test_gradients_equal_finite_differences(depth: int) -> None:
    with jax.enable_x64(True):
        network = Encoder(hyperspherical(depth, width=5, precision="float64"), 2)
        x = X.astype(np.float64)
        shapes = jax.eval_shape(network.init, jax.random.key(0), x)
        params = jax.tree.map(lambda x: x.astype(np.float64), moved(shapes))
        directions = [jax.tree.map(lambda x: x - 0.6, moved(params, seed)) for seed in (2, 3)]

        @jax.jit
        def loss(params: Any) -> jax.Array:
            return jnp.sum(jnp.sin(network.apply(params, x)))

        gradient, step = jax.jit(jax.grad(loss))(params), 1e-5
        for direction in directions:
            ahead = loss(jax.tree.map(lambda x, d_x: x + step * d_x, params, direction))
            behind = loss(jax.tree.map(lambda x, d_x: x - step * d_x, params, direction))
            products = jax.tree.leaves(jax.tree.map(lambda x, y: float(jnp.sum(x * y)), gradient, direction))
            assert sum(products) == pytest.approx(float(ahead - behind) / (2 * step), rel=1e-6)
