import math
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from shared.config import Experiment
from shared.envs.base import EnvSpec
from shared.errors import ConfigError
from shared.plan import Plan, make_plan

TINY = {
    "env": "a",
    "collector": {"environments": 4, "unroll_length": 5},
    "algorithm": {"batch_size": 16, "windows_per_update": 8, "minibatches_per_update": 4},
    "replay": {"steps_per_environment": 400, "prefill_steps": 30},
    "budget": {"env_steps": 4000},
}


def spec(episode_length: int) -> EnvSpec:
    return EnvSpec(
        state_size=3,
        goal_size=2,
        action_size=2,
        goal_indices=(0, 1),
        episode_length=episode_length,
        goal_radius=0.5,
        num_cells=4,
    )


def tiny(**overrides: dict[str, Any]) -> Experiment:
    """Returns `TINY` with some fields of its sections replaced."""
    values = {name: {**value, **overrides.get(name, {})} for name, value in TINY.items() if isinstance(value, dict)}
    return Experiment.model_validate({"env": "a", **values})


def plan_of(experiment: Experiment, episode_length: int = 12) -> Plan:
    return make_plan(experiment, spec(episode_length))


def refused(experiment: Experiment, episode_length: int = 12) -> str:
    """Returns the one line with which `make_plan` refuses."""
    with pytest.raises(ConfigError) as error:
        plan_of(experiment, episode_length)
    assert len(str(error.value).splitlines()) == 1
    return str(error.value)


def suggested(message: str) -> int:
    """Returns the number that a message suggests."""
    return int(message.split("use at ")[1].split()[1].strip(",;"))


# --- contradictory numbers: the suggested number works, and one less does not ---


def test_a_batch_larger_than_an_update_is_refused() -> None:
    single = {"minibatches_per_update": 1}
    message = refused(tiny(algorithm=single | {"batch_size": 89}))
    assert message == (
        "algorithm.batch_size: 89 is more than the 88 rows of an update (8 windows of 11); use at most 88, "
        "or raise algorithm.windows_per_update"
    )
    assert plan_of(tiny(algorithm=single | {"batch_size": suggested(message)})).batch_size == 88


def test_too_many_minibatches_are_refused() -> None:
    message = refused(tiny(algorithm={"minibatches_per_update": 6}))
    assert message == (
        "algorithm.minibatches_per_update: 6 minibatches of 16 need 96 rows, an update has 88; use at most 5, or raise "
        "algorithm.windows_per_update"
    )
    assert plan_of(tiny(algorithm={"minibatches_per_update": suggested(message)})).minibatches_per_update == 5


def test_a_window_larger_than_replay_is_refused() -> None:
    message = refused(tiny(replay={"steps_per_environment": 19}))
    assert message.startswith(
        "replay.steps_per_environment: 19 steps hold 0 windows of 4 chunks of 5 steps (episodes of 12), "
        "training starts at 24; use at least "
    )
    assert suggested(message) >= 20


def random_experiment(rng: np.random.Generator) -> tuple[Experiment, int]:
    """Returns an experiment that is consistent once its budget and its replay are as large as suggested."""
    episode_length = int(rng.integers(2, 300))
    windows = int(rng.integers(2, 64))
    batch = int(rng.integers(2, windows * (episode_length - 1) + 1))
    experiment = tiny(
        collector={
            "actors": int(rng.integers(1, 4)),
            "environments": int(rng.integers(1, 64)),
            "unroll_length": int(rng.integers(1, 80)),
        },
        algorithm={
            "batch_size": batch,
            "windows_per_update": windows,
            "minibatches_per_update": int(rng.integers(1, windows * (episode_length - 1) // batch + 1)),
        },
        replay={
            "samples_per_insert": float(rng.choice([0.1, 0.3, 0.5, 1.0, 2.0, 4.0, rng.uniform(0.05, 8)])),
            "prefill_steps": int(rng.integers(1, 1000)),
            "steps_per_environment": 1_000_000,
        },
        budget={"env_steps": int(rng.integers(1, 10**7))},
    )
    return experiment, episode_length


def with_replay(experiment: Experiment, steps: int) -> Experiment:
    replay = experiment.replay.model_copy(update={"steps_per_environment": steps})
    return experiment.model_copy(update={"replay": replay})


def with_budget(experiment: Experiment, steps: int) -> Experiment:
    return experiment.model_copy(update={"budget": experiment.budget.model_copy(update={"env_steps": steps})})


seeds = pytest.mark.parametrize("seed", range(25))


@seeds
def test_the_suggested_budget_works_and_one_unroll_less_does_not(seed: int) -> None:
    experiment, episode_length = random_experiment(np.random.default_rng(seed))
    message = refused(with_budget(experiment, 1), episode_length)
    assert message.startswith("budget.env_steps: 1 steps end before the first update; use at least ")
    needed = suggested(message)
    plan = plan_of(with_budget(experiment, needed), episode_length)
    assert plan.updates >= 1
    assert plan.env_steps == needed
    refused(with_budget(experiment, needed - plan.environments * plan.unroll_length), episode_length)


@seeds
@pytest.mark.parametrize("stored", ["no window", "too few windows"])
def test_the_suggested_replay_size_works_and_one_unroll_less_does_not(seed: int, stored: str) -> None:
    experiment, episode_length = random_experiment(np.random.default_rng(seed))
    experiment = with_budget(experiment, 10**12)
    plan = plan_of(experiment, episode_length)
    unroll = plan.unroll_length
    steps = plan.chunks_per_window * unroll - (1 if stored == "no window" else 0)
    message = refused(with_replay(experiment, steps), episode_length)
    assert message.startswith(f"replay.steps_per_environment: {steps} steps hold ")
    fitting = plan_of(with_replay(experiment, suggested(message)), episode_length)
    assert fitting.max_windows >= fitting.prefill_windows == plan.prefill_windows
    refused(with_replay(experiment, suggested(message) - unroll), episode_length)


# --- the plan ---


def test_plan_of_the_reference() -> None:
    plan = make_plan(Experiment(env="a"), spec(1000))
    assert plan.chunks_per_window == 18
    assert plan.window_rows == 1116
    assert [plan.windows_after(unrolls) for unrolls in (0, 17, 18, 19, 30)] == [0, 0, 512, 1024, 13 * 512]
    assert plan.max_windows == 512 * (161 - 18 + 1)
    assert plan.error_buffer == 2 * 512 + 2 * 512
    assert plan.prefill_windows == 2048  # for the error buffer; 1,000 steps need only 512
    # After the prefill, each unroll of 31,744 environment steps allows one update of 800 gradient steps.
    assert [plan.updates_after(plan.windows_after(unrolls)) for unrolls in (21, 22, 23, 31)] == [0, 1, 2, 10]
    assert plan.env_steps_at(1) == 22 * 31_744
    assert plan.unrolls == math.ceil(100_000_000 / 31_744) == 3151
    assert plan.updates == 3151 - 21
    assert plan.gradient_steps == 800 * plan.updates


@pytest.mark.parametrize(("spi", "updates"), [(0.5, [0, 0, 1, 1, 2]), (1.0, [0, 1, 2, 3, 4]), (4.0, [0, 4, 8, 12, 16])])
def test_updates_follow_windows(spi: float, updates: list[int]) -> None:
    plan = plan_of(tiny(replay={"samples_per_insert": spi}))
    due = [plan.prefill_windows + 8 * more for more in range(5)]
    assert [plan.updates_after(windows) for windows in due] == updates
    if spi == 1:
        assert plan.updates_after(plan.prefill_windows + 7) == 0
    assert plan.updates_after(0) == 0


def test_prefill_is_at_least_the_steps_asked_for() -> None:
    plan = plan_of(tiny(replay={"prefill_steps": 201}))  # 41 unrolls of 5; the first 3 complete no window
    assert plan.prefill_windows == plan.windows_after(41) == 4 * 38


def test_environments_of_all_collectors_count() -> None:
    one, two = plan_of(tiny()), plan_of(tiny(collector={"actors": 2}))
    assert (one.environments, two.environments) == (4, 8)
    assert two.unrolls == one.unrolls / 2
    assert one.env_steps == two.env_steps == 4000


@seeds
def test_every_plan_is_consistent(seed: int) -> None:
    experiment, episode_length = random_experiment(np.random.default_rng(seed))
    plan = plan_of(with_budget(experiment, 10**6 + 10**5 * seed + 10**7), episode_length)
    spi, length = plan.samples_per_insert, plan.unroll_length
    # A window holds an episode at every crop 0..T-1, and no smaller window does.
    assert plan.window_rows >= plan.window_length + length - 1 > plan.window_rows - length
    # The rate limiter needs E <= M * spi, M <= max_size, and room for an unroll and a request on either side.
    assert plan.error_buffer <= plan.prefill_windows * spi + 1e-6
    assert plan.prefill_windows <= plan.max_windows
    assert plan.error_buffer >= 2 * plan.environments * spi + 2 * plan.windows_per_update
    assert plan.minibatches_per_update * plan.batch_size <= plan.windows_per_update * (plan.window_length - 1)
    budget = 10**6 + 10**5 * seed + 10**7
    assert budget <= plan.env_steps < budget + plan.environments * length
    # Updates follow windows: samples per insert is never exceeded, and lags by less than an update.
    due = (plan.windows - plan.prefill_windows) * spi
    assert plan.updates * plan.windows_per_update <= due + 1e-6
    assert (plan.updates + 1) * plan.windows_per_update > due - 1e-6
    # Evaluations: the untrained policy, equal distances, the last update.
    evaluations = plan.evaluation_updates
    assert (evaluations[0], evaluations[-1]) == (0, plan.updates)
    assert len(evaluations) == len(set(evaluations)) == min(plan.evaluations, plan.updates) + 1
    assert np.ptp(np.diff(evaluations)) <= 1
    # `env_steps_at` returns the earliest environment steps that allow an update.
    for updates in {1, 2, 3, plan.updates // 2 or 1, plan.updates}:
        unrolls = plan.env_steps_at(updates) // (plan.environments * length)
        assert plan.updates_after(plan.windows_after(unrolls)) >= updates
        assert plan.updates_after(plan.windows_after(unrolls - 1)) < updates
    assert plan.env_steps_at(0) == 0
    assert plan.env_steps_at(plan.updates) <= plan.env_steps


def test_few_updates_are_all_evaluated() -> None:
    plan = plan_of(tiny(budget={"env_steps": 4 * 5 * 18}))
    assert 1 <= plan.updates < 10
    assert plan.evaluation_updates == tuple(range(plan.updates + 1))


def test_a_plan_is_frozen() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        plan_of(tiny()).unrolls = 8  # type: ignore[misc]
