"""Small objectives, random episodes, and a minibatch with its loss, for all objectives whose losses are written out."""

from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from learner.objectives.base import Objective, Trained
from learner.objectives.registry import find_objective
from learner.state import init_state
from shared.algorithm_config import AlgorithmConfig
from shared.envs.base import EnvSpec
from shared.network_config import NetworkConfig
from shared.types import CONTINUES, TERMINATED, TRUNCATED, Rows

SPEC = EnvSpec(
    state_size=3, goal_size=2, action_size=2, goal_indices=(2, 0), episode_length=10, goal_radius=0.8, num_cells=1
)
ROWS = 6  # of a minibatch


def small_objective(name: str, spec: EnvSpec = SPEC, **algorithm: Any) -> Any:
    """Returns the objective `name` with small networks, and with the constants of `algorithm`."""
    constants = AlgorithmConfig.model_validate({"objective": name, **algorithm})
    return find_objective(name, "algorithm.objective")(NetworkConfig(depth=4, width=8), constants, spec)


def random_rows(seed: int, windows: int, length: int) -> Rows:
    """Returns windows `[B, W]` of random episodes, which terminate, are truncated, or stop without a known end."""
    rng = np.random.default_rng(seed)
    state = rng.normal(size=(windows, length, 3)).astype(np.float32)
    action = rng.uniform(-1, 1, (windows, length, 2)).astype(np.float32)
    last = rng.random((windows, length)) < 0.25  # of an episode
    episode = (np.cumsum(last, axis=1) - last + rng.integers(0, 5, (windows, 1))).astype(np.int32)
    end = np.where(last, rng.choice([TERMINATED, TRUNCATED, CONTINUES], last.shape), CONTINUES).astype(np.int32)
    final = np.where((end != CONTINUES)[..., None], rng.normal(size=(*last.shape, 2)), 0).astype(np.float32)
    step = np.broadcast_to(np.arange(length, dtype=np.int32), last.shape)
    return Rows(state, action, episode, step, 0 * step, end, final)


class Case:
    """A minibatch, parameters, and the loss of both."""

    def __init__(self, objective: Objective, minibatch: Any, targets: Any = ()) -> None:
        self.objective, self.targets = objective, targets
        self.trained = init_state(objective, jax.random.key(0)).trained._replace(log_alpha=jnp.float32(-0.7))
        self.minibatch = jax.tree.map(lambda x: x.astype(np.float32) if x.dtype == float else x, minibatch)
        self.key = jax.random.key(3)
        self._loss = jax.jit(objective.loss)

    def loss(self, trained: Trained | None = None, targets: Any = None, **changes: np.ndarray) -> dict[str, float]:
        """Returns the metrics and the `total`, with other parameters or with `changes` of the minibatch."""
        minibatch = self.minibatch._replace(**changes)
        total, metrics = self._loss(trained or self.trained, targets or self.targets, minibatch, self.key)
        return {name: float(value) for name, value in {"total": total, **metrics}.items()}

    @cached_property
    def d_trained(self) -> Trained:
        gradient = jax.jit(jax.grad(self.objective.loss, has_aux=True))
        return gradient(self.trained, self.targets, self.minibatch, self.key)[0]


def assert_gradient_is_that_of_its_own_loss(case: Case, part: str) -> None:
    """Compares with a finite difference of `<part>/loss` along the gradient itself; single precision allows 1 %."""
    field = "log_alpha" if part == "alpha" else part
    params, d_params = getattr(case.trained, field), getattr(case.d_trained, field)
    norm = float(optax.tree.norm(d_params))
    step = 2e-3 / norm
    moved = [optax.tree.add_scale(params, size, d_params) for size in (step, -step)]
    after, before = (case.loss(case.trained._replace(**{field: each}))[f"{part}/loss"] for each in moved)
    assert (after - before) / (2 * step) == pytest.approx(norm**2, rel=1e-2)
