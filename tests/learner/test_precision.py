"""Precision of products, read off lowered programs: a CPU computes all of them in float32, a GPU only if told so."""

import re
from collections import Counter

import jax
import pytest

from collector.rollout import make_start, make_unroll
from learner.acting import collecting_policy
from learner.learner import Learner
from learner.update import make_update_step
from shared.config import ACTIVE, Experiment
from shared.envs.registry import make_envs
from shared.plan import make_plan
from tests.deploy.cases import small

FULL, DEFAULT = "HIGHEST", "DEFAULT"


def products(program: str) -> Counter[tuple[str, str]]:
    """Returns the number of products by the format of their factors and their precision."""
    found = re.findall(r"stablehlo\.dot_general.*?precision = \[(\w+), \w+\] : \(tensor<(?:\w+x)*(\w+)>", program)
    assert len(found) == program.count("stablehlo.dot_general")
    return Counter((number_format, precision) for precision, number_format in found)


def update_products(precision: str, **algorithm: object) -> Counter[tuple[str, str]]:
    experiment = Experiment.model_validate(
        small(collector={"precision": precision}, algorithm=algorithm, learners={"sphere": {"hyperspherical": True}})
    )
    spec = make_envs(experiment).training.spec
    plan = make_plan(experiment, spec)
    counts: Counter[tuple[str, str]] = Counter()
    for name in (ACTIVE, "sphere") if precision == "float32" else (ACTIVE,):
        learner = Learner(experiment, plan, spec, name)
        update = jax.jit(make_update_step(learner.kind.objective, plan))
        counts += products(update.lower(learner.state, learner._windows).as_text())
    return counts


@pytest.mark.slow
@pytest.mark.parametrize("objective", ["contrastive", "chrono", "sac"])
def test_every_product_of_an_update_is_float32_by_default(objective: str) -> None:
    assert {*update_products("float32", objective=objective)} == {("f32", FULL)}


def test_tf32_is_for_the_networks_alone() -> None:
    counts = update_products("tf32")
    assert {*counts} == {("f32", DEFAULT), ("f32", FULL)}
    assert counts["f32", FULL] < counts["f32", DEFAULT] / 4  # the energies, and their gradients


def test_bfloat16_is_for_the_hidden_layers_alone() -> None:
    counts = update_products("bfloat16")
    assert {number_format for number_format, _ in counts} == {"bf16", "f32"}
    assert {precision for number_format, precision in counts if number_format == "f32"} == {FULL}


@pytest.mark.slow
@pytest.mark.parametrize("env_id", ["ant", "arm_reach"])
def test_physics_is_in_full_whatever_the_network_is(env_id: str) -> None:
    """The same rollout with a policy in TF32: none of the simulator's products is left to JAX's default."""
    changes = {"env": env_id, "env_options": {}, "collector": {"precision": "tf32", "environments": 2}}
    experiment = Experiment.model_validate(small(**changes))
    env = make_envs(experiment).training
    policy = collecting_policy(experiment, env.spec)
    params = Learner(experiment, make_plan(experiment, env.spec), env.spec, ACTIVE).state.actor
    unroll = make_unroll(env, policy, 1)
    state = jax.eval_shape(make_start(env, 2), jax.random.key(0))
    counts = products(jax.jit(unroll).lower(params, 0, state, jax.random.key(0)).as_text())
    alone = products(jax.jit(policy).lower(params, state.env.state, state.env.goal, jax.random.key(0)).as_text())
    assert counts["f32", DEFAULT] == alone["f32", DEFAULT] > 0
    assert counts["f32", FULL] > 0
