"""Windows and an experiment on which a correct learner learns within seconds."""

from typing import Any

import jax
import numpy as np
import pytest

from shared.config import Experiment
from shared.envs.base import EnvSpec
from shared.networks import Actor
from shared.policy import DeterministicPolicy
from shared.replay.codec import Columns
from shared.types import Params


class Line:
    """Windows of points that move in straight lines: state `[0, x, y]`, goal `[x, y]`, action = one step's direction.

    The action of a row leads to the later rows of its window, so goals depend on actions.
    """

    spec = EnvSpec(
        state_size=3,
        goal_size=2,
        action_size=2,
        goal_indices=(1, 2),
        episode_length=8,
        goal_radius=0.5,
        num_cells=1,
    )

    @staticmethod
    def experiment(**overrides: Any) -> Experiment:
        return Experiment.model_validate(
            {
                "env": "line",
                "collector": {"depth": 4, "width": 16, "environments": 8, "unroll_length": 4},
                "algorithm": {
                    "batch_size": 16,
                    "windows_per_update": 32,
                    "minibatches_per_update": 12,
                    "discount": 0.9,
                    "actor_learning_rate": 3e-3,
                    "critic_learning_rate": 3e-3,
                },
                "replay": {"steps_per_environment": 200, "prefill_steps": 8},
                "evaluation": {"count": 2},
                "budget": {"env_steps": 20 * 32},  # two updates; all tests share this plan, so that it is compiled once
            }
            | overrides
        )

    @staticmethod
    def windows(seed: int, windows: int = 32, rows: int = 12, unrelated: bool = False) -> Columns:
        """Returns random windows; with `unrelated`, all rows are independent, so goals do not depend on actions."""
        rng = np.random.default_rng(seed)
        num_points = rows if unrelated else 1
        start = rng.normal(size=(windows, num_points, 2))
        action = np.broadcast_to(rng.uniform(-1, 1, (windows, num_points, 2)), (windows, rows, 2))
        position = start + 0.5 * np.arange(rows)[:, None] * action
        floats = np.concatenate([np.zeros((windows, rows, 1)), position, action, 0 * position], axis=-1)
        step = np.broadcast_to(np.arange(rows), (windows, rows))
        ints = np.stack([0 * step, step, 0 * step + seed, 0 * step], axis=-1)  # one episode without an end
        return Columns(floats.astype(np.float32), ints.astype(np.int32))

    @staticmethod
    def towards(length: float = 1.0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Returns random states `[256, S]`, goals `length` away, and the directions to them, of length 1."""
        rng = np.random.default_rng(9)
        position, angle = rng.normal(size=(256, 2)), rng.uniform(0, 2 * np.pi, 256)
        direction = np.stack([np.cos(angle), np.sin(angle)], axis=1)
        state = np.concatenate([np.zeros((256, 1)), position], axis=1)
        return state.astype(np.float32), (position + length * direction).astype(np.float32), direction

    @classmethod
    def alignment(cls, actor: Actor, params: Params) -> float:
        """Returns the mean cosine between the actions of the deterministic policy and the directions to the goals."""
        state, goal, direction = cls.towards()
        action = jax.jit(DeterministicPolicy(actor))(params, state, goal, jax.random.key(0))
        return float(np.mean(np.sum(action * direction, axis=1) / np.linalg.norm(action, axis=1)))


@pytest.fixture(scope="session")
def line() -> type[Line]:
    return Line
