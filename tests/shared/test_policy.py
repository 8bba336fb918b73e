from functools import partial
from typing import Any

import flax.linen as nn
import jax
import numpy as np
import pytest
from scipy.stats import kstest, norm

from shared.networks import Actor
from shared.policy import (
    ActorCritic,
    BestPolicy,
    DeterministicPolicy,
    StochasticPolicy,
    random_policy,
    sample_action,
)

N = 4000
ACTOR = Actor(nn.Dense(4), 2)
STATE, GOAL = np.zeros((N, 3), np.float32), np.zeros((N, 2), np.float32)
draw = jax.jit(partial(sample_action, ACTOR))
act = jax.jit(StochasticPolicy(ACTOR))
MEAN, LOG_STD = np.array([0.4, -0.2]), np.array([-0.5, 0.1])


@pytest.fixture(scope="module")
def params() -> Any:
    """Parameters of an actor whose action has mean `MEAN` and log std `LOG_STD` before its tanh, for all inputs."""
    shapes = jax.eval_shape(ACTOR.init, jax.random.key(0), STATE[0], GOAL[0])["params"]
    zeros = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), shapes)
    zeros["mean"]["bias"] = MEAN.astype(np.float32)
    zeros["log_std"]["bias"] = np.arctanh(2 * (LOG_STD + 5) / 7 - 1).astype(np.float32)
    return {"params": zeros}


def log_density(action: np.ndarray) -> np.ndarray:
    """Returns log densities `[...]` of `action` `[..., 2]`, the tanh of a Gaussian, in float64."""
    return (norm.logpdf(np.arctanh(action), MEAN, np.exp(LOG_STD)) - np.log1p(-(action**2))).sum(axis=-1)


def test_log_prob_equals_the_squashed_gaussian(params: Any) -> None:
    sampled, log_prob = map(np.asarray, draw(params, STATE, GOAL, jax.random.key(0)))
    action = sampled.astype(np.float64)
    inside = (abs(action) < 0.99).all(axis=1)  # closer to 1 the 1e-6 of `sample_action` matters
    assert inside.mean() > 0.8
    np.testing.assert_allclose(log_prob[inside], log_density(action)[inside], atol=2e-3)


def test_the_density_integrates_to_one(params: Any) -> None:
    """Integrates `log_density` over a grid of actions."""
    edge = np.tanh(np.linspace(-6, 6, 801))
    middle, width = (edge[1:] + edge[:-1]) / 2, np.diff(edge)
    grid = np.stack(np.meshgrid(middle, middle, indexing="ij"), axis=-1)
    assert (np.exp(log_density(grid)) * width[:, None] * width).sum() == pytest.approx(1, abs=1e-3)


def test_actions_follow_the_squashed_gaussian(params: Any) -> None:
    action = np.asarray(act(params, STATE, GOAL, jax.random.key(1)))
    assert action.shape == (N, 2)
    assert abs(action).max() <= 1
    for axis in range(2):
        noise = (np.arctanh(action[:, axis]) - MEAN[axis]) / np.exp(LOG_STD[axis])
        assert kstest(noise, "norm").pvalue > 1e-3
    assert abs(np.corrcoef(action.T)[0, 1]) < 0.06


def test_log_prob_is_finite_at_the_edge(params: Any) -> None:
    far = {"params": params["params"] | {"mean": jax.tree.map(lambda x: x + 50, params["params"]["mean"])}}
    action, log_prob = map(np.asarray, draw(far, STATE, GOAL, jax.random.key(0)))
    assert (action == 1).all()
    assert np.isfinite(log_prob).all()


def test_the_stochastic_policy_depends_on_the_key(params: Any) -> None:
    first, again, other = (np.asarray(act(params, STATE, GOAL, jax.random.key(seed))) for seed in (0, 0, 1))
    assert (first == again).all()
    assert (first != other).any()


def test_the_deterministic_policy_is_tanh_of_the_mean(params: Any) -> None:
    policy = jax.jit(DeterministicPolicy(ACTOR))
    action = np.asarray(policy(params, STATE, GOAL, jax.random.key(0)))
    np.testing.assert_allclose(action, np.broadcast_to(np.tanh(MEAN), (N, 2)), rtol=1e-6)
    np.testing.assert_array_equal(action, policy(params, STATE, GOAL, jax.random.key(1)))


def test_the_best_policy_takes_the_sample_of_the_largest_score(params: Any) -> None:
    """Scores depend on critic, state, action and goal, and differ between environments."""
    rng, samples, few = np.random.default_rng(0), 5, 50
    critic, state, goal = (rng.normal(size=shape).astype(np.float32) for shape in ((2, 3), (few, 3), (few, 2)))

    def score(critic: Any, state: Any, action: Any, goal: Any) -> Any:
        return ((state @ critic.T + goal) * action).sum(axis=-1)

    key = jax.random.key(3)
    policy = BestPolicy(ACTOR, score, samples)
    action = np.asarray(jax.jit(policy)(ActorCritic(params, critic), state, goal, key))
    drawn = np.stack([draw(params, state, goal, each)[0] for each in jax.random.split(key, samples)])
    scores = np.stack([score(critic, state, each, goal) for each in drawn])
    np.testing.assert_allclose(action, drawn[scores.argmax(axis=0), np.arange(few)], rtol=1e-5)
    assert len(np.unique(scores.argmax(axis=0))) == samples
    assert len(np.unique(drawn)) == drawn.size  # samples and environments have keys of their own


def test_equal_actors_have_one_policy() -> None:
    """Rollouts of learners with equal networks are compiled once, because they get equal functions."""
    for make in (StochasticPolicy, DeterministicPolicy):
        assert make(ACTOR) == make(Actor(nn.Dense(4), 2))
        assert make(ACTOR) != make(Actor(nn.Dense(4), 3))


def test_the_random_policy_is_uniform_for_any_parameters() -> None:
    action = np.asarray(jax.jit(random_policy(2))({}, STATE, GOAL, jax.random.key(0)))
    assert action.shape == (N, 2)
    for axis in range(2):
        assert kstest(action[:, axis], "uniform", args=(-1, 2)).pvalue > 1e-3
    assert abs(np.corrcoef(action.T)[0, 1]) < 0.06
