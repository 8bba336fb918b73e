import functools
import threading
import time
from dataclasses import dataclass
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from collector.behaviour import Trajectories, measure_episodes, summarise
from collector.evaluator import EvaluationQueue, EvaluationRequest, Evaluator, make_evaluate
from collector.rollout import make_start, make_unroll
from shared.config import ACTIVE, Experiment
from shared.envs.base import EnvSpec, EnvState, GoalEnv
from shared.errors import EnvironmentBroken
from shared.metrics import Reporter
from shared.networks import Actor, make_actor
from shared.params import Policy
from shared.plan import make_plan
from shared.policy import DeterministicPolicy
from shared.types import Array, Metrics

LINEAR = Actor(nn.Dense(4), 2)
EPISODES = 64
# Settings of each case that differ from `DEFAULTS` (a goal 100 away, no termination, no break).
CASES: dict[str, dict[str, Any]] = {
    # Episodes of 3 steps, at the goal after step 2 only. The rollout of 8 steps has room for two such episodes.
    "two episodes": {"goals": (2.0, 2.0), "limits": (3, 3)},
    # Steps 1 to 8 against goal 7: within 0.5 after step 7, within 1.5 after 6 to 8, within 3.5 after 4 to 8.
    "whole": {"goals": (7.0, 7.0)},
    "far": {},
    "a little far": {"goals": (10.0, 10.0)},
    # Some episodes have 3 steps, and are within 1.5 of goal 3.4 after steps 2 and 3. Others have 8 steps, none at goal.
    "two kinds": {"goals": (3.4, 100.0), "limits": (3, 100)},
    # Goal 4, radius 1.5: at goal after step 3. Step 4 would also be at goal, but breaks.
    "all break": {"goals": (4.0, 4.0), "share": 2.0},
    "break at once": {"goals": (1.0, 1.0), "share": 2.0, "breaks_at": 1},
    # Episodes that do not break are at goal after steps 3, 4 and 5, and end after step 8 at distance 4.
    "some break": {"goals": (4.0, 4.0), "share": 0.5},
    "some start at NaN": {"goals": (4.0, 4.0), "nan_share": 0.5},
}
DEFAULTS: dict[str, Any] = {
    "goals": (100.0, 100.0),
    "limits": (100, 100),
    "share": 0.0,
    "breaks_at": 4,
    "nan_share": 0.0,
}


@pytest.fixture(scope="module")
def evaluated(traced_breaking: Any) -> dict[str, Metrics]:
    """Metrics of all cases, compiled at once: episodes of 8 steps, radii 1.5, 3.5 (easy) and 0.5 (hard)."""

    def make(settings: dict[str, Any]) -> Any:
        return traced_breaking(episode_length=8, goal_radius=1.5, easy_radius=3.5, hard_radius=0.5, **settings)

    def evaluate(settings: dict[str, Any]) -> Trajectories:
        params = jax.tree.map(
            lambda x: jnp.zeros(x.shape), jax.eval_shape(LINEAR.init, key, jnp.zeros(3), jnp.zeros(2))
        )
        return make_evaluate(make(settings), DeterministicPolicy(LINEAR), EPISODES)(params, key)[0]

    key = jax.random.key(0)
    cases = [DEFAULTS | case for case in CASES.values()]
    settings = {name: np.array([case[name] for case in cases]) for name in DEFAULTS}
    trajectories = jax.device_get(jax.jit(jax.vmap(evaluate))(settings))
    env = make(DEFAULTS)
    metrics = {}
    for row, name in enumerate(CASES):
        episodes = measure_episodes(env, jax.tree.map(lambda each, row=row: each[row], trajectories))
        metrics[name] = summarise(env.spec, episodes)
    return metrics


def headline(metrics: dict[str, float], suffix: str = "") -> tuple[float, ...]:
    """Returns time at goal, success rate, final distance and episode length."""
    radius = [metrics[f"{name}{suffix}"] for name in ("time_at_goal", "success_rate")]
    return *radius, metrics["final_distance"], metrics["episode_length"]


def test_only_the_first_episode_counts(evaluated: Any) -> None:
    assert headline(evaluated["two episodes"], "_hard") == pytest.approx((1, 1, 1, 3))


def test_a_whole_episode_by_hand(evaluated: Any) -> None:
    assert headline(evaluated["whole"]) == pytest.approx((3, 1, 1, 8))
    assert headline(evaluated["far"]) == pytest.approx((0, 0, 92, 8))


def test_metrics_are_means_over_episodes(evaluated: Any) -> None:
    metrics = evaluated["two kinds"]
    share = metrics["success_rate"]
    assert 0.25 < share < 0.75
    assert share * EPISODES == int(share * EPISODES)
    assert headline(metrics) == pytest.approx(
        (2 * share, share, 0.4 * share + 92 * (1 - share), 3 * share + 8 * (1 - share))
    )


def test_easy_and_hard_radii_are_counted_if_the_environment_has_them(evaluated: Any, counting: Any) -> None:
    assert [evaluated["whole"][f"time_at_goal{suffix}"] for suffix in ("", "_easy", "_hard")] == [3, 5, 1]
    assert [evaluated["a little far"][f"success_rate{suffix}"] for suffix in ("", "_easy", "_hard")] == [0, 1, 0]
    assert "time_at_goal_easy" in evaluated["whole"]
    episodes = {name: np.zeros(1) for name in ("time_at_goal", "final_distance", "steps", "broken", "shortest_path")}
    metrics = summarise(counting(goal_radius=1.5).spec, episodes)
    always = {"time_at_goal", "success_rate", "final_distance", "episode_length", "broken_episodes"}
    assert metrics.keys() == always | {"reached/0-6"}


def test_a_broken_step_ends_its_episode_and_is_not_at_goal(evaluated: Any) -> None:
    assert headline(evaluated["all break"]) == pytest.approx((1, 1, 1, 4))
    assert headline(evaluated["break at once"]) == pytest.approx((0, 0, 1, 1))
    assert [evaluated[case]["broken_episodes"] for case in ("far", "all break", "break at once")] == [0, 64, 64]
    metrics = evaluated["some break"]
    share = (metrics["episode_length"] - 4) / 4
    assert 0.25 < share < 0.75
    assert metrics["broken_episodes"] == round((1 - share) * EPISODES)
    assert metrics["time_at_goal"] == pytest.approx(3 * share + (1 - share))
    assert metrics["final_distance"] == pytest.approx(4 * share + (1 - share))


def test_an_episode_that_was_never_finite_has_no_final_distance(evaluated: Any) -> None:
    metrics = evaluated["some start at NaN"]
    share = (metrics["episode_length"] - 1) / 7
    assert 0.25 < share < 0.75
    assert metrics["final_distance"] == pytest.approx(4)
    assert metrics["time_at_goal"] == pytest.approx(3 * share)


@dataclass(frozen=True)
class Drift(GoalEnv):
    """Environment whose state is the start plus the sum of all actions.

    Every episode starts at (0, y), with a random y from 0 to `spread`. The goal is (1, 1).
    """

    spread: float = 0.0
    spec = EnvSpec(
        state_size=2, goal_size=2, action_size=2, goal_indices=(0, 1), episode_length=9, goal_radius=0.5, num_cells=1
    )

    def reset(self, key: Array) -> EnvState:
        start = jnp.stack([jnp.zeros(()), self.spread * jax.random.uniform(key)])
        return EnvState((), start, jnp.ones(2), jnp.array(False))

    def step(self, env_state: EnvState, action: Array) -> EnvState:
        return env_state._replace(state=env_state.state + action)

    def cell(self, goal: Array) -> Array:
        return jnp.zeros(goal.shape[:-1], jnp.int32)


EXPERIMENT = Experiment.model_validate(
    {
        "env": "drift",
        "collector": {"depth": 4, "width": 8, "environments": 2, "unroll_length": 5},
        "learners": {"twin": {"depth": 4, "width": 8, "critic_depth": 8}},
        "algorithm": {"batch_size": 2, "windows_per_update": 2, "minibatches_per_update": 1},
        "evaluation": {"episodes": 5},
        "replay": {"prefill_steps": 1},
        "budget": {"env_steps": 1000},
    }
)
PLAN = make_plan(EXPERIMENT, Drift.spec)
ACTOR = make_actor(EXPERIMENT.collector, Drift.spec)
POLICIES = dict.fromkeys(EXPERIMENT.all_learners, DeterministicPolicy(ACTOR))
init = jax.jit(lambda key: ACTOR.init(key, jnp.zeros(2), jnp.zeros(2)))


@functools.cache
def evaluator(env: Drift, seed: int = 0) -> Evaluator:
    return Evaluator(EXPERIMENT.model_copy(update={"seed": seed}), PLAN, {"drift": env}, POLICIES)


@functools.cache
def policy(version: int, seed: int = 0) -> Policy:
    return Policy(version, init(jax.random.key(seed)))


def test_the_policy_is_deterministic() -> None:
    state, untrained = np.zeros(2, np.float32), policy(0)
    act = jax.jit(lambda state: jnp.tanh(ACTOR.apply(untrained.params, state, jnp.ones(2))[0]))
    for _ in range(9):
        state = state + np.asarray(act(state))
    metrics = evaluator(Drift()).evaluate(ACTIVE, untrained)
    assert metrics["final_distance"] == pytest.approx(float(np.linalg.norm(state - 1)), rel=1e-4)


def test_a_learner_is_evaluated_with_its_own_action_chunks() -> None:
    """A learner decides four actions at once, the other one single actions, in episodes of nine steps."""
    learners = {"twin": {"algorithm": {"chunk": 4}}}
    experiment = Experiment.model_validate(EXPERIMENT.model_dump() | {"learners": learners})
    policies = POLICIES | {"twin": lambda factor, state, goal, key: factor * jnp.tile(state + 1, 4)}
    metrics = Evaluator(experiment, PLAN, {"drift": Drift()}, policies).evaluate("twin", Policy(0, 0.1))
    state = np.zeros(2)
    for step in range(9):
        if step % 4 == 0:
            action = 0.1 * (state + 1)
        state = state + action
    assert metrics["final_distance"] == pytest.approx(float(np.linalg.norm(state - 1)), rel=1e-4)


def test_no_two_steps_or_evaluations_share_a_key() -> None:
    """Actions are random numbers of their step's key, so they differ by step, and final distances by evaluation."""
    experiment = EXPERIMENT.model_copy(update={"evaluation": EXPERIMENT.evaluation.model_copy(update={"episodes": 1})})

    def drawn(params: Any, state: Array, goal: Array, key: Array) -> jax.Array:
        return jnp.where(jnp.arange(2) == params, jax.random.uniform(key, (1, 2)), 0)

    evaluator = Evaluator(experiment, PLAN, {"drift": Drift()}, dict.fromkeys(experiment.all_learners, drawn))
    first, again, other = (evaluator.evaluate(ACTIVE, Policy(version, 0)) for version in (3, 3, 4))
    assert first == again
    assert first["final_distance"] != other["final_distance"]
    unroll = make_unroll(Drift(), drawn, 9)
    _, made = jax.jit(unroll)(0, 0, make_start(Drift(), 1)(jax.random.key(0)), jax.random.key(1))
    assert len(np.unique(made.rows.action[..., 0])) == 9


def test_all_learners_are_evaluated_on_the_same_episodes() -> None:
    one = evaluator(Drift(spread=1.0))
    first = one.evaluate(ACTIVE, policy(3))
    assert first["env_steps"] == PLAN.env_steps_at(3)
    other = one.evaluate("twin", policy(3, seed=1))
    assert other["final_distance"] != first["final_distance"]
    # The learners differ in their critics, which the evaluator does not use.
    assert one.evaluate("twin", policy(3)) == first | {"learner": "twin"}
    assert one.evaluate(ACTIVE, policy(4))["final_distance"] != first["final_distance"]
    assert evaluator(Drift(spread=1.0), seed=1).evaluate(ACTIVE, policy(3))["final_distance"] != first["final_distance"]


@dataclass(frozen=True)
class Fragile(Drift):
    """`Drift` that breaks at the third step of an episode that starts above `height`."""

    height: float = 0.0
    spread: float = 1.0

    def step(self, env_state: EnvState, action: Array) -> EnvState:
        breaks = (env_state.physics[0] == 2) & (env_state.physics[1] > self.height)
        state = jnp.where(breaks & jnp.array([False, True]), jnp.nan, env_state.state + action)
        return env_state._replace(physics=env_state.physics + jnp.array([1.0, 0.0]), state=state)

    def reset(self, key: Array) -> EnvState:
        fresh = super().reset(key)
        return fresh._replace(physics=jnp.stack([jnp.zeros(()), fresh.state[1]]))


def test_an_evaluation_whose_episodes_all_break_ends_the_run() -> None:
    with pytest.raises(EnvironmentBroken) as error:
        evaluator(Fragile()).evaluate(ACTIVE, policy(0))
    assert str(error.value).startswith(
        "env: drift: state[1] is not finite after step 3 of an episode (environment 0 of the evaluator); all 5 "
        "episodes of an evaluation broke; make its step return finite numbers"
    )


def test_an_evaluation_counts_the_episodes_that_break() -> None:
    metrics = evaluator(Fragile(height=0.5)).evaluate(ACTIVE, policy(0))
    assert 0 < metrics["broken_episodes"] < 5
    assert all(np.isfinite(value) for value in metrics.values() if isinstance(value, float))


def test_further_environments_have_metrics_of_their_own() -> None:
    """Their keys and policies are the same, but starts differ."""
    envs = {"drift": Drift(), "spread": Drift(spread=1.0)}
    row = Evaluator(EXPERIMENT, PLAN, envs, POLICIES).evaluate(ACTIVE, policy(0))
    alone = [Evaluator(EXPERIMENT, PLAN, {"any": env}, POLICIES).evaluate(ACTIVE, policy(0)) for env in envs.values()]
    shared = {"learner", "updates", "env_steps"}
    assert row == alone[0] | {f"in/spread/{name}": value for name, value in alone[1].items() if name not in shared}
    assert row["final_distance"] != row["in/spread/final_distance"]


def test_the_error_names_the_environment_of_the_evaluation() -> None:
    config = {"evaluation": EXPERIMENT.evaluation.model_copy(update={"envs": ("fragile",)})}
    with pytest.raises(EnvironmentBroken, match=r"^evaluation\.envs: fragile: state\[1\] is not finite"):
        Evaluator(EXPERIMENT.model_copy(update=config), PLAN, {"fragile": Fragile()}, POLICIES).evaluate(
            ACTIVE, policy(0)
        )


def test_a_full_queue_drops_the_oldest_request_but_no_last_request() -> None:
    queue = EvaluationQueue(max_bytes=3 * 8)
    for version, last in ((1, False), (2, True), (3, False), (4, False), (5, True), (6, True)):
        queue.put(EvaluationRequest("a", Policy(version, {"w": np.zeros(1)}), last))
    assert (queue.dropped, len(queue)) == (3, 3)
    left = [queue.get(timeout_s=0.0) for _ in range(4)]
    assert [request.policy.version if request else None for request in left] == [2, 5, 6, None]
    assert len(queue) == 0


def test_a_policy_larger_than_the_queue_replaces_all_that_may_be_dropped() -> None:
    queue = EvaluationQueue(max_bytes=3 * 8)
    for version, size in ((1, 1), (2, 1), (3, 10)):
        queue.put(EvaluationRequest("a", Policy(version, {"w": np.zeros(size)}), last=False))
    assert (queue.dropped, len(queue)) == (2, 1)


def test_an_evaluator_ends_after_the_last_request_of_every_learner() -> None:
    queue, reporter = EvaluationQueue(2**26), Reporter()
    for name, version, last in ((ACTIVE, 0, False), ("twin", 7, True), (ACTIVE, 7, True), ("twin", 9, True)):
        queue.put(EvaluationRequest(name, policy(version), last))
    evaluator(Drift()).run(queue, reporter, should_stop=lambda: False)
    rows = reporter.drain().rows
    assert [(row["learner"], row["updates"]) for row in rows] == [(ACTIVE, 0), ("twin", 7), (ACTIVE, 7)]
    assert all("final_distance" in row for row in rows)


def test_a_queue_says_when_the_requests_of_a_learner_are_taken() -> None:
    queue = EvaluationQueue()
    queue.put(EvaluationRequest("a", policy(0), last=False))
    assert not queue.wait_taken("a", timeout_s=0.0)
    assert queue.wait_taken("b", timeout_s=0.0)
    threading.Timer(0.05, queue.get, [0.0]).start()
    started = time.monotonic()
    assert queue.wait_taken("a", timeout_s=20.0)
    assert time.monotonic() - started < 10
