from typing import Any

import jax
import numpy as np
import pytest

from learner.objectives.contrastive import Contrastive
from shared.algorithm_config import AlgorithmConfig
from shared.envs.base import EnvSpec
from shared.network_config import NetworkConfig
from shared.networks import parameter_count

SPEC = EnvSpec(
    state_size=3, goal_size=2, action_size=2, goal_indices=(0, 1), episode_length=8, goal_radius=0.5, num_cells=1
)


def build(algorithm: dict[str, Any] | None = None, **network: Any) -> Contrastive:
    sizes = NetworkConfig.model_validate({"width": 8, "representation_size": 4} | network)
    return Contrastive(sizes, AlgorithmConfig.model_validate(algorithm or {}), SPEC)


def num_layers(params: Any) -> int:
    """Returns the number of hidden layers, the stem among them."""
    trunk = dict(params["params"]["trunk"])
    blocks = jax.tree.leaves(trunk.pop("blocks", {}))
    return len(trunk) + (4 * len(blocks[0]) if blocks else 0)


def num_inputs(params: Any) -> int:
    return params["params"]["trunk"]["stem"]["Dense_0"]["kernel"].shape[0]


@pytest.mark.parametrize(("depth", "layers"), [(1, 1), (2, 2), (4, 5), (8, 9), (64, 65), (1024, 1025)])
def test_depth_sets_the_number_of_layers_of_all_three_networks(depth: int, layers: int) -> None:
    objective = build(depth=depth)
    actor, critic = objective.shapes()
    assert [num_layers(params) for params in (actor, critic.state_action, critic.goal)] == [layers] * 3
    assert [num_inputs(params) for params in (actor, critic.state_action, critic.goal)] == [5, 5, 2]
    assert objective.size == sum(map(parameter_count, (actor, critic.state_action, critic.goal)))
    assert objective.critic_layers == depth


@pytest.mark.parametrize(
    ("sizes", "layers", "widths"),
    [
        ({"actor_depth": 16, "critic_width": 6}, (17, 9, 9), (8, 6, 6)),
        ({"actor_width": 6, "critic_depth": 2}, (9, 2, 2), (6, 8, 8)),
    ],
)
def test_actor_and_critic_may_differ_in_size(
    sizes: dict[str, int], layers: tuple[int, ...], widths: tuple[int, ...]
) -> None:
    objective = build(depth=8, **sizes)
    actor, critic = objective.shapes()
    assert tuple(map(num_layers, (actor, *critic))) == layers
    heads = actor["params"]["mean"], critic.state_action["params"]["head"], critic.goal["params"]["head"]
    assert [head["kernel"].shape for head in heads] == list(zip(widths, (2, 4, 4), strict=True))
    assert objective.critic_layers == sizes.get("critic_depth", 8)


def test_actor_and_critic_take_a_chunk_of_actions() -> None:
    actor, critic = build({"chunk": 3}).shapes()
    assert actor["params"]["mean"]["kernel"].shape == actor["params"]["log_std"]["kernel"].shape == (8, 6)
    assert [num_inputs(params) for params in (actor, critic.state_action, critic.goal)] == [5, 9, 2]


@pytest.mark.parametrize(
    ("switch", "value"), [("layer_norm", False), ("residual", False), ("activation", "relu"), ("hyperspherical", True)]
)
def test_switches_reach_actor_and_encoders(switch: str, value: Any) -> None:
    changed, default = build(**{switch: value}), build()
    for network, plain in ((changed.actor, default.actor), (changed.encoder, default.encoder)):
        assert getattr(network.trunk, switch) == value != getattr(plain.trunk, switch)
        assert network.trunk.clone(**{switch: getattr(plain.trunk, switch)}) == plain.trunk


def test_initial_parameters_depend_on_the_key_and_differ_between_the_encoders() -> None:
    init = jax.jit(build().init)
    params, again, other = (jax.device_get(init(jax.random.key(seed))) for seed in (0, 0, 1))
    assert jax.tree.all(jax.tree.map(np.array_equal, params, again))
    _, critic = params
    one, two = (each["params"]["head"]["kernel"] for each in critic)
    assert (one != two).any()
    for path, leaf in jax.tree_util.tree_flatten_with_path(params)[0]:
        if path[-1].key == "kernel":
            assert (leaf != _at(other, path)).any()


def _at(tree: Any, path: Any) -> Any:
    return dict(jax.tree_util.tree_flatten_with_path(tree)[0])[path]


@pytest.mark.parametrize("energy", ["norm", "dot"])
def test_actions_are_ranked_by_their_energy(energy: str) -> None:
    objective = build({"energy": energy}, depth=2)
    _, critic = jax.jit(objective.init)(jax.random.key(0))
    rng = np.random.default_rng(0)
    state, action, goal = (rng.normal(size=(5, size)).astype(np.float32) for size in (3, 2, 2))
    phi = np.asarray(objective.encoder.apply(critic.state_action, state, action))
    psi = np.asarray(objective.encoder.apply(critic.goal, goal))
    expected = -np.linalg.norm(phi - psi, axis=1) if energy == "norm" else np.sum(phi * psi, axis=1)
    np.testing.assert_allclose(objective.score(critic, state, action, goal), expected, rtol=1e-4)
