"""Trainings, labels and single steps of `survival` and `chrono` on windows in which goals depend on actions."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from learner.learner import Learner
from learner.objectives.base import Trained
from learner.objectives.registry import make_objective
from learner.objectives.survival import Reaches, Survival
from learner.state import LearnerState
from shared.config import ACTIVE, Experiment
from shared.plan import make_plan
from shared.replay.codec import Columns, unpack
from shared.types import CONTINUES, TERMINATED, TRUNCATED, Metrics, Rows

UPDATES = 15
LENGTH = 4  # of an episode


def experiment_of(line: Any, objective: str, **algorithm: Any) -> Experiment:
    """Returns an experiment like `line`'s with another objective, larger minibatches, and more keys of `algorithm`."""
    section = {"radius": 0.2, "rank": 8, "goals": {"future": 0.6, "current": 0.1, "random": 0.3}}
    values = line.experiment().algorithm.model_dump() | {
        "objective": objective,
        objective: section | algorithm.pop(objective, {}),
        "batch_size": 64,
        "windows_per_update": 128,
        "minibatches_per_update": 14,
        "chunk": 1,
        **algorithm,
    }
    replay = {"steps_per_environment": 400, "prefill_steps": 8}
    return line.experiment(algorithm=values, replay=replay, budget={"env_steps": 8000})


def rays(seed: int, terminated: float = 0.2, unrelated: bool = False, windows: int = 128) -> Columns:
    """Returns windows of `Line`'s shapes, of three episodes each; the last windows are those that terminate.

    In every episode, a point starts at 0 and moves straight on, by half of a row's action. With `unrelated`, actions
    have another direction than the point. `terminated`: share of the windows whose episodes terminate; the episodes of
    all others are truncated.
    """
    rng, episodes, rows = np.random.default_rng(seed), 3, 3 * LENGTH
    angle, other = rng.uniform(0, 2 * np.pi, (2, windows, episodes, 1))
    direction, action = (np.stack([np.cos(x), np.sin(x)], axis=-1) for x in (angle, other if unrelated else angle))
    row = np.arange(LENGTH)[:, None]
    position = 0.5 * row * direction
    final = np.where(row == LENGTH - 1, position + 0.5 * direction, 0)
    parts = [0 * position[..., :1], position, np.broadcast_to(action, position.shape), final]
    floats = np.concatenate(parts, axis=-1).reshape(windows, rows, -1)
    step = np.broadcast_to(np.arange(rows), (windows, rows))
    end = np.where(np.arange(windows)[:, None] < (1 - terminated) * windows, TRUNCATED, TERMINATED)
    end = np.where(step % LENGTH == LENGTH - 1, end, CONTINUES)
    ints = np.stack([step // LENGTH, step, 0 * step + seed, end], axis=-1)
    return Columns(floats.astype(np.float32), ints.astype(np.int32))


class Training(NamedTuple):
    """Result of `UPDATES` updates: states before and after, and the metrics of each update."""

    objective: Survival
    before: LearnerState
    after: LearnerState
    metrics: list[Metrics]


def train(line: Any, experiment: Experiment, windows: Callable[[int], Columns]) -> Training:
    learner = Learner(experiment, make_plan(experiment, line.spec), line.spec, ACTIVE)
    metrics = [learner.update(windows(update)) for update in range(UPDATES)]
    objective: Any = make_objective(experiment, ACTIVE, line.spec)
    return Training(objective, Learner.initial_state(experiment, line.spec, ACTIVE), learner.state, metrics)


def directions() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns states at 0, goals around them, and the unit directions from the former to the latter."""
    angle = np.linspace(0, 2 * np.pi, 256, dtype=np.float32)
    direction = np.stack([np.cos(angle), np.sin(angle)], axis=-1)
    return np.zeros((256, 3), np.float32), direction, direction


def alignment(objective: Survival, learned: LearnerState) -> float:
    """Returns the mean cosine between the policy's actions and the direction to the goal."""
    state, goal, direction = directions()
    action = np.tanh(objective.actor.apply(learned.actor, state, goal)[0])[:, :2]
    return float(np.mean(np.sum(action * direction, axis=1) / np.linalg.norm(action, axis=1)))


def preference(objective: Survival, learned: LearnerState) -> float:
    """Returns the share of states in which the score prefers an action towards the goal to its opposite."""
    state, goal, direction = directions()
    action = np.tile(direction, objective.algorithm.chunk)
    towards, away = (objective.score(learned.critic, state, sign * action, goal) for sign in (1, -1))
    return float(np.mean(towards > away))


def rows_of(line: Any) -> Rows:
    return unpack(rays(0, windows=40), line.spec.state_size, line.spec.action_size)


def labels(line: Any, objective: str, **algorithm: Any) -> Reaches:
    """Returns the labels of 40 windows of three episodes of 4 rows; those of the last 8 windows terminate."""
    chosen = make_objective(experiment_of(line, objective, **algorithm), ACTIVE, line.spec)
    return jax.tree.map(np.asarray, jax.jit(chosen.label)(rows_of(line), jax.random.key(0)))


def minibatch_of(label: Reaches) -> Reaches:
    """Returns every seventh labelled row."""
    return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:])[::7], label)


class OneStep(NamedTuple):
    """Loss of one minibatch: its metrics, its gradient, and the gradients of the metrics `<part>/loss`."""

    objective: Survival
    minibatch: Reaches
    metrics: Metrics
    d_trained: Trained
    d_parts: dict[str, Trained]
    with_other_actions: Metrics


def one_step(line: Any, objective: str) -> OneStep:
    """Returns the loss of one minibatch with action chunks of two, some of which leave their episode."""
    experiment = experiment_of(line, objective, chunk=2)
    chosen: Any = make_objective(experiment, ACTIVE, line.spec)
    trained = Learner.initial_state(experiment, line.spec, ACTIVE).trained

    @jax.jit
    def compute(rows: Rows) -> tuple[Any, ...]:
        minibatch = minibatch_of(chosen.label(rows, jax.random.key(1)))
        noise = jnp.where(minibatch.valid[:, None], 0.0, 5.0)

        def losses(trained: Trained, noise: Any = 0.0) -> tuple[Any, Metrics]:
            rows = minibatch._replace(action=minibatch.action + noise)
            total, metrics = chosen.loss(trained, (), rows, jax.random.key(2))
            return jnp.stack([total, metrics["actor/loss"], metrics["critic/loss"]]), metrics

        d_losses, metrics = jax.jacrev(losses, has_aux=True)(trained)
        d_trained, *parts = (jax.tree.map(lambda x, i=i: x[i], d_losses) for i in range(3))
        return (
            minibatch,
            metrics,
            d_trained,
            dict(zip(("actor", "critic"), parts, strict=True)),
            losses(trained, noise)[1],
        )

    return OneStep(chosen, *jax.tree.map(np.asarray, compute(rows_of(line))))
