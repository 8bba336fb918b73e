from typing import Any

import jax
import numpy as np
import pytest

from learner.objectives.contrastive import Contrastive
from learner.relabel import Transitions
from learner.state import init_state
from learner.update import make_gradients
from shared.algorithm_config import AlgorithmConfig
from shared.network_config import NetworkConfig


@pytest.mark.slow
def test_gradients_reach_every_block_at_depth_64(line: Any) -> None:
    rng = np.random.default_rng(0)
    minibatch = Transitions(*(rng.normal(size=(14, size)).astype(np.float32) for size in (3, 2, 2)))
    objective = Contrastive(NetworkConfig(depth=64, width=8), AlgorithmConfig(), line.spec)

    @jax.jit
    def compute(key: jax.Array) -> Any:
        init_key, key = jax.random.split(key)
        state = init_state(objective, init_key)
        return make_gradients(objective)(state, minibatch, key)[0]

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
