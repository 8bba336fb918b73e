from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from shared.envs.base import EnvSpec
from shared.network_config import NetworkConfig, TrunkSize
from shared.networks import (
    ACTIVATIONS,
    LOG_STD_MAX,
    LOG_STD_MIN,
    Actor,
    Encoder,
    Pass,
    Trunk,
    make_actor,
    make_trunk,
    norm_activation,
    parameter_count,
    side_by_side,
)

SPEC = EnvSpec(
    state_size=3, goal_size=2, action_size=2, goal_indices=(0, 1), episode_length=8, goal_radius=0.5, num_cells=1
)
STATE, GOAL = np.random.default_rng(0).normal(size=(2, 5, 3)).astype(np.float32)[:, :, :3]
GOAL = GOAL[:, :2]


class Built(NamedTuple):
    """An actor and an encoder of goals, and the shapes of their parameters, which are not computed."""

    actor: Actor
    encoder: Encoder
    actor_params: Any
    encoder_params: Any


def build(chunk: int = 1, **config: Any) -> Built:
    network = NetworkConfig.model_validate({"width": 8} | config)
    actor, encoder = make_actor(network, SPEC, chunk), Encoder(make_trunk(network, network.critic_trunk), 4)
    key = jax.random.key(0)
    return Built(actor, encoder, jax.eval_shape(actor.init, key, STATE, GOAL), jax.eval_shape(encoder.init, key, GOAL))


def filled(shapes: Any, seed: int = 0) -> Any:
    """Returns random parameters of these shapes, without compiling anything."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda x: rng.normal(scale=0.5, size=x.shape).astype(x.dtype), shapes)


def num_blocks(params: Any) -> int:
    """Returns the number of blocks that each array of the trunk's blocks holds."""
    (number,) = {leaf.shape[0] for leaf in jax.tree.leaves(params["params"]["trunk"]["blocks"])}
    return number


def kernels(params: Any) -> list[jax.Array]:
    leaves = jax.tree_util.tree_flatten_with_path(params)[0]
    return [leaf for path, leaf in leaves if path[-1].key == "kernel"]


def expected_count(inputs: int, depth: int, width: int, outputs: int) -> int:
    if depth < 4:
        depth -= 1  # the stem counts
    layer_norms = 2 * width * (depth + 1)
    return (inputs + 1) * width + depth * (width + 1) * width + layer_norms + (width + 1) * outputs


@pytest.mark.parametrize("depth", [4, 8, 64, 1024])
def test_depth_sets_the_number_of_layers(depth: int) -> None:
    built = build(depth=depth)
    for params, inputs in ((built.actor_params, 5), (built.encoder_params, 2)):
        assert num_blocks(params) == depth // 4
        assert parameter_count(params) == expected_count(inputs, depth, 8, 4)


@pytest.mark.parametrize("hyperspherical", [False, True])
@pytest.mark.parametrize(("depth", "layers"), [(1, {"stem"}), (2, {"stem", "layer_1"})])
def test_plain_trunks_have_depth_layers_in_all_and_no_array_without_entries(
    depth: int, layers: set[str], hyperspherical: bool
) -> None:
    built = build(depth=depth, hyperspherical=hyperspherical)
    for params, inputs in ((built.actor_params, 5), (built.encoder_params, 2)):
        assert params["params"]["trunk"].keys() == layers
        assert all(leaf.size for leaf in jax.tree.leaves(params))
        if not hyperspherical:
            assert parameter_count(params) == expected_count(inputs, depth, 8, 4)


def test_an_actor_decides_the_actions_of_a_chunk_at_once() -> None:
    built = build(chunk=3)
    mean, log_std = jax.eval_shape(built.actor.apply, built.actor_params, STATE, GOAL)
    assert mean.shape == log_std.shape == (5, 3 * 2)
    assert parameter_count(built.actor_params) == expected_count(5, 4, 8, 2 * 3 * 2)


@pytest.mark.parametrize("depth", [1, 2, 8])
def test_trunk_by_hand(depth: int) -> None:
    trunk = Trunk(depth, width=6, layer_norm=True, residual=True, activation="swish")
    params = filled(jax.eval_shape(trunk.init, jax.random.key(1), STATE))

    def layer(x: np.ndarray, values: Any, block: Any = ()) -> np.ndarray:
        dense, norm = values["Dense_0"], values["LayerNorm_0"]
        x = x @ dense["kernel"][block] + dense["bias"][block]
        x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6)
        x = x * norm["scale"][block] + norm["bias"][block]
        return x / (1 + np.exp(-x))

    values = jax.tree.map(lambda x: np.asarray(x, np.float64), params["params"])
    x = layer(STATE.astype(np.float64), values["stem"])
    if depth == 2:
        x = layer(x, values["layer_1"])
    for block in range(depth // 4):
        y = x
        for index in range(4):
            y = layer(y, values["blocks"][f"_Layer_{index}"], block)
        x = x + y
    np.testing.assert_allclose(jax.jit(trunk.apply)(params, STATE), x, rtol=1e-4, atol=1e-5)


def test_every_switch_changes_the_output() -> None:
    switches = {"layer_norm": True, "residual": True, "activation": "swish"}
    changes: list[dict[str, Any]] = [{"layer_norm": False}, {"residual": False}, {"activation": "relu"}]
    networks = [Encoder(Trunk(depth=4, width=8, **(switches | change)), 4) for change in ({}, *changes)]

    @jax.jit
    def compute(key: jax.Array) -> list[tuple[Any, jax.Array]]:
        """Returns parameters and output of each network."""
        every = [network.init(key, STATE) for network in networks]
        return [(params, network.apply(params, STATE)) for network, params in zip(networks, every, strict=True)]

    (params, before), *changed = jax.device_get(compute(jax.random.key(0)))
    for change, (own, after) in zip(changes, changed, strict=True):
        assert jax.tree.all(jax.tree.map(np.array_equal, kernels(own), kernels(params)))
        assert abs(before - after).max() > 1e-3, change
    without = jax.eval_shape(Encoder(Trunk(4, 8, False, True, "swish"), 4).init, jax.random.key(0), STATE)
    assert parameter_count(params) - parameter_count(without) == 2 * 8 * 5  # scales and biases of 5 layer norms


def test_initial_parameters() -> None:
    built = build(depth=8, width=64)

    @jax.jit
    def init(key: jax.Array) -> list[Any]:
        return [built.actor.init(key, STATE, GOAL), built.encoder.init(key, GOAL)]

    params, again, other = (jax.device_get(init(jax.random.key(seed))) for seed in (0, 0, 1))
    assert jax.tree.all(jax.tree.map(np.array_equal, params, again))
    assert all((x != y).any() for x, y in zip(kernels(params), kernels(other), strict=True))
    for kernel in kernels(params):
        bound = 1 / np.sqrt(kernel.shape[-2])  # uniform of variance 1 / (3 fan in)
        assert abs(kernel).max() <= bound
        assert kernel.std() == pytest.approx(bound / np.sqrt(3), rel=0.35 if kernel.size < 300 else 0.05)
    blocks = params[0]["params"]["trunk"]["blocks"]["_Layer_0"]["Dense_0"]
    assert (blocks["kernel"][0] != blocks["kernel"][1]).any()  # blocks differ from each other
    assert (blocks["bias"] == 0).all()


class CompiledActor(NamedTuple):
    """An actor, compiled for 5 rows of states and goals, and its parameters."""

    apply: Callable[..., tuple[jax.Array, jax.Array]]
    params: Any


@pytest.fixture(scope="module")
def actor() -> CompiledActor:
    built = build()
    return CompiledActor(jax.jit(built.actor.apply), filled(built.actor_params))


def test_log_std_is_bounded(actor: CompiledActor) -> None:
    params = actor.params["params"]
    head = params["log_std"]
    for bias, bound in ((0.0, None), (100.0, LOG_STD_MAX), (-100.0, LOG_STD_MIN)):
        moved = {"params": params | {"log_std": head | {"bias": np.full(2, bias, np.float32)}}}
        mean, log_std = map(np.asarray, actor.apply(moved, STATE, GOAL))
        assert mean.shape == log_std.shape == (5, 2)
        if bound is not None:
            np.testing.assert_allclose(log_std, bound, atol=1e-5)
        else:
            assert (log_std > LOG_STD_MIN).all()
            assert (log_std < LOG_STD_MAX).all()
    assert (LOG_STD_MIN, LOG_STD_MAX) == (-5, 2)


def test_the_actor_depends_on_state_and_goal(actor: CompiledActor) -> None:
    mean, other_state, other_goal = (
        np.asarray(actor.apply(actor.params, *inputs)[0])
        for inputs in ((STATE, GOAL), (STATE + 1, GOAL), (STATE, GOAL + 1))
    )
    assert (other_state != mean).all()
    assert (other_goal != mean).all()


SHAPES = [(7,), (4, 5), (2, 3, 6)]


@pytest.fixture(scope="module")
def norms() -> dict[tuple[str, tuple[int, ...]], tuple[Any, Any]]:
    """Values and gradients of our layer norm and of flax, for each activation and shape; compiled at once."""
    rng = np.random.default_rng(0)

    def compute(activation: str, shape: tuple[int, ...]) -> tuple[Any, Any]:
        x, weights = rng.normal(size=(2, *shape)).astype(np.float32) * 3 + 1
        scale, bias = rng.normal(size=(2, shape[-1])).astype(np.float32)

        def ours(x: Any, scale: Any, bias: Any) -> jax.Array:
            return jnp.sum(weights * norm_activation(activation, x, scale, bias))

        def flax(x: Any, scale: Any, bias: Any) -> jax.Array:
            normal = nn.LayerNorm().apply({"params": {"scale": scale, "bias": bias}}, x)
            return jnp.sum(weights * ACTIVATIONS[activation](normal))

        result, expected = (jax.value_and_grad(f, argnums=(0, 1, 2))(x, scale, bias) for f in (ours, flax))
        return result, expected

    cases = [(activation, shape) for activation in ("swish", "relu") for shape in SHAPES]
    return dict(zip(cases, jax.device_get(jax.jit(lambda: [compute(*case) for case in cases])()), strict=True))


@pytest.mark.parametrize("activation", ["swish", "relu"])
@pytest.mark.parametrize("shape", SHAPES)
def test_norm_activation_and_its_gradient_equal_those_of_flax(
    norms: Any, activation: str, shape: tuple[int, ...]
) -> None:
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-5), *norms[activation, shape])


@pytest.mark.parametrize(
    ("depths", "widths", "batch", "switches"),
    [
        ((8, 8), (5, 5), 3, (True, True, "swish")),
        ((4, 12), (8, 3), 1, (True, False, "relu")),
        ((8, 2), (5, 3), 3, (True, True, "swish")),
        ((1, 2), (5, 4), 3, (True, True, "swish")),
        ((2, 8), (4, 6), 2, (True, True, "swish", "float32", True)),
        pytest.param((12, 4), (2, 9), 5, (False, True, "relu"), marks=pytest.mark.slow),
        pytest.param((8, 12), (6, 4), 2, (False, False, "swish"), marks=pytest.mark.slow),
    ],
    ids=lambda value: str(value).replace(" ", ""),
)
def test_passes_side_by_side_equal_separate_passes(
    depths: tuple[int, int], widths: tuple[int, int], batch: int, switches: tuple[Any, ...]
) -> None:
    """Compares outputs and gradients with those of a plain loop over the blocks."""
    actor = Actor(Trunk(depths[0], widths[0], *switches), 2)
    encoder = Encoder(Trunk(depths[1], widths[1], *switches), 3)
    inputs = STATE[:batch], GOAL[:batch]
    key = jax.random.key(0)
    params = filled((jax.eval_shape(actor.init, key, *inputs), jax.eval_shape(encoder.init, key, STATE)))

    def plain(network: Actor | Encoder, params: Any, inputs: tuple) -> Any:
        x = network.apply(params, *inputs, method="before_blocks")
        stacked = params["params"]["trunk"].get("blocks")
        for i in range(network.trunk.depth // 4):
            x = network.trunk.block.apply({"params": jax.tree.map(lambda leaf: leaf[i], stacked)}, x)  # noqa: B023
        return network.apply(params, network.trunk.after_blocks(x), method="after_blocks")

    def loss(params: Any, together: bool) -> tuple[jax.Array, Any]:
        if together:
            outputs = side_by_side(Pass(actor, params[0], inputs), Pass(encoder, params[1], inputs[:1]))
        else:
            outputs = [plain(actor, params[0], inputs), plain(encoder, params[1], inputs[:1])]
        return sum(jnp.sum(jnp.sin(leaf)) for leaf in jax.tree.leaves(outputs)), outputs

    @jax.jit
    def compute(params: Any) -> Any:
        step = jax.value_and_grad(loss, has_aux=True)
        whole = [actor.apply(params[0], *inputs), encoder.apply(params[1], *inputs[:1])]
        return step(params, True), step(params, False), whole

    together, apart, whole = jax.device_get(compute(params))
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-3, atol=1e-5), together, apart)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-5), together[0][1], whole)


@pytest.mark.parametrize("hyperspherical", [False, True])
def test_bfloat16_is_used_in_hidden_layers_alone(hyperspherical: bool) -> None:
    half, full = (build(width=32, precision=name, hyperspherical=hyperspherical) for name in ("bfloat16", "float32"))
    assert {leaf.dtype for leaf in jax.tree.leaves(half[2:])} == {jnp.dtype("float32")}

    params = filled(half[2:])

    @jax.jit
    def compute(actor: Any, encoder: Any) -> list[Any]:
        return [[built.actor.apply(actor, STATE, GOAL), built.encoder.apply(encoder, GOAL)] for built in (half, full)]

    results, expected = map(jax.tree.leaves, jax.device_get(compute(*params)))
    assert len(results) == 3
    for x, y in zip(results, expected, strict=True):
        assert x.dtype == np.float32
        assert (x != y).any()
        np.testing.assert_allclose(x, y, atol=0.05 * abs(y).max())


@pytest.mark.parametrize("blocks", [3, 18])
def test_every_block_has_the_initial_parameters_that_its_own_key_gives(blocks: int) -> None:
    """Blocks are initialised a few at a time: of 18, two."""
    trunk = make_trunk(NetworkConfig(width=4), TrunkSize(4 * blocks, 4))
    key = jax.random.key(1)
    stacked = jax.jit(trunk._init_blocks)(key)
    each = [trunk.block.init(one, jnp.zeros(4))["params"] for one in jax.random.split(key, blocks)[:: blocks - 1]]
    expected = jax.tree.map(lambda *leaves: np.stack(leaves), *each)
    ends = jax.tree.map(lambda leaf: leaf[:: blocks - 1], stacked)
    jax.tree.map(np.testing.assert_array_equal, ends, expected)


def test_a_forward_pass_does_not_trace_the_initialiser(monkeypatch: pytest.MonkeyPatch) -> None:
    built = build()

    def refuse(self: Trunk, key: Any) -> Any:
        raise AssertionError("the blocks are initialised again")

    monkeypatch.setattr(Trunk, "_init_blocks", refuse)
    jax.eval_shape(built.actor.apply, built.actor_params, STATE, GOAL)
