"""Policies that learners hand out: the parameters that acting needs and no others, and objectives without a critic."""

from typing import Any

import jax
import numpy as np
import pytest

from learner.acting import collecting_policy, evaluation_policies, policy_bytes
from learner.learner import Learner
from learner.objectives.registry import make_objective
from shared.config import ACTIVE, Experiment
from shared.envs.base import EnvSpec
from shared.errors import ConfigError
from shared.metrics import Reporter
from shared.params import Policy
from shared.plan import make_plan
from shared.policy import ActorCritic, tanh_gaussian

SPEC = EnvSpec(3, 2, 2, goal_indices=(0, 1), episode_length=7, goal_radius=0.5, num_cells=1)
N = 6


def experiment(collecting: int, evaluation: int, **algorithm: Any) -> Experiment:
    return Experiment.model_validate(
        {
            "env": "any",
            "collector": {"width": 8, "environments": 4, "unroll_length": 5, "best_of": collecting},
            "learners": {"twin": {"width": 8}},
            "algorithm": {"batch_size": 4, "windows_per_update": 4, "minibatches_per_update": 2, **algorithm},
            "evaluation": {"best_of": evaluation},
            "replay": {"prefill_steps": 1},
            "budget": {"env_steps": 1000},
        }
    )


def hand_out(name: str, collecting: int, evaluation: int) -> tuple[Learner, list[Any], list[Any]]:
    """Returns a new learner and the parameters that it publishes and submits before its first update."""
    config = experiment(collecting, evaluation)
    learner = Learner(config, make_plan(config, SPEC), SPEC, name)
    published: list[Policy] = []
    submitted: list[Policy] = []
    publish = published.append if name == ACTIVE else None
    learner.run(list, int, publish, submitted.append, int, Reporter(), should_stop=lambda: True)  # type: ignore[arg-type]
    assert {policy.version for policy in published + submitted} == {0}
    return learner, [policy.params for policy in published], [policy.params for policy in submitted]


@pytest.mark.parametrize(("collecting", "evaluation"), [(1, 1), (1, 4), (4, 1), (2, 4)])
def test_the_critic_is_handed_out_only_where_it_ranks_actions(collecting: int, evaluation: int) -> None:
    learner, published, submitted = hand_out(ACTIVE, collecting, evaluation)
    objective, (actor, critic) = learner.kind.objective, (learner.state.actor, learner.state.critic)
    for params, best_of in ((published, collecting), (submitted, evaluation)):
        expected = ActorCritic(actor, critic) if best_of > 1 else actor
        jax.tree.map(np.testing.assert_array_equal, params, [expected])
        assert all(isinstance(leaf, np.ndarray) for leaf in jax.tree.leaves(params))
        assert sum(leaf.nbytes for leaf in jax.tree.leaves(params)) == policy_bytes(objective, best_of)
    _, published, submitted = hand_out("twin", collecting, evaluation)
    assert (published, len(submitted)) == ([], 1)


def test_collectors_take_the_sample_that_their_learners_critic_ranks_first() -> None:
    config = experiment(collecting=3, evaluation=1, chunk=2)
    objective = make_objective(config, ACTIVE, SPEC)
    params = ActorCritic(*jax.jit(objective.init)(jax.random.key(0)))
    rng, key = np.random.default_rng(0), jax.random.key(5)
    state, goal = (rng.normal(size=(N, size)).astype(np.float32) for size in (3, 2))

    @jax.jit
    def ranked(state: Any, goal: Any) -> Any:
        outputs = objective.actor.apply(params.actor, state, goal)
        actions = [tanh_gaussian(*outputs, each)[0] for each in jax.random.split(key, 3)]
        return actions, [objective.score(params.critic, state, action, goal) for action in actions]

    actions, scores = map(np.stack, ranked(state, goal))
    chosen = np.asarray(jax.jit(collecting_policy(config, SPEC))(params, state, goal, key))
    assert chosen.shape == (N, 2 * SPEC.action_size)
    np.testing.assert_allclose(chosen, actions[scores.argmax(axis=0), np.arange(N)], rtol=1e-5)


@pytest.mark.parametrize("objective", ["contrastive", "survival", "chrono", "sac"])
def test_every_objective_with_a_critic_ranks_action_chunks(objective: str) -> None:
    config = experiment(collecting=3, evaluation=1, objective=objective, chunk=2)
    actor, critic = make_objective(config, ACTIVE, SPEC).shapes()
    inputs = [jax.ShapeDtypeStruct((N, size), np.float32) for size in (3, 2)]
    act = collecting_policy(config, SPEC)
    chosen = jax.eval_shape(act, ActorCritic(actor, critic), *inputs, jax.eval_shape(lambda: jax.random.key(0)))
    assert chosen.shape == (N, 2 * SPEC.action_size)


def test_learners_of_equal_networks_share_their_policy() -> None:
    for evaluation in (1, 2):
        policies = evaluation_policies(experiment(1, evaluation), SPEC)
        assert policies.keys() == {ACTIVE, "twin"}
        assert policies[ACTIVE] == policies["twin"]


@pytest.mark.parametrize("key", ["evaluation.best_of", "collector.best_of"])
def test_an_objective_without_a_critic_cannot_rank_actions(key: str) -> None:
    config = experiment(
        *(4 if key.startswith(part) else 1 for part in ("collector", "evaluation")), objective="cloning"
    )
    with pytest.raises(ConfigError) as error:
        make_objective(config, ACTIVE, SPEC)
    assert str(error.value) == (
        f"{key}: 4 samples are ranked by a critic, which cloning, the objective of learner active, does not have; use 1"
    )


def test_a_passive_learner_without_a_critic_may_train_on_the_data_of_ranked_actions() -> None:
    config = experiment(collecting=4, evaluation=1)
    learners = {"clone": {"width": 8, "algorithm": {"objective": "cloning"}}}
    config = Experiment.model_validate(config.model_dump() | {"learners": learners})
    assert make_objective(config, "clone", SPEC).PARTS == ("actor", "alpha")
