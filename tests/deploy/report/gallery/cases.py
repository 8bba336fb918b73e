"""Matrices whose runs train for a moment, environments to show, and a gallery with episodes chosen by hand."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import yaml

from deploy.cli.main import run_command
from deploy.matrix.expand import MatrixConfig, expand, write_matrix
from deploy.render.episode import Episode
from deploy.report.gallery.markup import View, page
from deploy.report.gallery.play import Cell, Gallery
from shared.config import EnvOptions
from shared.envs.base import EnvSpec, EnvState, GoalEnv
from shared.types import Array
from tests.deploy.matrix import cases
from tests.deploy.render.cases import Slider

LENGTH, EARLY = 200, 60  # steps of a film, and of the episode that ends early
SPEEDS: Mapping[Cell, float] = {(4, 4): 0.004, (4, 8): 0.006, (4, None): 0.008}  # metres in a step


class LongSlider(Slider):
    """The slider for a film of several seconds: the goal starts at 1 and moves by 0.01 each step.

    Actions move the ball without physics, which would take seconds to compile.
    """

    @property
    def spec(self) -> EnvSpec:
        return dataclasses.replace(super().spec, episode_length=self.options.episode_length or LENGTH)

    def step(self, env_state: EnvState, action: Array) -> EnvState:
        physics = env_state.physics.replace(q=env_state.physics.q + 0.01 * action)
        return env_state._replace(physics=physics, state=physics.q, goal=env_state.goal + 0.01)

    def measures(self, env_state: EnvState) -> dict[str, Array]:
        return {}


class Line(GoalEnv):
    """A point on a line: goals have one coordinate, and there is no body to film."""

    def __init__(self, options: EnvOptions) -> None:
        length = options.episode_length or 20
        self.spec = EnvSpec(1, 1, 1, goal_indices=(0,), episode_length=length, goal_radius=0.2, num_cells=1)

    def reset(self, key: Array) -> EnvState:
        return EnvState((), jnp.zeros(1), jnp.ones(1), jnp.array(False))

    def step(self, env_state: EnvState, action: Array) -> EnvState:
        return env_state._replace(state=env_state.state + 0.1 * action)

    def cell(self, goal: Array) -> Array:
        return jnp.zeros(goal.shape[:-1], jnp.int32)


def train(folder: Path, skip: Sequence[str] = (), **changes: Any) -> Path:
    """Trains the runs of the small matrix in this process, all but `skip`, and returns their folder.

    `changes`: keys of the matrix with other values; None leaves a key out.
    """
    experiment = cases.MATRIX["experiment"] | {"budget": {"env_steps": 240}}
    values = cases.MATRIX | {"experiment": experiment} | changes
    matrix = MatrixConfig.model_validate({key: value for key, value in values.items() if value is not None})
    folder.mkdir()
    write_matrix(matrix, folder / "matrix.yaml")
    for run in expand(matrix):
        path = folder / f"{run.name}.yaml"
        if run.name not in skip:
            path.write_text(yaml.safe_dump(run.experiment.model_dump(mode="json")))
            assert run_command(["run", str(path), "--in-process", "--run-dir", str(folder / run.name)]) == 0
    return folder


def sliding(env_id: str = "slider", objective: str = "contrastive") -> Gallery:
    """Returns a gallery of two episodes in three cells; with the second one, the middle cell's ends early."""
    return Gallery(
        env_id=env_id,
        objective=objective,
        env=LongSlider(EnvOptions()),
        seed=0,
        shown={"worst": 3, "median": 5},
        rows=(4,),
        columns=(4, 8, None),
        cells={
            cell: [_slide(LENGTH, speed), _slide(EARLY if cell == (4, 8) else LENGTH, -speed)]
            for cell, speed in SPEEDS.items()
        },
    )


def _slide(steps: int, speed: float) -> Episode:
    moments = np.arange(steps, dtype=np.float32)[:, None]
    states, goals = speed * moments, 1 + 0.01 * moments
    return Episode(states, goals, abs(goals - states)[:, 0], states)


def write_page(views: Sequence[View], path: Path) -> Path:
    path.write_text(page("sliding", views, []))
    return path
