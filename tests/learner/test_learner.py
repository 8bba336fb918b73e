from typing import Any, NamedTuple

import jax
import numpy as np
import pytest

from learner.learner import Learner
from learner.state import LearnerState
from shared.config import ACTIVE
from shared.metrics import Reporter, Row
from shared.networks import make_actor
from shared.params import Policy
from shared.plan import Plan, make_plan
from shared.replay.codec import Columns
from shared.types import Metrics

SIZES = {"batch_size": 8, "windows_per_update": 8, "minibatches_per_update": 2}


def leaves(state: LearnerState) -> list[np.ndarray]:
    return [np.asarray(leaf) for leaf in jax.tree.leaves((state.actor, state.critic))]


def equal(one: list[np.ndarray], other: list[np.ndarray]) -> bool:
    return all(np.array_equal(x, y) for x, y in zip(one, other, strict=True))


class LearnerRun(NamedTuple):
    """A learner's whole run of two updates, then two trainings of 40 updates each.

    `start` to `rows` belong to the run; `copies` are the parameters of `policies`, copied at publication. `before`,
    `after` and `metrics` belong to the training on windows with related goals, `unrelated` are the metrics of the
    training on windows with unrelated goals.
    """

    plan: Plan
    start: list[np.ndarray]
    policies: list[Policy]
    copies: list[Any]
    evaluated: list[int]
    rows: list[Row]
    before: LearnerState
    after: LearnerState
    metrics: list[Metrics]
    unrelated: list[Metrics]


@pytest.fixture(scope="module")
def run(line: Any) -> LearnerRun:
    experiment = line.experiment()
    plan = make_plan(experiment, line.spec)
    assert plan.updates == 2
    learner, reporter = Learner(experiment, plan, line.spec, ACTIVE), Reporter()
    start, policies, copies, evaluated = leaves(learner.state), [], [], []
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
        lambda policy: evaluated.append(policy.version),
        lambda: None,
        reporter,
        should_stop=lambda: False,
    )
    rows = reporter.drain().rows

    def train(unrelated: bool) -> list[Metrics]:
        # Updates donate the buffers of a learner's state, so each training needs a new state. `resume` places it where
        # the old state was; otherwise the update would be compiled again.
        learner.resume(Learner.initial_state(experiment, line.spec, ACTIVE))
        return [learner.update(line.windows(seed, unrelated=unrelated)) for seed in range(40)]

    unrelated, metrics = train(unrelated=True), train(unrelated=False)
    before = Learner.initial_state(experiment, line.spec, ACTIVE)
    return LearnerRun(plan, start, policies, copies, evaluated, rows, before, learner.state, metrics, unrelated)


def test_a_learner_makes_every_update_of_its_plan(run: LearnerRun) -> None:
    assert [policy.version for policy in run.policies] == [0, 1, 2]
    assert run.evaluated == [0, 1, 2]
    assert [row["updates"] for row in run.rows] == [1, 2]


def test_the_update_is_compiled_between_the_first_policy_and_the_first_sample(line: Any) -> None:
    """The first policy is submitted after the first update: nothing that trains waits for its evaluation."""
    experiment = line.experiment()
    plan = make_plan(experiment, line.spec)
    learner, steps = Learner(experiment, plan, line.spec, ACTIVE), list[str]()

    def sample() -> Columns:
        steps.append("sample")
        return line.windows(0)

    def update(windows: Columns) -> Metrics:
        steps.append("update")
        return learner.update(windows)

    learner.run(
        sample,
        lambda: plan.windows,
        lambda policy: steps.append(f"publish {policy.version}"),
        lambda policy: steps.append(f"submit {policy.version}"),
        lambda: None,
        Reporter(),
        lambda: False,
        update,
        lambda: steps.append("prepare"),
    )
    first = ["publish 0", "prepare", "sample", "update", "publish 1", "submit 0", "submit 1"]
    assert steps == [*first, "sample", "update", "publish 2", "submit 2"]


@pytest.mark.parametrize("count", [1, 2])
def test_a_prepared_update_leaves_nothing_to_compile(line: Any, count: int) -> None:
    learners = {str(seed): {"width": 16, "seed": seed} for seed in range(count)}
    # Its sizes are those of no other test, so that nothing is compiled before.
    experiment = line.experiment(learners=learners, algorithm=line.experiment().algorithm.model_dump() | SIZES)
    plan = make_plan(experiment, line.spec)
    made = [Learner(experiment, plan, line.spec, name) for name in learners]
    windows = [line.windows(0, SIZES["windows_per_update"], plan.window_rows)] * count
    compiled: list[str] = []

    def listen(event: str, seconds: float, **details: str | int) -> None:
        if event.startswith("/jax/core/compile/") and "update_step" in str(details.get("fun_name")):
            compiled.append(event)

    def update() -> None:
        Learner.update_together(made, windows) if count > 1 else made[0].update(windows[0])

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        Learner.prepare_together(made) if count > 1 else made[0].prepare()
        assert compiled
        compiled.clear()
        update()
        update()  # on what the first one has returned
        assert not compiled
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)


def test_updates_do_not_change_published_policies(run: LearnerRun) -> None:
    for policy, copy in zip(run.policies, run.copies, strict=True):
        jax.tree.map(np.testing.assert_array_equal, policy.params, copy)
    assert not equal(jax.tree.leaves(run.copies[0]), jax.tree.leaves(run.copies[1]))


def test_rows_report_progress(run: LearnerRun) -> None:
    first, second = run.rows
    assert (first["gradient_steps"], second["gradient_steps"]) == (12, 24)
    assert (first["samples_per_insert"], second["samples_per_insert"]) == pytest.approx((1.0, 64 / 80))
    unrolls = run.plan.prefill_windows // 8 + 80 // 8 + run.plan.chunks_per_window - 1
    assert second["env_steps"] == unrolls * 8 * 4
    assert second["utd"] == pytest.approx(24 / second["env_steps"])
    assert second["sample_age"] == unrolls * 4 - 1 - 11  # newest step minus last step of the sampled windows
    assert "wait/replay starved" in second


def test_the_initial_state_depends_on_name_and_seed_but_not_on_other_learners(line: Any, run: LearnerRun) -> None:
    sizes = {"width": 16, "depth": 4}

    def start(name: str, learners: dict[str, dict], **overrides: Any) -> list[np.ndarray]:
        return leaves(Learner.initial_state(line.experiment(learners=learners, **overrides), line.spec, name))

    base = start("a", {"a": sizes})
    assert equal(base, start("a", {"z": {}, "a": sizes, "b": {"depth": 8}}))
    assert not equal(base, run.start)  # collector learner with the same sizes and seed
    assert not equal(base, start("b", {"a": sizes, "b": sizes}))
    assert not equal(base, start("a", {"a": sizes | {"seed": 1}}))
    assert not equal(base, start("a", {"a": sizes}, seed=1))


def mean(rows: list[Metrics], name: str) -> float:
    return float(np.mean([row[name] for row in rows]))


def test_the_critic_learns_from_related_goals(run: LearnerRun) -> None:
    chance = 1 / 16
    assert mean(run.metrics[:1], "critic/accuracy") < 5 * chance
    assert mean(run.metrics[-5:], "critic/accuracy") > 7 * chance
    assert mean(run.metrics[-5:], "critic/loss") < mean(run.metrics[:1], "critic/loss") - 1
    assert mean(run.metrics[-5:], "critic/positive") > mean(run.metrics[-5:], "critic/negative") + 1


def test_the_critic_stays_at_chance_with_unrelated_goals(run: LearnerRun) -> None:
    assert mean(run.unrelated[-5:], "critic/accuracy") < 2 / 16
    assert mean(run.unrelated[-5:], "critic/positive") < mean(run.unrelated[-5:], "critic/negative") + 0.2


def test_the_actor_learns_to_move_towards_the_goal(line: Any, run: LearnerRun) -> None:
    actor = make_actor(line.experiment().collector, line.spec)
    assert abs(line.alignment(actor, run.before.actor)) < 0.5
    assert line.alignment(actor, run.after.actor) > 0.75


def test_every_metric_moves(run: LearnerRun) -> None:
    first, last = dict(run.metrics[0]), dict(run.metrics[-1])
    assert first.keys() == {
        *("actor/loss", "actor/entropy", "actor/energy", "actor/gradient_norm"),
        *("critic/loss", "critic/accuracy", "critic/positive", "critic/negative", "critic/logsumexp"),
        *("critic/gradient_norm", "alpha/loss", "alpha/log_alpha", "data/last_step", "data/version"),
        *("guard/skipped", "update_seconds"),
    }
    assert (first.pop("guard/skipped"), last.pop("guard/skipped")) == (0, 0)  # test_guard.py tests skipped steps
    assert (first.pop("data/last_step"), last.pop("data/last_step")) == (11, 11)
    assert (first.pop("data/version"), last.pop("data/version")) == (0, 39)
    # Two updates may take equally long, but not all forty.
    assert first.pop("update_seconds") > 0
    assert len({metrics["update_seconds"] for metrics in run.metrics}) > 1
    assert all(abs(first[name] - last[name]) > 1e-4 for name in first)


@pytest.mark.slow
def test_learners_updated_together_equal_learners_updated_alone(line: Any) -> None:
    """Non-finite windows of one learner make only this learner skip steps."""
    count = 3
    learners = {str(seed): {"depth": 4, "width": 16, "seed": seed} for seed in range(count)}
    # Adam makes steps of full length even from gradients that are mere rounding errors. With small learning rates, such
    # steps do not drive the learners apart.
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
            np.mean([np.mean(np.abs(x - y)) for x, y in zip(leaves(other.state), reference, strict=True)])
            for reference in (start, leaves(one.state))
        )
        assert apart < 0.02 * moved
