from typing import Any, NamedTuple

import jax
import numpy as np
import pytest

from learner.learner import Learner
from learner.state import LearnerState
from shared.config import ACTIVE
from shared.metrics import Reporter, Row
from shared.networks import make_networks
from shared.params import Policy
from shared.plan import Plan, make_plan
from shared.policy import deterministic_policy
from shared.replay.codec import Columns
from shared.types import Metrics


def leaves(state: LearnerState) -> list[np.ndarray]:
    return [np.asarray(leaf) for leaf in jax.tree.leaves((state.actor, state.critic))]


def equal(one: list[np.ndarray], other: list[np.ndarray]) -> bool:
    return all(np.array_equal(x, y) for x, y in zip(one, other, strict=True))


class Ran(NamedTuple):
    plan: Plan
    start: list[np.ndarray]
    policies: list[Policy]
    copies: list[Any]
    snapshots: list[int]
    rows: list[Row]
    before: LearnerState
    after: LearnerState
    metrics: list[Metrics]
    unrelated: list[Metrics]


@pytest.fixture(scope="module")
def ran(line: Any) -> Ran:
    """A learner's whole run, which is short; `copies` are the policies as they were when they were published.

    Then two longer trainings: on windows to learn from (`metrics`), and on windows with nothing to learn.
    """
    experiment = line.experiment()
    plan = make_plan(experiment, line.spec)
    assert plan.updates == 2
    learner, reporter = Learner(experiment, plan, line.spec, ACTIVE), Reporter()
    start, policies, copies, snapshots = leaves(learner.state), [], [], []
    inserted = iter([plan.prefill_windows + 32, plan.prefill_windows + 80])

    def sample() -> Columns:
        return line.windows(0)

    def publish(policy: Policy) -> None:
        policies.append(policy)
        copies.append(jax.tree.map(np.array, policy.params))

    learner.run(
        sample,
        lambda: next(inserted),
        publish,
        lambda policy: snapshots.append(policy.version),
        lambda: None,
        reporter,
        should_stop=lambda: False,
    )
    rows = reporter.drain().rows

    def train(unrelated: bool) -> list[Metrics]:
        # Placed as the learner's own, or the update would be compiled again; the last one's buffers were donated.
        learner.resume(Learner.initial_state(experiment, line.spec, ACTIVE))
        return [learner.update(line.windows(seed, unrelated=unrelated)) for seed in range(40)]

    unrelated, metrics = train(unrelated=True), train(unrelated=False)
    before = Learner.initial_state(experiment, line.spec, ACTIVE)
    return Ran(plan, start, policies, copies, snapshots, rows, before, learner.state, metrics, unrelated)


def test_a_learner_makes_the_updates_it_owes(ran: Ran) -> None:
    assert [policy.version for policy in ran.policies] == [0, 1, 2]
    assert ran.snapshots == [0, 1, 2]
    assert [row["updates"] for row in ran.rows] == [1, 2]


def test_a_published_policy_stays_as_it_was(ran: Ran) -> None:
    for policy, copy in zip(ran.policies, ran.copies, strict=True):
        jax.tree.map(np.testing.assert_array_equal, policy.params, copy)
    assert not equal(jax.tree.leaves(ran.copies[0]), jax.tree.leaves(ran.copies[1]))


def test_rows_say_how_far_it_is(ran: Ran) -> None:
    first, second = ran.rows
    assert (first["gradient_steps"], second["gradient_steps"]) == (12, 24)
    assert (first["samples_per_insert"], second["samples_per_insert"]) == pytest.approx((1.0, 64 / 80))
    unrolls = ran.plan.prefill_windows // 8 + 80 // 8 + ran.plan.chunks_per_window - 1
    assert second["env_steps"] == unrolls * 8 * 4
    assert second["utd"] == pytest.approx(24 / second["env_steps"])
    assert second["sample_age"] == unrolls * 4 - 1 - 11  # the newest step, and the last of the windows sampled
    assert "wait/replay starved" in second


def test_names_and_seeds_start_apart_and_other_learners_do_not_matter(line: Any, ran: Ran) -> None:
    sizes = {"width": 16, "depth": 4}

    def start(name: str, learners: dict[str, dict], **overrides: Any) -> list[np.ndarray]:
        return leaves(Learner.initial_state(line.experiment(learners=learners, **overrides), line.spec, name))

    base = start("a", {"a": sizes})
    assert equal(base, start("a", {"z": {}, "a": sizes, "b": {"depth": 8}}))
    assert not equal(base, ran.start)  # the collector learner's, of the same sizes and seed
    assert not equal(base, start("b", {"a": sizes, "b": sizes}))
    assert not equal(base, start("a", {"a": sizes | {"seed": 1}}))
    assert not equal(base, start("a", {"a": sizes}, seed=1))


def mean(rows: list[Metrics], name: str) -> float:
    return float(np.mean([row[name] for row in rows]))


def test_the_critic_learns_what_there_is_to_learn(ran: Ran) -> None:
    chance = 1 / 16
    assert mean(ran.metrics[:1], "critic/accuracy") < 5 * chance
    assert mean(ran.metrics[-5:], "critic/accuracy") > 7 * chance
    assert mean(ran.metrics[-5:], "critic/loss") < mean(ran.metrics[:1], "critic/loss") - 1
    assert mean(ran.metrics[-5:], "critic/positive") > mean(ran.metrics[-5:], "critic/negative") + 1


def test_the_critic_stays_at_chance_where_goals_say_nothing(ran: Ran) -> None:
    assert mean(ran.unrelated[-5:], "critic/accuracy") < 2 / 16
    assert mean(ran.unrelated[-5:], "critic/positive") < mean(ran.unrelated[-5:], "critic/negative") + 0.2


def test_the_actor_learns_to_move_towards_the_goal(line: Any, ran: Ran) -> None:
    rng = np.random.default_rng(0)
    position, way = rng.normal(size=(2, 256, 2))
    state = np.concatenate([np.zeros((256, 1)), position], axis=1)
    policy = jax.jit(deterministic_policy(make_networks(line.experiment().collector, line.spec).actor))

    def alignment(state_of_learner: LearnerState) -> float:
        action = np.asarray(policy(state_of_learner.actor, state, position + way, jax.random.key(0)))
        return float(
            np.mean(np.sum(action * way, axis=1) / np.linalg.norm(action, axis=1) / np.linalg.norm(way, axis=1))
        )

    assert abs(alignment(ran.before)) < 0.5
    assert alignment(ran.after) > 0.7


def test_every_metric_moves(ran: Ran) -> None:
    first, last = dict(ran.metrics[0]), dict(ran.metrics[-1])
    assert first.keys() == {
        *("actor/loss", "actor/entropy", "actor/energy", "actor/gradient_norm"),
        *("critic/loss", "critic/accuracy", "critic/positive", "critic/negative", "critic/logsumexp"),
        *("critic/gradient_norm", "alpha/loss", "alpha/log_alpha", "data/last_step", "data/version"),
        *("guard/skipped", "update_seconds"),
    }
    assert (first.pop("guard/skipped"), last.pop("guard/skipped")) == (0, 0)  # test_guard.py has others
    assert (first.pop("data/last_step"), last.pop("data/last_step")) == (11, 11)
    assert (first.pop("data/version"), last.pop("data/version")) == (0, 39)
    # Two updates may take equally long, all forty never do.
    assert first.pop("update_seconds") > 0
    assert len({metrics["update_seconds"] for metrics in ran.metrics}) > 1
    assert all(abs(first[name] - last[name]) > 1e-4 for name in first)


@pytest.mark.slow
def test_learners_updated_together_learn_what_they_learn_alone(line: Any) -> None:
    """A window that is not finite costs its own learner steps, and no other learner."""
    count = 3
    learners = {str(seed): {"depth": 4, "width": 16, "seed": seed} for seed in range(count)}
    # Rates so small that Adam, which makes steps of equal length from gradients however small, keeps close.
    rates = {f"{part}_learning_rate": 1e-5 for part in ("actor", "critic", "alpha")}
    experiment = line.experiment(learners=learners)
    experiment = experiment.model_copy(update={"algorithm": experiment.algorithm.model_copy(update=rates)})
    plan = make_plan(experiment, line.spec)
    together, alone = ([Learner(experiment, plan, line.spec, name) for name in learners] for _ in range(2))
    windows = [line.windows(seed) for seed in range(count)]
    windows[-1].floats[0, 5, 0] = np.nan
    before = [leaves(learner.state) for learner in alone]
    rows = Learner.update_together(together, windows)
    for one, other, row, each, start in zip(together, alone, rows, windows, before, strict=True):
        expected = other.update(each)
        assert (row["guard/skipped"] > 0) == (one is together[-1])
        del expected["update_seconds"], row["update_seconds"]
        assert row == pytest.approx(expected, rel=1e-3, abs=1e-4)
        assert (one.updates, int(one.state.updates)) == (1, 1)
        moved, apart = (
            np.mean([np.mean(np.abs(leaf - wanted)) for leaf, wanted in zip(leaves(other.state), place, strict=True)])
            for place in (start, leaves(one.state))
        )
        assert apart < 0.02 * moved
